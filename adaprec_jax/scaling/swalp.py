"""Block floating point: integers with the exponent of the largest among them."""

import functools

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import Format
from adaprec_jax.scaling.per_tensor import largest_magnitude, round_scaled, rounder_of
from adaprec_jax.scaling.powers import floor_log2, power_of_two
from adaprec_jax.scaling.recipe import Recipe, Use, keep_state, no_state
from adaprec_jax.scaling.slices import check_per, within_slices


@functools.cache
def swalp(per: str = "tensor", *, rounding: str = "stochastic") -> Recipe:
    r"""Returns the recipe of SWALP, which gives a block the exponent of its largest.

    $$ e = \lfloor \log_2 \max |x| \rfloor, \quad
       \hat x = 2^{e - b + 2} \, \mathrm{clip}(\lfloor 2^{b - 2 - e} x + u \rfloor,
       -2^{b - 1}, 2^{b - 1} - 1) $$

    for the integer of b bits, 2 or more, with u uniform in 0 to 1 (or the nearest
    integer, as `rounding` says). The largest magnitude may saturate by almost a step,
    where `current` would take the next power of two. In another format the exponents of
    the largest magnitude and of the format's largest number are brought together in the
    same way.

    Source: Yang et al. 2019, "SWALP: Stochastic Weight Averaging in Low-Precision
    Training", arXiv:1904.11943. Its average of the weights belongs to the optimizer.

    Args:
        per: "tensor", or "slice": an exponent of its own for each example of an
            activation or a gradient, and for each output of a weight (its small
            blocks).
        rounding: As in `adaprec_jax.quantize`.

    Raises:
        ValueError: `per` is unknown.

    >>> from adaprec_jax import formats
    >>> x = jnp.array([-1.2, -0.4, 0.33, 0.8])
    >>> recipe = swalp(rounding="nearest_even")
    >>> values, scale = recipe.round(x, formats.integer(4), (), axes=(0,), key=None)
    >>> values, scale
    (Array([-5., -2.,  1.,  3.], dtype=float32), Array([0.25], dtype=float32))
    """
    check_per(per)
    rounder = rounder_of(rounding)

    def round_by_exponent(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
        use: Use | None = None,
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del state
        if use is not None:
            axes, axis_names = within_slices(x, use, axis_names)
        amax = largest_magnitude(x, axes, axis_names)
        largest = jnp.asarray(fmt.max_value)
        multiplier = power_of_two(floor_log2(largest) - floor_log2(amax))
        multiplier = jnp.where(jnp.isfinite(amax), multiplier, jnp.nan)
        return round_scaled(x, fmt, multiplier, rounder, key)

    return Recipe(no_state, round_by_exponent, keep_state, per_product=per == "slice")
