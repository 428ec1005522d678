"""Parameters that are kept and updated in a narrow format, without a master copy.

An update that is less than half the distance to the parameter's neighbour is lost:
rounding to nearest gives the old parameter again. Mixed-precision training therefore
adds its updates to float32 masters (Micikevicius et al. 2018, arXiv:1710.03740); this
is what it is compared with.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, PyTree

from adaprec_jax import scaling
from adaprec_jax.formats import Format
from adaprec_jax.transforms.rounding import round_tensor


def in_place(fmt: Format) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that rounds what an update makes of a parameter.

    The parameter w with the update u becomes round(w + u), to nearest with ties to
    even, in the format's own range; the returned update is round(w + u) - w. The
    parameters stay float32 arrays, which hold numbers of the format from the first
    update on. It reads the parameters and the final updates, so it stands behind the
    optimizer. It has no state. What is not finite stays so.

    Source: the training without master copy of arXiv:1710.03740.

    Args:
        fmt: The format of the parameters; data.

    Raises:
        ValueError: `update` is given no params.

    >>> from adaprec_jax import formats
    >>> tx = optax.chain(optax.sgd(1.0), in_place(formats.get("float16")))
    >>> w = jnp.array([1.0, 1.0])
    >>> updates, _ = tx.update(jnp.array([-0.0004, -0.0006]), tx.init(w), w)
    >>> print(optax.apply_updates(w, updates))  # half a step of float16 is 0.00049
    [1.        1.0009766]
    """

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, optax.EmptyState]:
        del extra_args
        if params is None:
            raise ValueError("in_place needs params in update.")

        def rounded(param: Array, update: Array) -> Float32[Array, "..."]:
            wide = param.astype(jnp.float32)
            new, _ = round_tensor(
                wide + update.astype(jnp.float32), fmt, scaling.none(), ()
            )
            return new - wide

        return jax.tree.map(rounded, params, updates), state

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )
