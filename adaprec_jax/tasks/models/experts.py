"""A mixture of experts; in linen.

Shazeer et al. 2017, "Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer", arXiv:1701.06538, equations 1, 3 and 5, without the noise on
the gates. What keeps a few experts from being given everything is the loss of Fedus,
Zoph and Shazeer 2021, "Switch Transformers", arXiv:2101.03961, equations 4 to 6: unlike
the older one, it reaches experts that nobody chooses.

The dispatch is dense: every expert reads every example, as zeros where it was not
chosen, so that a small network needs no capacities.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from adaprec_jax.tasks.models.mlp import MLP


class Experts(nn.Module):
    """A dense layer, a layer of experts added to it, and a dense layer.

    Attributes:
        members: Experts; each is an `MLP` of one hidden layer.
        top: How many experts an example is sent to.
        width: Between the layers.
        hidden_width: Of an expert's hidden layer.
        balance: Weight of `imbalance`, which is sown into the collection `losses`.
        outputs: The number of outputs.
    """

    members: int = 4
    top: int = 2
    width: int = 32
    hidden_width: int = 32
    balance: float = 0.1
    outputs: int = 10

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"]
    ) -> Float[Array, "batch outputs"]:
        """Returns logits."""
        x = nn.relu(nn.Dense(self.width, name="stem")(x))
        logits_BxE = nn.Dense(self.members, name="gate")(x)
        gates_BxE = top_gates(logits_BxE, self.top)
        self.sow("losses", "balance", self.balance * imbalance(logits_BxE, gates_BxE))
        gates_ExBx1 = gates_BxE.T[..., None]
        # Mapped over inputs of their own: members of one contraction, not one matrix.
        inputs_ExBxF = jnp.where(gates_ExBx1 > 0, x[None], 0)
        expert = nn.vmap(MLP, variable_axes={"params": 0}, split_rngs={"params": True})
        experts = expert((self.hidden_width,), self.width, name="experts")
        x = x + jnp.sum(gates_ExBx1 * experts(inputs_ExBxF), axis=0)
        return nn.Dense(self.outputs, name="head")(nn.relu(x))


def top_gates(
    logits: Float[Array, "batch members"], top: int
) -> Float[Array, "batch members"]:
    r"""Returns the weights of the experts: 0 for all but the `top` largest logits.

    $\mathrm{softmax}$ over the logits that are kept (equations 3 and 5).

    >>> top_gates(jnp.array([[2.0, 2.0, 1.0]]), 2).tolist()
    [[0.5, 0.5, 0.0]]
    """
    _, chosen = jax.lax.top_k(logits, top)
    kept = jnp.any(jax.nn.one_hot(chosen, logits.shape[-1], dtype=bool), axis=-2)
    lowest = jnp.finfo(logits.dtype).min
    return jnp.where(kept, jax.nn.softmax(jnp.where(kept, logits, lowest)), 0)


def imbalance(
    logits: Float[Array, "batch members"], gates: Float[Array, "batch members"]
) -> Float[Array, ""]:
    r"""Returns how unevenly examples go to experts: 1 if evenly, else more.

    $N \sum_i f_i P_i$ of $N$ experts: $f_i$ is the share of all choices that fell on
    expert $i$, $P_i$ the mean of its probability before the choice.

    >>> logits = jnp.array([[9.0, -9.0], [9.0, -9.0]])
    >>> round(float(imbalance(logits, top_gates(logits, 1))), 3)
    2.0
    """
    chosen = jnp.mean((gates > 0).astype(jnp.float32), axis=0)
    probable = jnp.mean(jax.nn.softmax(logits.astype(jnp.float32)), axis=0)
    return len(chosen) * jnp.sum(chosen / jnp.sum(chosen) * probable)
