"""A schedule with other formats in some layers for some steps: what a fork trains."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PyTree

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.formats import Format
from adaprec_jax.plan import match
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Plan,
    Precision,
    SharedPrecision,
    Wgrad,
)
from adaprec_jax.scaling.recipe import check_role
from adaprec_jax.schedules.combinators import around
from adaprec_jax.schedules.schedule import Schedule, Scope, select


class ChangedState(NamedTuple):
    """State of `changed`; all but that of the schedule inside never changes.

    Attributes:
        inner: Of the schedule inside.
        scope: The contractions.
        layers: Which of them have other formats, over the plan axes.
        start: The first step that does.
        end: The first step after those.
        formats: By role, the other format.
        has: By role, whether there is one.
    """

    inner: PyTree
    scope: Scope
    layers: dict[str, Bool[Array, "..."]]
    start: Int32[Array, ""]
    end: Int32[Array, ""]
    formats: dict[str, Format]
    has: dict[str, Bool[Array, ""]]


def changed(
    schedule: Schedule,
    pattern: str,
    entry: Mapping[str, Format],
    *,
    start: int,
    end: int,
) -> Schedule:
    """Follows a schedule, but for some layers and steps, which have other formats.

    Outside of them the plan is that of the schedule to the bit, so that whatever comes
    of it is due to the change. All of it is data: runs that differ in it train
    together.

    Args:
        schedule: The one to follow; it decides at every step, whether or not it is
            followed.
        pattern: The contractions and layers, as `adaprec_jax.plan.match` reads it.
        entry: The other format of tensors of a role, "activation", "weight" or
            "gradient"; other roles keep that of the schedule.
        start: The first step with other formats, counted from 0.
        end: The first step after them; the same step is no change at all.

    Raises:
        ValueError: A role is unknown, or not 0 <= start <= end; (in `init`) the pattern
            matches nothing.

    >>> from adaprec_jax.plan import describe, integers
    >>> from adaprec_jax.schedules import constant
    >>> from adaprec_jax.stats import empty
    >>> from adaprec_jax.testing import table
    >>> low = {"weight": formats.integer(4)}
    >>> schedule = changed(constant(integers(8, 8)), "first", low, start=5, end=9)
    >>> nothing, state = empty(table()), schedule.init(table())
    >>> plan, _ = schedule.update(jnp.int32(5), nothing, state)
    >>> print(describe({"Dense_0": plan["Dense_0"]}))
    Dense_0: activation int8, weight int4, gradient int8
    """
    for role in entry:
        check_role(role)
    if not 0 <= start <= end:
        raise ValueError(f"Expected 0 <= start <= end, got {start=}, {end=}.")

    def init(table: Table) -> ChangedState:
        masks = match(pattern, table)
        return ChangedState(
            inner=schedule.init(table),
            scope=Scope(table),
            layers={
                c.name: jnp.broadcast_to(jnp.asarray(masks.get(c.name, False)), c.axes)
                for c in table.contractions
            },
            start=jnp.int32(start),
            end=jnp.int32(end),
            formats={
                role: jax.tree.map(jnp.asarray, entry.get(role, _UNUSED))
                for role in SharedPrecision._fields
            },
            has={role: jnp.bool_(role in entry) for role in SharedPrecision._fields},
        )

    def update(
        step: Int32[Array, ""], stats: Stats, state: ChangedState
    ) -> tuple[Plan, ChangedState]:
        plan, inner = schedule.update(step, stats, state.inner)
        now = (step >= state.start) & (step < state.end)
        other = {
            c.name: _changed(plan[c.name], c, now & state.layers[c.name], state)
            for c in state.scope.table.contractions
        }
        return other, state._replace(inner=inner)

    return around(schedule, init, update)


_UNUSED = formats.get("float32")


def _changed(
    entry: Entry, c: Contraction, here: Bool[Array, "*axes"], state: ChangedState
) -> Entry:
    """Returns an entry with the other formats where `here`."""

    def other(role: str, fmt: Format) -> Format:
        return select(here & state.has[role], state.formats[role], fmt)

    # What stands in a slot may have another role, as both operands of attention.
    left, right = c.roles
    if isinstance(entry, SharedPrecision):
        return SharedPrecision(
            other(left, entry.activation),
            other(right, entry.weight),
            other("gradient", entry.gradient),
        )
    forward, dgrad, wgrad = entry
    return Precision(
        Forward(other(left, forward.activation), other(right, forward.weight)),
        Dgrad(other("gradient", dgrad.gradient), other(right, dgrad.weight)),
        Wgrad(other("gradient", wgrad.gradient), other(left, wgrad.activation)),
    )
