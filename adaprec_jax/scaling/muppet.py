"""Dynamic fixed point: the finest power-of-two step that holds both ends."""

import functools

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32

from adaprec_jax.formats import Format
from adaprec_jax.scaling.levels import Extremes, extremes
from adaprec_jax.scaling.per_tensor import round_scaled, rounder_of
from adaprec_jax.scaling.powers import LARGEST, floor_log2_ratio, power_of_two
from adaprec_jax.scaling.recipe import Recipe, keep_state, no_state


@functools.cache
def muppet(*, rounding: str = "stochastic") -> Recipe:
    r"""Returns the recipe of MuPPET, which looks at both ends of the range.

    $$ f = \left\lfloor \log_2 \min\left(\frac{2^{b - 1} - 1/2}{\max x},
       \frac{2^{b - 1} + 1/2}{|\min x|}\right) \right\rfloor, \quad
       \hat x = 2^{-f} \, \mathrm{rint}(2^f x + u) $$

    for the integer of b bits, with u uniform in -1/2 to 1/2 (or the nearest integer, as
    `rounding` says). An end on the other side of zero does not count. What rounding
    takes beyond the integers saturates; the paper's code, without a bound, keeps it. In
    another format, f is that of its own ends and smallest spacing.

    Source: Rajagopal et al. 2020, "Multi-Precision Policy Enforced Training",
    arXiv:2006.09049; its schedule of the bits is another matter.

    Args:
        rounding: As in `adaprec_jax.quantize`.

    >>> from adaprec_jax import formats
    >>> x = jnp.array([-1.2, 0.3, 0.8])
    >>> recipe = muppet(rounding="nearest_even")
    >>> values, scale = recipe.round(x, formats.integer(8), (), axes=(0,), key=None)
    >>> values, float(1 / scale[0])
    (Array([-77.,  19.,  51.], dtype=float32), 64.0)
    """
    rounder = rounder_of(rounding)

    def round_between_ends(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del state
        ends = extremes(x.astype(jnp.float32), axes, axis_names)
        finite = jnp.isfinite(ends.low) & jnp.isfinite(ends.high)
        multiplier = power_of_two(_exponent(ends, fmt))
        multiplier = jnp.where(finite, multiplier, jnp.nan)
        return round_scaled(x, fmt, multiplier, rounder, key)

    return Recipe(no_state, round_between_ends, keep_state)


def _exponent(ends: Extremes, fmt: Format) -> Int32[Array, "..."]:
    """Returns the largest power of two by which both ends can be multiplied."""
    half = power_of_two(jnp.asarray(fmt.min_exponent - fmt.mantissa_bits - 1))
    above = floor_log2_ratio(fmt.max_value + half, ends.high)
    below = floor_log2_ratio(half - fmt.min_value, -ends.low)
    return jnp.minimum(
        jnp.where(ends.high > 0, above, LARGEST),
        jnp.where(ends.low < 0, below, LARGEST),
    )
