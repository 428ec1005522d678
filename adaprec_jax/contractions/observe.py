"""What is seen of the tensors of a contraction, for schedules and scaling recipes."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from adaprec_jax.contractions import scopes
from adaprec_jax.contractions.jax_internals import (
    only_first,
    vary_over,
    varying_axes,
)
from adaprec_jax.contractions.rounded import Rounded, ordered, round_tensor, spread
from adaprec_jax.contractions.statistics import TensorStats, measure, nothing, pack
from adaprec_jax.formats import Format
from adaprec_jax.scaling import current, largest_magnitude

# One recipe for all tensors: rounding is traced anew for each recipe.
_CURRENT = current()


class Probe(NamedTuple):
    """Zeros whose gradient carries what was seen of the cotangent.

    Attributes:
        stats: `(*members, formats, fields)`: the packed statistics for the format in
            force, then for each format of `what_if`; None if not watched.
        amax: `(*members,)`: for the update of a scaling recipe; None if it has none.
    """

    stats: Float[Array, "*members formats fields"] | None
    amax: Float[Array, "*members"] | None


class Observed(NamedTuple):
    """What was seen of one tensor in one contraction; fields as in `Probe`."""

    stats: Float[Array, "*members formats fields"] | None
    amax: Float[Array, "*members"] | None


class Watching(NamedTuple):
    """Static choice of statistics for one contraction.

    Attributes:
        fields: Fields of `TensorStats` for every watched role.
        roles: The roles whose statistics are gathered.
        amax_roles: The roles whose amax a scaling recipe needs at every step.
        axis_names: Mesh axes over which one tensor is spread under `shard_map`.
        copies: By role those of them along which every device is known to hold the
            same tensor, which counts once.
    """

    fields: tuple[str, ...]
    roles: tuple[str, ...]
    amax_roles: tuple[str, ...]
    axis_names: tuple[str, ...] = ()
    copies: Mapping[str, tuple[str, ...]] = {}


class Asked(NamedTuple):
    """What is asked for this time; traced.

    Attributes:
        collect: Whether statistics are gathered; None is always.
        what_if: Formats that are not in force but asked about, by name.
    """

    collect: Bool[Array, ""] | None
    what_if: dict[str, Format]


def observe(
    role: str,
    x: Float[Array, "..."],
    rounded: Rounded,
    fmt: Format,
    members: tuple[int, ...],
    asked: Asked,
    watching: Watching,
) -> Observed:
    """Returns the statistics and the amax that are asked for of one tensor.

    Args:
        role: "activation", "weight" or "gradient".
        x: The tensor before rounding, float32.
        rounded: The tensor after it.
        fmt: The format it was rounded to.
        members: Positions of the member axes in `x`.
        asked: What is asked for this time.
        watching: What is asked for at all.
    """
    with scopes.part("statistics"):
        return _observed(role, x, rounded, fmt, members, asked, watching)


def _observed(
    role: str,
    x: Float[Array, "..."],
    rounded: Rounded,
    fmt: Format,
    members: tuple[int, ...],
    asked: Asked,
    watching: Watching,
) -> Observed:
    axes = tuple(axis for axis in range(x.ndim) if axis not in members)
    sizes = tuple(x.shape[position] for position in members)
    amax = None
    if role in watching.amax_roles:
        amax = largest_magnitude(x, axes, watching.axis_names).squeeze(axes)
        amax = ordered(amax, members)
    if role not in watching.roles or not watching.fields:
        return Observed(None, amax)

    def gather() -> Array:
        parts = [(rounded, fmt), *((None, f) for f in asked.what_if.values())]
        return jnp.stack(
            [
                pack(_measured(x, part, f, members, watching), watching.fields)
                for part, f in parts
            ],
            axis=-2,
        )

    def leave() -> Array:
        empty = pack(nothing(sizes, watching.fields), watching.fields)
        stacked = jnp.stack([empty] * (1 + len(asked.what_if)), axis=-2)
        return vary_over(stacked, varying_axes(x))

    always = asked.collect is None
    stats = gather() if always else lax.cond(asked.collect, gather, leave)
    return Observed(only_first(stats, watching.copies.get(role, ())), amax)


def _measured(
    x: Float[Array, "..."],
    rounded: Rounded | None,
    fmt: Format,
    members: tuple[int, ...],
    watching: Watching,
) -> TensorStats:
    """Returns the statistics of rounding to `fmt`, currently scaled if not yet done."""
    if rounded is None:
        rounded = round_tensor(_CURRENT, x, fmt, (), None, members, watching.axis_names)
    values, scale, unit, _ = rounded
    if unit is None:
        unit, bounds = scale, fmt
    else:
        sizes = tuple(x.shape[position] for position in members)
        bounds = jax.tree.map(
            lambda leaf: spread(jnp.broadcast_to(leaf, sizes), members, x.ndim), fmt
        )
    lowest, highest = (bound * unit for bound in (bounds.min_value, bounds.max_value))
    return measure(x, values, scale, lowest, highest, watching.fields, members)
