"""What the transformations share: a tensor rounded to a format, in its own units.

The value of a rounded tensor is what its narrow copy stands for, as float32. A part of
the tensor that is not finite stays as it is and takes no part in the scale, so that it
spoils nothing beside it.
"""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int, PyTree

from adaprec_jax.formats import LARGEST_FLOAT32, Format
from adaprec_jax.scaling import Recipe, Use, largest_magnitude

# A hyperparameter: a number, or what optax.inject_hyperparams makes of it.
Number: TypeAlias = float | int | Float[Array, ""] | Int[Array, ""]
Whole: TypeAlias = int | Int[Array, ""]


def round_tensor(
    x: Float[Array, "..."],
    fmt: Format,
    recipe: Recipe,
    state: Any,
    *,
    axes: tuple[int, ...] | None = None,
    key: ArrayLike | None = None,
) -> tuple[Float32[Array, "..."], Any]:
    """Returns the value of `x` after rounding, and the recipe's next state.

    Args:
        x: A tensor of floating point.
        fmt: Its format; data.
        recipe: How it is scaled; static. One with scales for channels or blocks cuts
            the tensor as `apply_recipe` says.
        state: What `recipe.init` returned for the shape of the scales.
        axes: Over which a scale is shared; all by default.
        key: For a recipe that rounds stochastically.

    >>> from adaprec_jax import formats, scaling
    >>> fmt = formats.get("float4_e2m1fn")
    >>> x = jnp.array([0.9, -5.1, jnp.inf])
    >>> print(round_tensor(x, fmt, scaling.current(), ())[0])
    [ 1. -6. inf]
    """
    axes = tuple(range(x.ndim)) if axes is None else axes
    wide = x.astype(jnp.float32)
    finite = jnp.isfinite(wide)
    clean = jnp.where(finite, wide, 0.0)
    rounded, scale = apply_recipe(recipe, clean, fmt, state, axes=axes, key=key)
    amax = largest_magnitude(clean, axes)
    value = unscaled(rounded, scale)
    return jnp.where(finite, value, wide), recipe.update(state, jnp.squeeze(amax, axes))


def apply_recipe(
    recipe: Recipe,
    x: Float32[Array, "..."],
    fmt: Format,
    state: Any,
    *,
    axes: tuple[int, ...],
    key: ArrayLike | None,
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    """Returns what `recipe.round` does, for a tensor that belongs to no product.

    A recipe that rounds for each product is told of the forward one of a kernel whose
    last axis is its output, as Flax lays them out: that product sums over all of `axes`
    but the tensor's last, or over that one where it is alone.

    >>> from adaprec_jax import formats, scaling
    >>> kernel = jnp.array([[3.0, 300.0], [4.0, 400.0]])
    >>> recipe, fmt = scaling.per_channel(), formats.get("int4")
    >>> print(apply_recipe(recipe, kernel, fmt, (), axes=(0, 1), key=None)[1])
    [[ 1. 64.]]
    """
    if not recipe.per_product:
        return recipe.round(x, fmt, state, axes=axes, key=key)
    summed = tuple(axis for axis in axes if axis != x.ndim - 1) or axes
    use = Use("forward", summed)
    return recipe.round(x, fmt, state, axes=axes, key=key, use=use)


def unscaled(
    rounded: Float32[Array, "..."], scale: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    """Returns `rounded * scale`, never beyond the largest float32.

    >>> print(unscaled(jnp.float32(448), jnp.float32(2.0**120)))
    3.4028235e+38
    """
    product = jnp.clip(rounded * scale, -LARGEST_FLOAT32, LARGEST_FLOAT32)
    # Not times 1: XLA may flush float32's subnormals in a product.
    return jnp.where(scale == 1.0, rounded, product)


def as_arrays(fmt: Format) -> Format:
    """Returns the format as JAX arrays, to be kept in a state."""
    return jax.tree.map(jnp.asarray, fmt)


def init_recipes(recipe: Recipe, params: PyTree) -> PyTree:
    """Returns the first state of the recipe for each tensor, one scale per tensor."""
    return jax.tree.map(lambda _: recipe.init(()), params)


def check_format(where: str, fmt: Any) -> None:
    """Refuses what is no format of operands.

    Raises:
        ValueError: `fmt` is no `Format`.
    """
    if not isinstance(fmt, Format):
        raise ValueError(
            f"{where} needs a format, as formats.get('float8_e4m3fn') returns, "
            f"got {fmt!r}."
        )


def check_from(where: str, name: str, value: Number, lowest: float | int) -> None:
    """Refuses a number that is below the lowest; an array is not looked into.

    Raises:
        ValueError: It is.
    """
    if isinstance(value, jax.Array):
        return  # perhaps traced
    if math.isnan(value) or value < lowest:
        raise ValueError(f"{where} needs {name} of at least {lowest}, got {value}.")
