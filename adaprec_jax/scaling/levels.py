"""Rounding to 2^b levels that are not the format's own numbers.

Some quantisers take from a format the number of its bits alone, b, and spread 2^b
levels over a range of their own. What they give is returned in a power-of-two unit
with which the format reaches the largest of them, so that the product with the unit is
exact, and what is asked about the format's range stays meaningful.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32

from adaprec_jax import formats
from adaprec_jax.formats import Format
from adaprec_jax.quantizers import quantize
from adaprec_jax.random_bits import needed, random_bits
from adaprec_jax.scaling.per_tensor import power_of_two_multiplier


class Extremes(NamedTuple):
    """The smallest and the largest element."""

    low: Float32[Array, "..."]
    high: Float32[Array, "..."]


def extremes(
    x: Float32[Array, "..."], axes: tuple[int, ...], axis_names: tuple[str, ...] = ()
) -> Extremes:
    """Returns smallest and largest element over `axes`, kept with size 1, and devices.

    A NaN may give any number on one device, as in `largest_magnitude`.

    >>> found = extremes(jnp.array([[1.0, -3.0], [2.0, 0.0]]), (1,))
    >>> found.low.tolist(), found.high.tolist()
    ([[-3.0], [0.0]], [[1.0], [2.0]])
    """

    def highest(x: Array) -> Array:
        high = jnp.max(x, axes, keepdims=True, initial=-jnp.inf)
        if not axis_names:
            return high
        return lax.pmax(jnp.where(jnp.isnan(high), jnp.inf, high), axis_names)

    return Extremes(-highest(-x), highest(x))


def bits_of(fmt: Format) -> Int32[Array, "..."]:
    """Returns the format's width, at most 24.

    >>> bits_of(formats.integer(5))
    Array(5, dtype=int32)
    """
    return jnp.minimum(jnp.asarray(formats.bits(fmt)), formats.WIDEST_INTEGER)


def steps_of(fmt: Format) -> Float32[Array, "..."]:
    """Returns 2^b - 1, the steps from the lowest to the highest of 2^b levels.

    >>> steps_of(formats.integer(5))
    Array(31., dtype=float32)
    """
    return ((1 << bits_of(fmt)) - 1).astype(jnp.float32)


def divide(
    x: Float32[Array, "..."], by: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    """Returns x / by, rounded once.

    XLA takes x * (1 / by) where `by` is one number for many, which is rounded twice;
    so `by` is made to depend on each element, where that does not matter.

    >>> divide(jnp.array([1.0, 38.0]), jnp.float32(255.0)).tolist() == [
    ...     float(jnp.float32(1 / 255)), float(jnp.float32(38 / 255))]
    True
    """
    return x / jnp.where(jnp.isnan(x), jnp.nan, by)


def noise_of(
    rounding: str, key: ArrayLike | None, shape: tuple[int, ...]
) -> Float32[Array, "..."] | float:
    """Returns what is added before rounding: U(-1/2, 1/2) if stochastic, else 0.

    Raises:
        ValueError: Stochastic rounding has no key.

    >>> noise_of("nearest_even", None, (3,))
    0.0
    """
    if rounding != "stochastic":
        return 0.0
    words = random_bits(needed(key), shape)
    return (words >> 8).astype(jnp.float32) * 2.0**-24 - 0.5


def check_rounding(rounding: str) -> None:
    """Raises a ValueError if levels cannot be chosen in that way.

    >>> check_rounding("toward_zero")
    Traceback (most recent call last):
    ValueError: rounding must be nearest_even or stochastic, got 'toward_zero'.
    """
    if rounding not in ("nearest_even", "stochastic"):
        raise ValueError(
            f"rounding must be nearest_even or stochastic, got {rounding!r}."
        )


def multiplier_of(largest: Float32[Array, "..."], fmt: Format) -> Float32[Array, "..."]:
    """Returns 1 / unit: a power of two, with which `largest` is within the format.

    >>> multiplier_of(jnp.float32(1.0), formats.integer(4))
    Array(4., dtype=float32)
    """
    # The largest number of a single bit is 0, and no unit reaches anything with it.
    reach = jnp.asarray(fmt.max_value)
    return power_of_two_multiplier(largest, jnp.where(reach > 0, reach, 1.0))


def in_units(
    x: Float[Array, "..."],
    levels: Float32[Array, "..."],
    multiplier: Float32[Array, "..."],
    fmt: Format,
    rounding: str = "nearest_even",
    key: ArrayLike | None = None,
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    """Returns a tensor's levels, and the unit in which they are given.

    Args:
        x: The tensor; what is not finite in it becomes NaN.
        levels: Its levels in units.
        multiplier: 1 / unit, as of `multiplier_of`.
        fmt: Its format; where it is not scaled, `x` is rounded as it is.
        rounding: Of `x` there, as in `adaprec_jax.quantize`.
        key: For it.

    >>> x, one = jnp.array([0.3, jnp.inf]), jnp.ones(1)
    >>> in_units(x, jnp.array([2.0, 3.0]), 4 * one, formats.integer(4))
    (Array([ 2., nan], dtype=float32), Array([0.25], dtype=float32))
    """
    x = x.astype(jnp.float32)
    levels = jnp.where(jnp.isfinite(x), levels, jnp.nan)
    plain = quantize(x, fmt, rounding=rounding, overflow="format", key=key)
    unit = jnp.where(fmt.scaled, 1.0 / multiplier, 1.0)
    return jnp.where(fmt.scaled, levels, plain), unit
