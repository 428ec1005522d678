"""Weights that swing between two quantised values are set to one of them.

A master weight near the border of two quantisation bins may cross it back and forth
while it hardly moves: its quantised value jumps by a whole bin each time, and training
sees noise. Such a weight is found by how far its quantised value travels for the way
that the weight itself goes, and set to the centre of its bin.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, PyTree

from adaprec_jax import scaling
from adaprec_jax.formats import Format
from adaprec_jax.scaling import Recipe
from adaprec_jax.transforms.rounding import (
    Number,
    Whole,
    as_arrays,
    check_format,
    check_from,
    init_recipes,
    round_tensor,
)


class OscillationResetState(NamedTuple):
    """State of `oscillation_reset`.

    Attributes:
        calls: Updates so far. Behind loss scaling they are the applied steps.
        quantized_way: Per weight, the sum of |dQ(w)| in this window, float32.
        way: Per weight, the sum of |dw| in this window, float32.
        resets: How many weights the last window set to their centre.
        fmt: The format of Q. It is data: another one may be put in its place.
        recipes: States of the scaling recipe, by tensor.
    """

    calls: Int32[Array, ""]
    quantized_way: PyTree
    way: PyTree
    resets: Int32[Array, ""]
    fmt: Format
    recipes: PyTree


def oscillation_reset(
    fmt: Format,
    recipe: Recipe | None = None,
    *,
    start: Whole,
    every: Whole = 200,
    window: Whole = 50,
    threshold: Number = 8.0,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that sets oscillating weights to their bin's centre.

    From call `start` on, and again every `every` calls, it watches `window` updates of
    each weight w and its quantised value Q(w), and forms

        R = sum |dQ(w)| / sum |dw|.

    With the last of them, a weight with R > `threshold` becomes Q(w): the update is
    changed so that weight plus update is that value (to the bit where the weight does
    not leave the interval from Q/2 to 2 Q in this step, to float32's rounding else).
    A weight that moves evenly through many bins has R near 1; one that does not move is
    left alone.

    It reads the parameters and the final updates, so it stands last in a chain, and
    `optax.masked` says which weights it is for:

        optax.chain(optax.adamw(1e-3), optax.masked(oscillation_reset(...), mask))

    The defaults are those of the source's 70M-parameter configuration, where `start` is
    8000 of 12505 steps; its code sets the weights one step later than this does.

    Source: TetraJet-v2, Chen et al. 2025, arXiv:2510.27527.

    Args:
        fmt: The format that the model rounds these weights to.
        recipe: How the model scales them; `adaprec_jax.scaling.current()` by default,
            with one scale per tensor. One that rounds stochastically has no bin centres
            and is refused when it is traced.
        start: Call at which the first window begins; 0 is the first.
        every: Calls from the beginning of one window to that of the next.
        window: Updates that are watched; at most `every`.
        threshold: R above which a weight is set.

    Raises:
        ValueError: An argument is out of its range, or `update` is given no params.

    >>> from adaprec_jax import formats, scaling
    >>> tx = oscillation_reset(
    ...     formats.get("int8"), scaling.none(), start=0, every=4, window=4
    ... )
    >>> w = jnp.array([0.46875, 2.0])
    >>> state = tx.init(w)
    >>> for swing in (1.0, -1.0, 1.0, -1.0):
    ...     updates, state = tx.update(jnp.array([swing, 2.0]) / 16, state, w)
    ...     w = optax.apply_updates(w, updates)
    >>> print(w, state.resets)
    [0.  2.5] 1
    """
    recipe = scaling.current() if recipe is None else recipe
    check_format("oscillation_reset", fmt)
    for name, value, lowest in (
        ("start", start, 0),
        ("every", every, 1),
        ("window", window, 1),
        ("threshold", threshold, 0),
    ):
        check_from("oscillation_reset", name, value, lowest)
    _check_window(window, every)

    def init(params: PyTree) -> OscillationResetState:
        return OscillationResetState(
            calls=jnp.zeros((), jnp.int32),
            quantized_way=jax.tree.map(_zeros, params),
            way=jax.tree.map(_zeros, params),
            resets=jnp.zeros((), jnp.int32),
            fmt=as_arrays(fmt),
            recipes=init_recipes(recipe, params),
        )

    def update(
        updates: PyTree,
        state: OscillationResetState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, OscillationResetState]:
        del extra_args
        if params is None:
            raise ValueError("oscillation_reset needs params in update.")
        phase = (state.calls - start) % every
        watches = (state.calls >= start) & (phase < window)

        def watch() -> tuple[PyTree, OscillationResetState]:
            return _watch(
                recipe, updates, state, params,
                first=phase == 0, last=phase == window - 1, threshold=threshold,
            )  # fmt: skip

        changed, state = lax.cond(watches, watch, lambda: (updates, state))
        return changed, state._replace(calls=state.calls + 1)

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )


class _Watched(NamedTuple):
    update: Array
    quantized_way: Float32[Array, "..."]
    way: Float32[Array, "..."]
    resets: Int32[Array, ""]
    recipe: Any


def _watch(
    recipe: Recipe,
    updates: PyTree,
    state: OscillationResetState,
    params: PyTree,
    *,
    first: Bool[Array, ""],
    last: Bool[Array, ""],
    threshold: Number,
) -> tuple[PyTree, OscillationResetState]:
    """Returns the updates, with the resets in the last of a window, and the sums."""

    def one(
        param: Array, update: Array, quantized_way: Array, way: Array, recipe_state: Any
    ) -> _Watched:
        old = param.astype(jnp.float32)
        with jax.numpy_dtype_promotion("standard"):  # as optax.apply_updates adds
            new = (param + update).astype(param.dtype).astype(jnp.float32)
        before, _ = round_tensor(old, state.fmt, recipe, recipe_state)
        after, recipe_state = round_tensor(new, state.fmt, recipe, recipe_state)
        quantized_step, step = jnp.abs(after - before), jnp.abs(new - old)
        known = jnp.isfinite(quantized_step) & jnp.isfinite(step)
        quantized_way = jnp.where(first, 0.0, quantized_way) + jnp.where(
            known, quantized_step, 0.0
        )
        way = jnp.where(first, 0.0, way) + jnp.where(known, step, 0.0)
        resets = last & (quantized_way > threshold * way) & known
        centred = (after - old).astype(update.dtype)
        return _Watched(
            jnp.where(resets, centred, update),
            quantized_way,
            way,
            jnp.sum(resets, dtype=jnp.int32),
            recipe_state,
        )

    leaves, structure = jax.tree.flatten(params)
    others = (updates, state.quantized_way, state.way, state.recipes)
    columns = [structure.flatten_up_to(tree) for tree in others]
    watched = [one(*row) for row in zip(leaves, *columns, strict=True)]

    def tree(field: str) -> PyTree:
        return structure.unflatten([getattr(each, field) for each in watched])

    count = jnp.sum(jnp.array([each.resets for each in watched], jnp.int32))
    return tree("update"), state._replace(
        quantized_way=tree("quantized_way"),
        way=tree("way"),
        resets=jnp.where(last, count, state.resets),
        recipes=tree("recipe"),
    )


def _check_window(window: Whole, every: Whole) -> None:
    if isinstance(window, jax.Array) or isinstance(every, jax.Array):
        return  # perhaps traced
    if window > every:
        raise ValueError(
            f"oscillation_reset needs window ({window}) of at most every ({every})."
        )


def _zeros(param: Array) -> Float32[Array, "..."]:
    return jnp.zeros(param.shape, jnp.float32)
