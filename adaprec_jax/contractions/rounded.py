"""A tensor rounded by its scaling recipe, members of a vmapped layer one by one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adaprec_jax.formats import Format
from adaprec_jax.scaling import Recipe, Use


class Rounded(NamedTuple):
    """A tensor brought into a format's range and rounded: x ~= values * scale.

    Attributes:
        values: The tensor; in its own units if scales differ within it.
        scale: One for each member; 1 if they differ within it.
        unit: The scales if they differ within the tensor, broadcast against it.
    """

    values: Float[Array, "..."]
    scale: Float[Array, "*members"]
    unit: Float[Array, "..."] | None = None


def round_tensor(
    recipe: Recipe,
    x: Float[Array, "..."],
    fmt: Format,
    state: Any,
    key: Array | None,
    members: tuple[int, ...],
    axis_names: tuple[str, ...],
    use: Use | None = None,
) -> Rounded:
    """Returns `x` rounded by its recipe, each member with format and scale of its own.

    Args:
        recipe: How the tensor is scaled and rounded.
        x: The tensor, float32.
        fmt: Its format; leaves broadcast to the sizes of the member axes.
        state: State of the recipe, leading axes as the member axes.
        key: For stochastic rounding, or None.
        members: Positions of the member axes in `x`, in the order of the plan's axes.
        axis_names: Mesh axes over which the tensor is spread under `shard_map`.
        use: The product that it is rounded for; needed if the recipe is `per_product`.
    """
    settings: dict[str, Any] = {"axis_names": axis_names}
    if recipe.per_product:
        if use is None:
            raise ValueError("A recipe that rounds for each product must know which.")
        own = [
            tuple(a - _below(members, a) for a in axes if a not in members)
            for axes in (use.summed, use.sliced)
        ]
        settings["use"] = Use(use.product, *own)
    # Jitted, so that tensors of one shape are traced and lowered once.
    round_jitted = jax.jit(recipe.round, static_argnames=("axes", *settings))

    def one(x: Array, fmt: Format, state: Any, key: Array | None) -> Rounded:
        values, scale = round_jitted(
            x, fmt, state, axes=tuple(range(x.ndim)), key=key, **settings
        )
        if recipe.per_product:
            unit = jnp.broadcast_to(scale, x.shape)
            return Rounded(values * unit, jnp.ones((), jnp.float32), unit)
        return Rounded(values, scale.reshape(()))

    # Member axes are mapped innermost first; the outer ones keep their positions.
    for depth, position in reversed(list(enumerate(members))):
        axis = position - _below(members[:depth], position)
        places = (axis, 0, axis if recipe.per_product else None)
        one = jax.vmap(
            one,
            in_axes=(axis, 0, 0, 0),
            out_axes=Rounded(*places),  # pyright: ignore[reportArgumentType]  (axes)
        )
    sizes = tuple(x.shape[position] for position in members)
    fmt = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, sizes), fmt)
    if key is not None and sizes:
        key = jax.random.split(key, sizes)
    return one(x, fmt, state, key)


def _below(positions: tuple[int, ...], axis: int) -> int:
    """Returns how many of the positions lie before an axis."""
    return sum(position < axis for position in positions)


def spread(leaf: Array, positions: tuple[int, ...], rank: int) -> Array:
    """Returns a per-member array with its axes at `positions` among `rank` axes.

    >>> spread(jnp.ones(3), (1,), 3).shape
    (1, 3, 1)
    """
    if not positions:
        return leaf
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    leaf = jnp.transpose(leaf, order)
    shape = [1] * rank
    for axis, i in enumerate(order):
        shape[positions[i]] = leaf.shape[axis]
    return leaf.reshape(shape)


def ordered(leaf: Array, members: tuple[int, ...]) -> Array:
    """Returns `leaf` with its axes in the order of the plan instead of the tensor's."""
    rank = sorted(members)
    return jnp.transpose(leaf, [rank.index(position) for position in members])
