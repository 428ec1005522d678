"""Decisions that take effect at dispatch boundaries, some dispatches later."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table
from adaprec_jax.precision import Plan
from adaprec_jax.schedules.combinators import around, first_plan
from adaprec_jax.schedules.schedule import Schedule, select


class LateState(NamedTuple):
    """State of `late`.

    Attributes:
        inner: That of the schedule.
        plan: In force in this dispatch.
        coming: The plans of the next dispatches along a leading axis, the next first.
        every: Steps of a dispatch.
    """

    inner: PyTree
    plan: Plan
    coming: Plan
    every: Int32[Array, ""]


def late(schedule: Schedule, every: int, dispatches: int) -> Schedule:
    """Lets a plan take effect some dispatches after the one in which it was decided.

    All steps of a dispatch then have one plan, which is known while the dispatches
    before it run: time to compile for it. What the schedule says in the last step of
    dispatch n holds in dispatch n + 1 + `dispatches`. Until then, the plan that it
    makes without any statistics is in force.

    Args:
        schedule: The schedule to follow; it sees the statistics of every step.
        every: Steps of a dispatch, at least 1.
        dispatches: At least 0, which is the next dispatch.

    Raises:
        ValueError: `every` or `dispatches` is too small.

    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.schedules import piecewise
    >>> schedule = piecewise([5], [integers(4, 8), integers(8, 8)])
    >>> schedule = late(schedule, every=10, dispatches=1)  # 8 bits from step 20 on
    """
    if every < 1 or dispatches < 0:
        raise ValueError(
            "Expected dispatches of at least 1 step, and plans at least 0 of them "
            f"late, got {every=}, {dispatches=}."
        )

    def init(table: Table) -> LateState:
        inner = schedule.init(table)
        first = first_plan(schedule, table, inner)
        repeated = jax.tree.map(
            lambda leaf: jnp.stack([leaf] * (dispatches + 1)), first
        )
        return LateState(inner, first, repeated, jnp.int32(every))

    def update(
        step: Int32[Array, ""], stats: Stats, state: LateState
    ) -> tuple[Plan, LateState]:
        decided, inner = schedule.update(step, stats, state.inner)
        begins = step % state.every == 0
        ends = (step + 1) % state.every == 0
        plan = select(
            begins, jax.tree.map(lambda leaf: leaf[0], state.coming), state.plan
        )
        moved = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf[1:], leaf[-1:]]), state.coming
        )
        coming = select(begins, moved, state.coming)
        added = jax.tree.map(lambda leaf, new: leaf.at[-1].set(new), coming, decided)
        return plan, LateState(inner, plan, select(ends, added, coming), state.every)

    return around(schedule, init, update)
