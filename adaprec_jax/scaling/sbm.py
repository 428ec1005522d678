"""An affine grid between the extremes of a tensor, the quantiser of CPT."""

import functools

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import Format
from adaprec_jax.scaling.levels import (
    check_rounding,
    divide,
    extremes,
    in_units,
    multiplier_of,
    noise_of,
    steps_of,
)
from adaprec_jax.scaling.recipe import Recipe, Use, keep_state, no_state
from adaprec_jax.scaling.slices import check_per, within_slices

_SMALLEST_STEP = 1e-8
_TINY = 2.0**-126


@functools.cache
def sbm(per: str = "tensor", *, rounding: str = "nearest_even") -> Recipe:
    r"""Returns the recipe that spreads 2^b levels from end to end of a tensor.

    $$ s = \max\left(\frac{\max x - \min x}{2^b - 1}, 10^{-8}\right), \quad
       \hat x = \min x + s \cdot \mathrm{rint}\left(\mathrm{clip}\left(
       \frac{x - \min x}{s} + u, 0, 2^b - 1\right)\right) $$

    with ties to even, and u uniform in -1/2 to 1/2 where rounding is stochastic, else
    0. Only the bits b of the format count. Zero need not be on the grid.

    CPT and FracTrain have `sbm()` for activations, `sbm("slice")` for weights, each
    output channel by itself, and `sbm(rounding="stochastic")` for gradients. Their code
    evaluates with a running mean of an activation's extremes; here an evaluation takes
    those of its own batches.

    Source: Banner et al. 2018, "Scalable Methods for 8-bit Training of Neural
    Networks", arXiv:1805.11046, as the code of CPT (arXiv:2101.09868) and FracTrain
    (NeurIPS 2020) has it.

    Args:
        per: "tensor", or "slice": extremes of its own for each example of an activation
            or a gradient, and for each output of a weight.
        rounding: "nearest_even" or "stochastic".

    Raises:
        ValueError: `per` or `rounding` is unknown.

    >>> from adaprec_jax import formats
    >>> x = jnp.array([0.0, 1.0, 1.2, 3.0])
    >>> values, scale = sbm().round(x, formats.integer(2), (), axes=(0,), key=None)
    >>> values * scale
    Array([0., 1., 1., 3.], dtype=float32)
    """
    check_per(per)
    check_rounding(rounding)

    def round_between_extremes(
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
        wide = x.astype(jnp.float32)
        found = extremes(wide, axes, axis_names)
        largest = jnp.maximum(jnp.abs(found.low), jnp.abs(found.high))
        multiplier = multiplier_of(largest, fmt)
        # In units from here on: no difference of two large numbers overflows.
        low, high = (end * multiplier for end in found)
        smallest = jnp.maximum(_SMALLEST_STEP * multiplier, _TINY)
        steps = steps_of(fmt)
        step = jnp.maximum(divide(high - low, steps), smallest)
        place = divide(wide * multiplier - low, step) + noise_of(rounding, key, x.shape)
        above = jnp.round(jnp.clip(place, 0.0, steps)) * step
        # Never negative; said again, for what is compiled may else round the product
        # and the sum in one.
        levels = low + jnp.maximum(above, 0.0)
        return in_units(x, levels, multiplier, fmt, rounding, key)

    return Recipe(
        no_state, round_between_extremes, keep_state, per_product=per == "slice"
    )
