"""Exponents of float32 numbers, from their bits: no logarithm, no rounding on the way.

The bits of a positive float32 are exponent and fraction in one integer, so that it
grows with the logarithm to base 2, and is 2^23 times it at powers of two.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32

# Fraction of the float32 below the square root of two.
_ROOT = int(np.float32(math.sqrt(2)).view(np.int32)) & 0x7FFFFF
LARGEST = 126  # 2^-126 and 2^126: both float32, and each other's reciprocal


def floor_log2(x: Float32[Array, "..."]) -> Int32[Array, "..."]:
    """Returns floor(log2 x) for x >= 0: -127 below 2^-126, 128 for infinity and NaN.

    >>> floor_log2(jnp.array([0.75, 8.0]))
    Array([-1,  3], dtype=int32)
    """
    return (_bits_of(x) >> 23) - 127


def nearest_log2(x: Float32[Array, "..."]) -> Int32[Array, "..."]:
    """Returns log2 x rounded to a whole number, for x >= 0 as in `floor_log2`.

    >>> nearest_log2(jnp.array([1.414, 1.415]))
    Array([0, 1], dtype=int32)
    """
    above = (_bits_of(x) & 0x7FFFFF) > _ROOT
    return floor_log2(x) + above.astype(jnp.int32)


def floor_log2_ratio(
    x: Float32[Array, "..."], y: Float32[Array, "..."]
) -> Int32[Array, "..."]:
    """Returns floor(log2(x / y)) of the exact quotient of two normal numbers.

    >>> floor_log2_ratio(jnp.float32(127.5), jnp.float32(0.8))
    Array(7, dtype=int32)
    """
    return (_bits_of(x) - _bits_of(y)) >> 23


def ceil_log2_ratio(
    x: Float32[Array, "..."], y: Float32[Array, "..."]
) -> Int32[Array, "..."]:
    """Returns ceil(log2(x / y)) of the exact quotient of two normal numbers.

    >>> ceil_log2_ratio(jnp.float32(127.5), jnp.float32(0.8))
    Array(8, dtype=int32)
    """
    return (_bits_of(x) - _bits_of(y) + 0x7FFFFF) >> 23


def power_of_two(exponent: Int32[Array, "..."]) -> Float32[Array, "..."]:
    """Returns 2^exponent within 2^-126 to 2^126.

    >>> power_of_two(jnp.array([-1, 3, -200]))
    Array([5.0000000e-01, 8.0000000e+00, 1.1754944e-38], dtype=float32)
    """
    exponent = jnp.clip(exponent, -LARGEST, LARGEST)
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _bits_of(x: Float32[Array, "..."]) -> Int32[Array, "..."]:
    return lax.bitcast_convert_type(x, jnp.int32)
