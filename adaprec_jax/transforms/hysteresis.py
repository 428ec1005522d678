"""Weight quantisation with memory: a weight must cross a whole step to change.

Rounding to nearest lets a master weight near a border between two values swing its
quantised value back and forth. With memory the rounding depends on the last quantised
value q: a weight above q is rounded down, one below it up. The value then changes only
when the weight has gone a whole step from q, and back only when it has gone a whole
step the other way.

The rule is as we read Lee et al., "Toward Efficient Low-Precision Training: Data Format
Optimization and Hysteresis Quantization" (ICLR 2022); it was not checked against code
of theirs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Float32, PyTree

from adaprec_jax import scaling
from adaprec_jax.formats import SATURATE, Format
from adaprec_jax.quantizers import quantize
from adaprec_jax.scaling import Recipe, largest_magnitude
from adaprec_jax.transforms.rounding import (
    apply_recipe,
    as_arrays,
    check_format,
    round_tensor,
    unscaled,
)


class HysteresisState(NamedTuple):
    """State of `hysteresis`.

    Attributes:
        inner: State of the wrapped transformation.
        master: Per rounded weight its float32 master; `()` for the others.
        weights: Per rounded weight its last rounded value, float32; `()` for the
            others.
        recipes: States of the scaling recipe, by rounded weight.
        fmt: The format. It is data: another one may be put in its place.
    """

    inner: optax.OptState
    master: PyTree
    weights: PyTree
    recipes: PyTree
    fmt: Format


def hysteresis(
    inner: optax.GradientTransformation,
    fmt: Format,
    recipe: Recipe | None = None,
    *,
    mask: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` on float32 masters, the parameters being their rounded values.

    The parameters are what the model uses: after each update they are the masters
    rounded with memory (`round_with_memory`), and the gradient taken at them goes to
    the masters as it is, the straight-through estimate. The masters lie in the state,
    and `inner` sees them for parameters, so that weight decay acts on them. Before the
    first update the parameters are what they were; `rounded_weights` gives the values
    to start from. Where the model rounds its weights too, to the same format by the
    same recipe, that rounding changes nothing.

    The update is the difference of two rounded values. Float32 holds it to the bit for
    integers and float8_e4m3fn at scales that are powers of two; for formats of a wider
    range and other scales the parameter may differ from the rounded value by float32's
    rounding. The memory in the state does not.

    Source: Lee et al. 2022, "Toward Efficient Low-Precision Training: Data Format
    Optimization and Hysteresis Quantization", ICLR 2022, as we read it.

    Args:
        inner: The transformation to wrap.
        fmt: The format of the weights.
        recipe: How they are scaled; `adaprec_jax.scaling.current()` by default, with
            one scale per tensor. Of its rounding only the first,
            that of the initial weights, is used.
        mask: From the parameters to a tree of bools: which of them are rounded; all by
            default. The others are updated by `inner` as if this were not there.

    Raises:
        ValueError: `fmt` is no format, or `update` is given no params.

    >>> from adaprec_jax import formats, scaling
    >>> tx = hysteresis(optax.sgd(1.0), formats.get("int4"), scaling.none())
    >>> w = jnp.array([1.0])
    >>> state = tx.init(w)
    >>> for step in (0.6, 0.6, -0.6, -0.6, -0.6):  # masters 1.6, 2.2, 1.6, 1.0, 0.4
    ...     updates, state = tx.update(jnp.array([-step]), state, w)
    ...     w = optax.apply_updates(w, updates)
    ...     print(w)
    [1.]
    [2.]
    [2.]
    [1.]
    [1.]
    """
    recipe = scaling.current() if recipe is None else recipe
    check_format("hysteresis", fmt)
    wrapped = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> HysteresisState:
        chosen = jax.tree.map(lambda _: True, params) if mask is None else mask(params)
        arrays = as_arrays(fmt)

        def for_chosen(make: Callable[[Array], Any]) -> PyTree:
            return jax.tree.map(lambda p, yes: make(p) if yes else (), params, chosen)

        def first(param: Array) -> Array:
            return round_tensor(param, arrays, recipe, recipe.init(()))[0]

        return HysteresisState(
            inner=wrapped.init(params),
            master=for_chosen(lambda p: p.astype(jnp.float32)),
            weights=for_chosen(first),
            recipes=for_chosen(lambda _: recipe.init(())),
            fmt=arrays,
        )

    def update(
        updates: PyTree,
        state: HysteresisState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, HysteresisState]:
        if params is None:
            raise ValueError("hysteresis needs params in update.")
        leaves, structure = jax.tree.flatten(params)
        masters = structure.flatten_up_to(state.master)
        seen = [
            p if _is_out(m) else m.astype(p.dtype)
            for p, m in zip(leaves, masters, strict=True)
        ]
        with jax.numpy_dtype_promotion("standard"):  # as optax mixes dtypes
            deltas, new_inner = wrapped.update(
                updates, state.inner, structure.unflatten(seen), **extra_args
            )
        columns = (deltas, state.weights, state.recipes)
        rows = zip(
            leaves, masters, *(structure.flatten_up_to(c) for c in columns), strict=True
        )
        moved = [_move(recipe, state.fmt, *row) for row in rows]
        changed, master, weights, recipes = (
            (structure.unflatten(list(column)) for column in zip(*moved, strict=True))
            if moved
            else (deltas, state.master, state.weights, state.recipes)
        )
        return changed, state._replace(
            inner=new_inner, master=master, weights=weights, recipes=recipes
        )

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )


def rounded_weights(state: PyTree, params: PyTree) -> PyTree:
    """Returns the rounded weights that a state holds, each in its parameter's dtype.

    Args:
        state: Any optimizer state with one `HysteresisState` somewhere in it.
        params: The parameters; those that are not rounded come back as they are.

    Raises:
        ValueError: The state holds no such state, or several.

    >>> from adaprec_jax import formats
    >>> params = jnp.array([0.9, 5.2])
    >>> state = hysteresis(optax.sgd(1.0), formats.get("float4_e2m1fn")).init(params)
    >>> print(rounded_weights(state, params))
    [1. 6.]
    """
    found = [
        leaf for leaf in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(leaf)
    ]
    if len(found) != 1:
        raise ValueError(
            f"Expected one hysteresis(...) in the optimizer, found {len(found)}."
        )
    return jax.tree.map(
        lambda p, w: p if _is_out(w) else w.astype(p.dtype), params, found[0].weights
    )


def round_with_memory(
    x: Float[Array, "..."],
    previous: Float32[Array, "..."],
    fmt: Format,
    scale: Float32[Array, "..."],
) -> Float32[Array, "..."]:
    """Returns `x` rounded down where it is above `previous`, up where it is below.

    Down and up are towards minus and plus infinity, to the neighbours in `fmt` times
    `scale`; what lies beyond the range becomes its bound, and a value of the format
    stays. If `x` stays where it is, so does the result.

    Args:
        x: The master weights.
        previous: What they were rounded to last, in their own units.
        fmt: The format; data.
        scale: Of the format's units, as a recipe gives it: x ~= rounded * scale.

    >>> from adaprec_jax import formats
    >>> x = jnp.array([1.9, 2.1, 0.1, -0.1])
    >>> fmt, one = formats.get("int4"), jnp.float32(1)
    >>> print(round_with_memory(x, jnp.ones(4), fmt, one))
    [1. 2. 1. 0.]
    """
    wide = x.astype(jnp.float32)
    units = jnp.where(scale == 1.0, wide, wide / scale)
    saturating = fmt._replace(overflow=jnp.full_like(fmt.overflow, SATURATE))
    inner = quantize(units, saturating, rounding="toward_zero")
    outer = inner + jnp.sign(units) * _spacing(units, fmt)
    outer = jnp.clip(outer, fmt.min_value, fmt.max_value)
    # A value of the format is its own neighbour on both sides.
    outer = jnp.where(inner == units, inner, outer)
    below = jnp.where(units < 0, outer, inner)
    above = jnp.where(units < 0, inner, outer)
    return unscaled(jnp.where(wide >= previous, below, above), scale)


def _move(
    recipe: Recipe,
    fmt: Format,
    param: Array,
    master: Any,
    delta: Array,
    weights: Any,
    recipe_state: Any,
) -> tuple[Array, Any, Any, Any]:
    """Returns update, master, rounded weight and recipe state of one parameter."""
    if _is_out(master):
        return delta, master, weights, recipe_state
    master = master + delta.astype(jnp.float32)
    axes = tuple(range(master.ndim))
    finite = jnp.where(jnp.isfinite(master), master, 0.0)
    _, scale = apply_recipe(recipe, finite, fmt, recipe_state, axes=axes, key=None)
    weights = round_with_memory(master, weights, fmt, scale)
    amax = jnp.squeeze(largest_magnitude(finite, axes), axes)
    change = (weights - param.astype(jnp.float32)).astype(delta.dtype)
    return change, master, weights, recipe.update(recipe_state, amax)


def _spacing(x: Float32[Array, "..."], fmt: Format) -> Float32[Array, "..."]:
    """Returns the distance of the two values of the format that x lies between."""
    bits = lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
    exponent = jnp.maximum((bits >> 23) - 127, fmt.min_exponent) - fmt.mantissa_bits
    exponent = jnp.clip(exponent, -126, 127)
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _is_out(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _is_state(node: Any) -> bool:
    return isinstance(node, HysteresisState)
