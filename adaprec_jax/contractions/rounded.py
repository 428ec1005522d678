"""A tensor rounded by its scaling recipe, members of a vmapped layer one by one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adaprec_jax.formats import Format
from adaprec_jax.scaling import Recipe


class Rounded(NamedTuple):
    """A tensor brought into a format's range and rounded: x ~= values * scale."""

    values: Float[Array, "..."]
    scale: Float[Array, "*members"]


def round_tensor(
    recipe: Recipe,
    x: Float[Array, "..."],
    fmt: Format,
    state: Any,
    key: Array | None,
    members: tuple[int, ...],
    axis_names: tuple[str, ...],
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
    """
    # Jitted, so that tensors of one shape are traced and lowered once.
    round_jitted = jax.jit(recipe.round, static_argnames=("axes", "axis_names"))

    def one(
        x: Array, fmt: Format, state: Any, key: Array | None
    ) -> tuple[Array, Array]:
        values, scale = round_jitted(
            x, fmt, state, axes=tuple(range(x.ndim)), key=key, axis_names=axis_names
        )
        return values, scale.reshape(())

    # Member axes are mapped innermost first; the outer ones keep their positions.
    for depth, position in reversed(list(enumerate(members))):
        one = jax.vmap(
            one,
            in_axes=(position - _before(members, depth), 0, 0, 0),
            out_axes=(position - _before(members, depth), 0),
        )
    sizes = tuple(x.shape[position] for position in members)
    fmt = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, sizes), fmt)
    if key is not None and sizes:
        key = jax.random.split(key, sizes)
    return Rounded(*one(x, fmt, state, key))


def _before(members: tuple[int, ...], depth: int) -> int:
    """Returns how many outer member axes lie before the one at `depth`."""
    return sum(position < members[depth] for position in members[:depth])


def spread(leaf: Array, positions: tuple[int, ...], rank: int) -> Float[Array, "..."]:
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
