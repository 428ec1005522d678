"""One scale for a tensor: none, by its present or its past largest magnitude."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import LARGEST_FLOAT32, SATURATE, Format
from adaprec_jax.quantizers import quantize
from adaprec_jax.scaling.powers import LARGEST, ceil_log2_ratio, power_of_two
from adaprec_jax.scaling.recipe import (
    Quantizer,
    Recipe,
    keep_state,
    no_state,
    shape_of_scale,
)


class DelayedState(NamedTuple):
    """State of `delayed`.

    Attributes:
        amax: The magnitude that now maps to the format's largest value; 0 until the
            first nonzero tensor, which means scale 1.
        history: The largest magnitudes of the last steps along the last axis; slot 0
            is written next, zeros are not yet written.
    """

    amax: Float32[Array, "*shape"]
    history: Float32[Array, "*shape history"]


@functools.cache
def none(
    *, rounding: str = "nearest_even", quantizer: Quantizer | None = None
) -> Recipe:
    """Returns the recipe that scales nothing: a cast, with the format's own overflow.

    Source: common practice.

    Args:
        rounding: As in `adaprec_jax.quantize`.
        quantizer: In place of its rounding.

    >>> from adaprec_jax import formats
    >>> fmt = formats.get("float8_e5m2")
    >>> none().round(jnp.array([0.3, 1e6]), fmt, (), axes=(0,), key=None)
    (Array([0.3125,    inf], dtype=float32), Array([1.], dtype=float32))
    """
    rounder = rounder_of(rounding, quantizer)

    def round_unscaled(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del state, axis_names
        x = x.astype(jnp.float32)
        rounded = rounder(x, fmt, key)
        return rounded, jnp.ones(shape_of_scale(x, axes), jnp.float32)

    return Recipe(no_state, round_unscaled, keep_state, on_grid=quantizer is None)


@functools.cache
def current(
    *,
    power_of_two: bool = True,
    rounding: str = "nearest_even",
    quantizer: Quantizer | None = None,
) -> Recipe:
    """Returns the recipe that maps the tensor's own largest magnitude to the format's.

    scale = amax / max_value, within 2^-126 to 2^126, so that an all-zero, tiny or huge
    tensor never gives NaN.

    Source: common practice; Transformer Engine calls it current scaling.

    Args:
        power_of_two: Whether the scale is rounded up to a power of two: the largest
            magnitude then lies in the upper half of the range and never beyond it, and
            scaling alone changes no value.
        rounding: As in `adaprec_jax.quantize`.
        quantizer: In place of its rounding.

    >>> from adaprec_jax import formats
    >>> fmt = formats.get("float8_e4m3fn")
    >>> current().round(jnp.array([3.0, 1000.0]), fmt, (), axes=(0,), key=None)
    (Array([  0.75, 256.  ], dtype=float32), Array([4.], dtype=float32))
    """
    scaled = scaled_rounding(power_of_two, rounding, quantizer)

    def round_by_own_amax(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del state
        amax = largest_magnitude(x, axes, axis_names)
        return scaled(amax, x, fmt, key)

    return Recipe(no_state, round_by_own_amax, keep_state, on_grid=quantizer is None)


@functools.cache
def delayed(
    history: int = 1024,
    margin: int = 0,
    *,
    amax: str = "max",
    rounding: str = "nearest_even",
    quantizer: Quantizer | None = None,
) -> Recipe:
    """Returns the recipe that scales by the largest magnitude of the last steps.

    The order is Transformer Engine's: the tensor is rounded with the scale in force;
    then its amax enters the history, and the next scale is the largest of the history
    times 2^margin over max_value. It stays where the history holds nothing but zeros.
    The state keeps magnitudes, not scales, so a format may change between two steps.
    A non-finite amax is not stored: the state is as if that step had not been. The
    scale stays within 2^-126 to 2^126, as that of `current`.

    Flax's fp8_ops finds the scale at the beginning of the next step instead of at the
    end of this one: it is the same scale. (There an infinity stays in the history.)

    Source: NVIDIA's Transformer Engine, its delayed scaling.

    Args:
        history: Steps that are remembered.
        margin: Powers of two that are left free above the largest magnitude, -64 to 64.
        amax: Which of the history sets the scale: "max", the largest, or
            "most_recent", Transformer Engine's other algorithm.
        rounding: As in `adaprec_jax.quantize`.
        quantizer: In place of its rounding.

    Raises:
        ValueError: `history` is less than 1, `margin` is out of its range, or `amax`
            is neither.

    >>> from adaprec_jax import formats
    >>> recipe, fmt = delayed(history=4), formats.get("float8_e4m3fn")
    >>> x, state = jnp.array([1.0, -2.0]), recipe.init(())
    >>> recipe.round(x, fmt, state, axes=(0,), key=None)[0]
    Array([ 1., -2.], dtype=float32)
    >>> state = recipe.update(state, jnp.float32(2.0))
    >>> recipe.round(x, fmt, state, axes=(0,), key=None)[0]
    Array([ 224., -448.], dtype=float32)
    """
    if history < 1:
        raise ValueError(f"history must be at least 1, got {history}.")
    if not -64 <= margin <= 64:
        raise ValueError(f"margin must lie in -64 to 64, got {margin}.")
    if amax not in ("max", "most_recent"):
        raise ValueError(f"amax must be 'max' or 'most_recent', got {amax!r}.")
    keep_largest = amax == "max"

    rounder = rounder_of(rounding, quantizer)

    def init(shape: tuple[int, ...]) -> DelayedState:
        return DelayedState(
            amax=jnp.zeros(shape, jnp.float32),
            history=jnp.zeros((*shape, history), jnp.float32),
        )

    def round_by_history(
        x: Float[Array, "..."],
        fmt: Format,
        state: DelayedState,
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del axis_names  # the amax of the update is reduced over them
        in_force = state.amax.reshape(shape_of_scale(x, axes))
        largest = jnp.asarray(fmt.max_value) * 2.0**-margin
        multiplier = multiplier_of(in_force, largest)
        multiplier = jnp.where(in_force > 0, multiplier, 1.0)
        rounded, scale = round_scaled(x, fmt, multiplier, rounder, key)
        hidden = fmt.scaled & jnp.isinf(x)  # no amax of this tensor tells of it
        return jnp.where(hidden, x.astype(jnp.float32), rounded), scale

    def update(state: DelayedState, amax: Float32[Array, "*shape"]) -> DelayedState:
        filled = state.history.at[..., 0].set(amax)
        largest = jnp.max(filled, axis=-1) if keep_largest else amax
        rolled = jnp.roll(filled, -1, axis=-1).at[..., 0].set(0.0)
        stored = jnp.isfinite(amax)
        return DelayedState(
            amax=jnp.where(stored & (largest > 0), largest, state.amax),
            history=jnp.where(stored[..., None], rolled, state.history),
        )

    return Recipe(init, round_by_history, update, on_grid=quantizer is None)


def largest_magnitude(
    x: Float[Array, "..."], axes: tuple[int, ...], axis_names: tuple[str, ...] = ()
) -> Float32[Array, "..."]:
    """Returns the largest |x| over `axes`, kept with size 1, and over mesh axes.

    An infinity in `x` gives infinity. A NaN may give any number: XLA's maximum on a
    CPU passes over it in arrays of some thousand elements, and forgets what it met
    before. It is not lost for all that, for rounding leaves it NaN at every scale.

    >>> largest_magnitude(jnp.array([[1.0, -3.0], [2.0, 0.0]]), (1,))
    Array([[3.],
           [2.]], dtype=float32)
    """
    amax = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True, initial=0.0)
    if not axis_names:
        return amax
    # A reduction between devices may drop a NaN, never an infinity.
    return lax.pmax(jnp.where(jnp.isnan(amax), jnp.inf, amax), axis_names)


def scaled_rounding(
    power_of_two: bool,  # noqa: FBT001 (as the settings of the recipes)
    rounding: str,
    quantizer: Quantizer | None,
) -> Callable[..., tuple[Float32[Array, "..."], Float32[Array, "..."]]]:
    """Returns `f(amax, x, fmt, key) -> (rounded, scale)`, the rounding by a magnitude.

    `amax`, which broadcasts against `x`, is mapped to the format's largest value; where
    it is not finite, the result is NaN.

    >>> from adaprec_jax import formats
    >>> x = jnp.array([1.0, 3.0])
    >>> scaled_rounding(True, "nearest_even", None)(x, x, formats.integer(3), None)
    (Array([2., 3.], dtype=float32), Array([0.5, 1. ], dtype=float32))
    """
    find_multiplier = power_of_two_multiplier if power_of_two else multiplier_of
    return rounding_by(find_multiplier, rounding, quantizer)


def rounding_by(
    find_multiplier: Callable[
        [Float32[Array, "..."], Float32[Array, "..."]], Float32[Array, "..."]
    ],
    rounding: str,
    quantizer: Quantizer | None,
) -> Callable[..., tuple[Float32[Array, "..."], Float32[Array, "..."]]]:
    """Returns as `scaled_rounding`, for any rule that finds what to multiply by.

    `find_multiplier(amax, max_value)` gives the scale's reciprocal.

    >>> from adaprec_jax import formats
    >>> halved = rounding_by(lambda amax, top: top / amax / 2, "nearest_even", None)
    >>> halved(jnp.float32(6.0), jnp.array([1.0, 6.0]), formats.integer(4), None)[0]
    Array([1., 4.], dtype=float32)
    """
    rounder = rounder_of(rounding, quantizer)

    def scaled(
        amax: Float32[Array, "..."],
        x: Float[Array, "..."],
        fmt: Format,
        key: ArrayLike | None,
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        multiplier = find_multiplier(amax, jnp.asarray(fmt.max_value))
        multiplier = jnp.where(jnp.isfinite(amax), multiplier, jnp.nan)
        return round_scaled(x, fmt, multiplier, rounder, key)

    return scaled


def round_scaled(
    x: Float[Array, "..."],
    fmt: Format,
    multiplier: Float32[Array, "..."],
    rounder: Quantizer,
    key: ArrayLike | None,
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    """Rounds `x * multiplier`, saturating, where `fmt` is scaled, and `x` elsewhere.

    >>> from adaprec_jax import formats
    >>> x, half = jnp.array([1.2, 30.0]), jnp.array([0.5])
    >>> round_scaled(x, formats.integer(4), half, rounder_of("nearest_even"), None)
    (Array([1., 7.], dtype=float32), Array([2.], dtype=float32))
    """
    x = x.astype(jnp.float32)
    multiplier = jnp.where(fmt.scaled, multiplier, 1.0)
    # Not times 1: XLA may flush float32's subnormals in a product.
    scaled = jnp.where(fmt.scaled, x * multiplier, x)
    saturating = fmt._replace(overflow=jnp.where(fmt.scaled, SATURATE, fmt.overflow))
    return rounder(scaled, saturating, key), 1.0 / multiplier


def rounder_of(rounding: str, quantizer: Quantizer | None = None) -> Quantizer:
    """Returns what rounds; float32 stays the identity, whatever a quantiser does.

    Raises:
        ValueError: A quantiser is given beside a rounding.

    >>> from adaprec_jax import formats
    >>> rounder_of("toward_zero")(jnp.array([1.7]), formats.integer(4), None)
    Array([1.], dtype=float32)
    """
    if quantizer is None:
        return lambda x, fmt, key: quantize(
            x, fmt, rounding=rounding, overflow="format", key=key
        )
    if rounding != "nearest_even":
        raise ValueError(f"rounding ({rounding}) has no effect beside a quantizer.")
    return lambda x, fmt, key: jnp.where(
        fmt.max_value == LARGEST_FLOAT32, x, quantizer(x, fmt, key)
    )


def multiplier_of(
    amax: Float32[Array, "..."], max_value: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    """Returns max_value / amax within 2^-126 to 2^126.

    >>> multiplier_of(jnp.float32(7.0), jnp.float32(448.0))
    Array(64., dtype=float32)
    """
    quotient = max_value / jnp.maximum(amax, 2.0**-LARGEST)
    return jnp.clip(quotient, 2.0**-LARGEST, 2.0**LARGEST)


def power_of_two_multiplier(
    amax: Float32[Array, "..."], max_value: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    """Returns max_value / amax rounded down to a power of two, 2^-126 to 2^126.

    >>> power_of_two_multiplier(jnp.float32(3.0), jnp.float32(127.0))
    Array(32., dtype=float32)
    """
    return power_of_two(-ceil_log2_ratio(amax, max_value))
