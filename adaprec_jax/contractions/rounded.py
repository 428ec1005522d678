"""A tensor rounded by its scaling recipe, members of a vmapped layer one by one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adaprec_jax.contractions.kernels import Blocked
from adaprec_jax.formats import Format
from adaprec_jax.scaling import Recipe, Use


class Rounded(NamedTuple):
    """A tensor brought into a format's range and rounded: x ~= values * scale.

    Attributes:
        values: The tensor; in its own units if scales differ within it.
        scale: One for each member; 1 if they differ within it.
        unit: The scales if they differ within the tensor, broadcast against it.
        blocked: The same numbers as a device multiplies them; None if not asked for.
    """

    values: Float[Array, "..."]
    scale: Float[Array, "*members"]
    unit: Float[Array, "..."] | None = None
    blocked: Blocked | None = None


def round_tensor(  # noqa: PLR0913 (what one rounding depends on)
    recipe: Recipe,
    x: Float[Array, "..."],
    fmt: Format,
    state: Any,
    key: Array | None,
    members: tuple[int, ...],
    axis_names: tuple[str, ...],
    use: Use | None = None,
    *,
    in_blocks: bool = False,
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
        in_blocks: Whether it is asked for as `Blocked`, of a recipe with `in_blocks`.
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
            blocked = None
            if in_blocks:
                if recipe.in_blocks is None:
                    raise ValueError("The scales of this recipe are not of blocks.")
                axes = tuple(range(x.ndim))
                parts = recipe.in_blocks.round(x, fmt, axes=axes, key=key, **settings)
                blocked = Blocked(*parts)
            return Rounded(values * unit, jnp.ones((), jnp.float32), unit, blocked)
        return Rounded(values, scale.reshape(()))

    # Member axes are mapped innermost first; the outer ones keep their positions.
    for depth, position in reversed(list(enumerate(members))):
        axis = position - _below(members[:depth], position)
        unit = axis if recipe.per_product else None
        places = (axis, 0, unit, Blocked(axis, axis, 0) if in_blocks else None)  # pyright: ignore[reportArgumentType]  (axes)
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
