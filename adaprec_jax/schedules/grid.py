"""The grid that integers of some bits lie on when a power of two scales them."""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from adaprec_jax.scaling.powers import ceil_log2_ratio


def log_step(
    largest: Float32[Array, "*axes"], bits: Int32[Array, "*axes"]
) -> Int32[Array, "*axes"]:
    """Returns ceil(log2(largest / (2^(bits-1) - 1))), the exponent of the grid's step.

    It is that of current scaling by a power of two, in which integers of these bits
    just reach `largest`, a positive number.

    >>> int(log_step(jnp.float32(127), jnp.int32(8)))
    0
    """
    bound = (1 << (bits - 1)) - 1
    return ceil_log2_ratio(largest, bound.astype(jnp.float32))
