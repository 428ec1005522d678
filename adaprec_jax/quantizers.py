"""Rounding to a number format: exact to the bit, one fused element-wise computation.

The format is data (`adaprec_jax.formats`), so one compilation serves all of them, and
`vmap` maps over formats as over anything else. Rounding mode, overflow and gradient
are static.

The grid is rounded in two parts. From 2^min_exponent upwards a format has a fixed
number of mantissa bits, and rounding is integer arithmetic on the bits of float32: add
what the mode asks for, then clear the bits that the format does not store; a carry
moves into the exponent by itself. Below it the spacing is constant, and rounding is
that of |x| / spacing to a whole number; the spacing is a power of two, so the quotient
is exact. A format with min_exponent -126 has no second part: float32's own subnormals
have that spacing, and none of their arithmetic, which XLA may flush to zero, is used.
Then the magnitude is cut to the bounds, and the sign put back.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from adaprec_jax.formats import LARGEST_FLOAT32, NAN, SATURATE, Format, PowerOfTwo
from adaprec_jax.random_bits import needed, random_bits

_ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "stochastic")
_OVERFLOWS = ("saturate", "format")
_GRADIENTS = ("straight_through", "clipped")
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

_MAGNITUDE_MASK = 0x7FFFFFFF
_INFINITY_BITS = 0x7F800000
_NAN_BITS = 0x7FC00000
_SIGN_BIT = -(2**31)
_SMALLEST_SCALE_BITS = 0x00400000  # 2^-127
# The sum of this and a number just below a tie does not round up to the next whole
# number, as the sum with 0.5 may; that with the tie does.
_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


def quantize(
    x: ArrayLike,
    fmt: Format | PowerOfTwo,
    *,
    rounding: str = "nearest_even",
    overflow: str = "saturate",
    key: ArrayLike | None = None,
    gradient: str = "straight_through",
) -> Float[Array, "..."]:
    """Returns `x` rounded to the numbers of `fmt`, in the dtype of `x`.

    Rounding happens in float32 and equals that of ml_dtypes to the bit; NaN stays NaN
    in every format. float32 is the identity, infinities included.

    float8_e8m0fnu follows ml_dtypes: what is no positive number in its range gives
    NaN, whatever `overflow` says, and a tie goes up.

    Args:
        x: A float32, bfloat16 or float16 array, or a Python float. (A number that a
            16-bit dtype cannot hold, as int16's 32767 in bfloat16, is rounded to it.)
        fmt: The format; its fields broadcast against `x`, aligned at the last axis.
        rounding: "nearest_even" or "nearest_away" (where a tie goes), "toward_zero",
            or "stochastic": to the neighbour above in magnitude with the probability
            (|x| - below) / (above - below), exact from 2^min_exponent upwards and to
            2^-31 below.
        overflow: "saturate" gives the bound beyond the range and for infinities.
            "format" does as the dtype does: e4m3fn gives NaN above 464, e5m2
            infinity, integers and formats that have neither the bound. Toward zero, a
            finite number gives the bound in both cases.
        key: A JAX key or its uint32 words for "stochastic", not used otherwise.
        gradient: "straight_through" passes the gradient unchanged (Bengio et al. 2013,
            arXiv:1308.3432), "clipped" only where min_value <= x <= max_value. The
            format has none.

    Raises:
        TypeError: `x` is of another dtype, or `fmt` is no format.
        ValueError: A mode is unknown, or stochastic rounding has no key.

    >>> from adaprec_jax import formats
    >>> quantize(jnp.array([0.3, -3.6, 1000.0]), formats.get("float8_e4m3fn"))
    Array([ 3.125e-01, -3.500e+00,  4.480e+02], dtype=float32)
    >>> quantize(jnp.array([0.3, -3.6, 1000.0]), formats.integer(8))
    Array([  0.,  -4., 127.], dtype=float32)
    """
    _check_choice("rounding", rounding, _ROUNDINGS)
    _check_choice("overflow", overflow, _OVERFLOWS)
    _check_choice("gradient", gradient, _GRADIENTS)
    if not isinstance(fmt, Format | PowerOfTwo):
        raise TypeError(f"fmt must be a format, as formats.get returns, got {fmt!r}.")
    array = _as_array(x)
    shape = jnp.broadcast_shapes(array.shape, *(jnp.shape(field) for field in fmt))
    array, fmt = jax.tree.map(lambda leaf: _with_rank(leaf, len(shape)), (array, fmt))
    noise = _noise(rounding, key, shape)
    wide = lax.stop_gradient(array).astype(jnp.float32)
    if isinstance(fmt, PowerOfTwo):
        rounded = _round_to_power_of_two(wide, rounding, noise)
    else:
        rounded = _round_to_format(wide, fmt, rounding, overflow, noise)
        if gradient == "clipped":
            inside = (wide >= fmt.min_value) & (wide <= fmt.max_value)
            array = _stop_gradient_outside(inside, array)
    return _straight_through(array, rounded.astype(array.dtype))


def binary(
    x: ArrayLike, *, scaled: bool = False, gradient: str = "straight_through"
) -> Float[Array, "..."]:
    """Returns the sign of `x` (1 for zero), times the mean of |x| where `scaled`.

    Args:
        x: A float32, bfloat16 or float16 array, or a Python float; NaN stays NaN.
        scaled: Whether to multiply with the mean magnitude over the whole array, the
            scale of least squared error (Rastegari et al. 2016, XNOR-Net,
            arXiv:1603.05279).
        gradient: "straight_through", or "clipped" to |x| <= 1 (Hubara et al. 2016,
            arXiv:1602.02830).

    Raises:
        TypeError: `x` is of another dtype.
        ValueError: `gradient` is unknown.

    >>> binary(jnp.array([-0.5, 0.0, 2.0]))
    Array([-1.,  1.,  1.], dtype=float32)
    """
    return ternary(x, -1.0, scaled=scaled, gradient=gradient)


def ternary(
    x: ArrayLike,
    threshold: float | Float32[Array, "..."],
    *,
    scaled: bool = False,
    gradient: str = "straight_through",
) -> Float[Array, "..."]:
    """Returns the sign of `x` where |x| > `threshold` and 0 elsewhere.

    Args:
        x: A float32, bfloat16 or float16 array, or a Python float; NaN stays NaN.
        threshold: In the unit of `x`. Ternary weight networks take 0.7 times the mean
            of |x| (Li et al. 2016, arXiv:1605.04711).
        scaled: Whether to multiply with the mean of |x| over what is not rounded to 0,
            the scale of least squared error.
        gradient: "straight_through", or "clipped" to |x| <= 1.

    Raises:
        TypeError: `x` is of another dtype.
        ValueError: `gradient` is unknown.

    >>> ternary(jnp.array([-0.5, 0.1, 2.0]), 0.25, scaled=True)
    Array([-1.25,  0.  ,  1.25], dtype=float32)
    """
    _check_choice("gradient", gradient, _GRADIENTS)
    array = _as_array(x)
    wide = lax.stop_gradient(array).astype(jnp.float32)
    magnitude = jnp.abs(wide)
    kept = magnitude > threshold
    rounded = jnp.where(kept, jnp.where(wide < 0, -1.0, 1.0), 0.0)
    if scaled:
        count = jnp.maximum(jnp.sum(kept, dtype=jnp.float32), 1.0)
        rounded = rounded * (jnp.sum(jnp.where(kept, magnitude, 0.0)) / count)
    rounded = jnp.where(jnp.isnan(wide), wide, rounded)
    if gradient == "clipped":
        array = _stop_gradient_outside(magnitude <= 1.0, array)
    return _straight_through(array, rounded.astype(array.dtype))


def _round_to_format(
    x: Float32[Array, "..."],
    fmt: Format,
    rounding: str,
    overflow: str,
    noise: UInt32[Array, "..."] | None,
) -> Float32[Array, "..."]:
    bits = _bits_of(x)
    magnitude = bits & _MAGNITUDE_MASK
    sign = bits & _SIGN_BIT
    # 2^min_exponent, or 0 where float32's own subnormals have the spacing. Values are
    # chosen as integers, for XLA may flush a subnormal in any float operation, but by
    # comparing floats: NaN fails both comparisons, and so passes unchanged.
    offset = fmt.min_exponent + 126
    smallest_normal = _float_of((offset + jnp.minimum(offset, 1)) << 23)
    rounded = jnp.where(
        _float_of(magnitude) >= smallest_normal,
        _round_bits(magnitude, fmt, rounding, noise),
        _bits_of(_round_multiples(_float_of(magnitude), fmt, rounding, noise)),
    )
    bounded = _bounded(bits, rounded, fmt, rounding, overflow)
    # Without a negative zero, zero loses its sign: bounded - 1 is negative for 0 alone.
    sign &= ~(bounded - jnp.where(fmt.negative_zero, 0, 1))
    return _float_of(bounded | sign)


def _round_bits(
    magnitude: Int32[Array, "..."],
    fmt: Format,
    rounding: str,
    noise: UInt32[Array, "..."] | None,
) -> Int32[Array, "..."]:
    """Rounds the bits of |x| to the stored mantissa bits; right for normal numbers."""
    shift = 23 - fmt.mantissa_bits
    unit = 1 << shift
    half = unit >> 1
    if rounding == "nearest_even":
        # A tie goes to the even code, the one whose last stored bit is 0. Without
        # mantissa bits that is the last bit of the exponent, which a format counts
        # from min_exponent - 1 and float32 from -127: for odd min_exponent, from 1.
        zero = jnp.where(fmt.mantissa_bits == 0, ~fmt.min_exponent & 1, 1)
        even = ((magnitude >> shift) ^ zero) & jnp.minimum(half, 1)
        increment = half - even
    elif rounding == "nearest_away":
        increment = half
    elif noise is not None:
        increment = lax.bitcast_convert_type(noise, jnp.int32) & (unit - 1)
    else:
        increment = 0
    return (magnitude + increment) & -unit


def _round_multiples(
    magnitude: Float32[Array, "..."],
    fmt: Format,
    rounding: str,
    noise: UInt32[Array, "..."] | None,
) -> Float32[Array, "..."]:
    """Rounds |x| to multiples of the subnormal spacing; right below 2^min_exponent."""
    exponent = fmt.min_exponent - fmt.mantissa_bits
    if rounding == "nearest_even":
        # The sum has just the spacing that is wanted, and additions round to even.
        # Behind a barrier, because XLA takes (x + C) - C for x where C is a constant.
        shifter = lax.optimization_barrier(_power_of_two(exponent + 23))
        return (magnitude + shifter) - shifter
    quotient = magnitude * _power_of_two(-exponent)
    if rounding == "nearest_away":
        quotient += _BELOW_HALF
    whole = jnp.floor(quotient)
    if noise is not None:
        # The fraction is exact; compared as integers, since a float rounds the noise.
        chance = ((quotient - whole) * 2.0**31).astype(jnp.int32)
        up = (noise >> 1).astype(jnp.int32) < chance
        whole = jnp.where(up, whole + 1, whole)
    return whole * _power_of_two(exponent)


def _bounded(
    bits: Int32[Array, "..."],
    rounded: Int32[Array, "..."],
    fmt: Format,
    rounding: str,
    overflow: str,
) -> Int32[Array, "..."]:
    """Replaces the rounded magnitude of `bits` where it lies beyond the bound."""
    below = _bits_of(-fmt.min_value) & _MAGNITUDE_MASK  # min_value may be 0
    bound = jnp.where(bits < 0, below, _bits_of(fmt.max_value))
    if overflow == "saturate":
        # No float32 lies beyond float32's own bound: that one cuts no infinity.
        special = jnp.where(fmt.max_value == LARGEST_FLOAT32, _INFINITY_BITS, 0)
    else:
        special = jnp.where(fmt.overflow == NAN, _NAN_BITS, _INFINITY_BITS)
        special = jnp.where(fmt.overflow == SATURATE, 0, special)
    beyond = jnp.maximum(bound, special)
    is_beyond = _float_of(rounded) > _float_of(bound)
    if rounding == "toward_zero":
        beyond = jnp.where(rounded == _INFINITY_BITS, beyond, bound)
    return jnp.where(is_beyond, beyond, rounded)


def _round_to_power_of_two(
    x: Float32[Array, "..."], rounding: str, noise: UInt32[Array, "..."] | None
) -> Float32[Array, "..."]:
    """Rounds to float8_e8m0fnu, whose codes are the exponents of float32.

    To be equal to ml_dtypes, what is above 2^-127 (code 0, a float32 subnormal) goes
    to 2^-126, though it may be nearer to 2^-127.
    """
    bits = _bits_of(x)
    if rounding == "toward_zero":
        increment = 0
    elif noise is not None:
        increment = lax.bitcast_convert_type(noise, jnp.int32) & 0x7FFFFF
    else:
        increment = jnp.where(bits == _SMALLEST_SCALE_BITS, 0, 0x400000)
    exponent = (bits + increment) >> 23
    value = jnp.where(exponent == 0, _SMALLEST_SCALE_BITS, exponent << 23)
    valid = (bits > 0) & (bits < _INFINITY_BITS) & (exponent < 255)
    return _float_of(jnp.where(valid, value, _NAN_BITS))


@jax.custom_jvp
def _straight_through(
    x: Float[Array, "..."], rounded: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns `rounded`, with the derivative of `x`."""
    del x
    return rounded


@_straight_through.defjvp
def _straight_through_jvp(
    primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    rounded, tangent = primals[1], tangents[0]
    return _straight_through(*primals), jnp.broadcast_to(tangent, rounded.shape)


def _stop_gradient_outside(
    inside: Bool[Array, "..."], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    return jnp.where(inside, x, lax.stop_gradient(x))


def _noise(
    rounding: str, key: ArrayLike | None, shape: tuple[int, ...]
) -> UInt32[Array, "..."] | None:
    if rounding != "stochastic":
        return None
    return random_bits(needed(key), shape)


def _as_array(x: ArrayLike) -> Float[Array, "..."]:
    if type(x) is float:  # np.float64 is a subclass
        return jnp.asarray(x, jnp.float32)
    dtype = getattr(x, "dtype", type(x).__name__)
    if dtype not in _DTYPES:
        raise TypeError(
            f"x must be float32, bfloat16 or float16, or a Python float, got {dtype}; "
            "convert it first, x.astype(jnp.float32) for instance."
        )
    return jnp.asarray(x)


def _with_rank(x: ArrayLike, rank: int) -> Array:
    """Returns `x` with axes of size 1 in front, or as it is if it is a scalar."""
    x = jnp.asarray(x)
    return x.reshape((1,) * (rank - x.ndim) + x.shape) if x.ndim else x


def _check_choice(name: str, choice: str, allowed: tuple[str, ...]) -> None:
    if choice not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {choice!r}.")


def _power_of_two(exponent: Int32[Array, "..."]) -> Float32[Array, "..."]:
    return _float_of((exponent + 127) << 23)


def _bits_of(x: Float32[Array, "..."]) -> Int32[Array, "..."]:
    return lax.bitcast_convert_type(x, jnp.int32)


def _float_of(bits: Int32[Array, "..."]) -> Float32[Array, "..."]:
    return lax.bitcast_convert_type(bits, jnp.float32)
