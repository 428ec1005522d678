"""A network of sines for smooth functions; in nnx.

Sitzmann et al. 2020, "Implicit Neural Representations with Periodic Activation
Functions", arXiv:2006.09661, section 3.2. The first layer's inputs are multiplied by a
frequency, those of the others by 1.
"""

import math
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Siren(nnx.Module):
    """Dense layers with sines between them.

    Args:
        features: Inputs, each about -1 to 1.
        hidden: Units per layer.
        frequency: What the first layer multiplies its inputs by; how fast the functions
            vary that it begins with.
        outputs: The number of outputs.
        rngs: Where the first parameters come from.
    """

    def __init__(
        self,
        features: int,
        hidden: tuple[int, ...],
        frequency: float,
        outputs: int,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = (features, *hidden)
        bounds = (1 / features, *(math.sqrt(6 / size) for size in hidden[:-1]))
        self.frequency = frequency
        self.layers = nnx.List(
            nnx.Linear(*pair, kernel_init=_symmetric(bound), rngs=rngs)
            for pair, bound in zip(pairwise(sizes), bounds, strict=True)
        )
        self.head = nnx.Linear(sizes[-1], outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch features"]
    ) -> Float[Array, "batch outputs"]:
        """Returns the function's values."""
        x = self.frequency * x
        for layer in self.layers:
            x = jnp.sin(layer(x))
        return self.head(x)


def _symmetric(bound: float) -> nnx.Initializer:
    """Returns what draws uniform numbers from -bound to bound."""
    return lambda *args: bound * (2 * nnx.initializers.uniform(1.0)(*args) - 1)
