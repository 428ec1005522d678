"""Schedules made of schedules: in time, by path, within bounds, later, less often."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, PyTree

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import QUANTITIES, Stats, Watch
from adaprec_jax.contractions.table import Table
from adaprec_jax.contractions.weights import Weights
from adaprec_jax.formats import WIDEST_INTEGER, Format
from adaprec_jax.plan import assign
from adaprec_jax.precision import Entry, Plan
from adaprec_jax.schedules.schedule import (
    Schedule,
    Scope,
    Signals,
    observed,
    reads_of,
    select,
)
from adaprec_jax.stats import empty


class JoinState(NamedTuple):
    """State of `join`: those of its parts, and where each but the first begins."""

    parts: tuple[PyTree, ...]
    boundaries: Int32[Array, "boundaries"]


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Follows `schedules[0]` at first and `schedules[k + 1]` from `boundaries[k]` on.

    Each schedule counts steps from its own beginning, and learns from statistics only
    while it is followed.

    Args:
        schedules: Schedules whose plans have entries of one type.
        boundaries: Steps at which the next one takes over, rising, one fewer.

    Raises:
        ValueError: The boundaries do not rise from 1 on or are not one fewer; (in
            `update`) the plans have entries of both types.

    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.schedules import constant, cpt
    >>> cycles = cpt(min_bits=3, max_bits=8, cycles=4, steps=900, gradient_bits=8)
    >>> schedule = join([constant(integers(8, 8)), cycles], boundaries=[100])
    """
    starts = [0, *boundaries]
    if len(starts) != len(schedules) or any(np.diff(starts) <= 0):
        raise ValueError(
            f"Expected {len(schedules) - 1} boundaries that rise from 1 on for "
            f"{len(schedules)} schedules, got {list(boundaries)}."
        )

    def init(table: Table) -> JoinState:
        return JoinState(
            parts=tuple(schedule.init(table) for schedule in schedules),
            boundaries=jnp.asarray(boundaries, jnp.int32),
        )

    def update(
        step: Int32[Array, ""], stats: Stats, state: JoinState
    ) -> tuple[Plan, JoinState]:
        active = jnp.sum(step >= state.boundaries, dtype=jnp.int32)
        plans, parts = [], []
        for k, (schedule, before) in enumerate(
            zip(schedules, state.parts, strict=True)
        ):
            start = state.boundaries[k - 1] if k else 0
            plan, after = schedule.update(jnp.maximum(step - start, 0), stats, before)
            plans.append(plan)
            parts.append(select(active == k, after, before))
        plan = {path: _choose(active, [p[path] for p in plans]) for path in plans[0]}
        return plan, state._replace(parts=tuple(parts))

    def observe(
        step: Int32[Array, ""], weights: Weights, state: JoinState
    ) -> JoinState:
        active = jnp.sum(step >= state.boundaries, dtype=jnp.int32)
        parts = []
        for k, (schedule, before) in enumerate(
            zip(schedules, state.parts, strict=True)
        ):
            start = state.boundaries[k - 1] if k else 0
            after = observed(schedule, jnp.maximum(step - start, 0), weights, before)
            parts.append(select(active == k, after, before))
        return state._replace(parts=tuple(parts))

    joined = _together(schedules, init, update, observe, lambda state: state.parts)
    # The parts count from their own beginning.
    return joined._replace(every=math.gcd(joined.every, *boundaries))


class PerLayerState(NamedTuple):
    """State of `per_layer`.

    Attributes:
        parts: States of the schedules, the default's last.
        scopes: The contractions of each.
        owner: For each path, which of them decides, over the plan axes.
    """

    parts: tuple[PyTree, ...]
    scopes: tuple[Scope, ...]
    owner: dict[str, Int32[Array, "..."]]


def per_layer(rules: Mapping[str, Schedule], default: Schedule) -> Schedule:
    """Follows for each contraction the first rule whose pattern matches its path.

    `adaprec_jax.plan.match` says what patterns there are: globs of paths, "first" and
    "last", and layers of a scanned stack after an `@`.

    Args:
        rules: Pattern -> schedule, the first match wins.
        default: Schedule of the contractions (and layers) that no rule matches.

    Raises:
        ValueError: (in `init`) A rule matches nothing that the rules before it left;
            (in `update`) the layers of one contraction have entries of both types.

    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.schedules import constant
    >>> int4, int8 = constant(integers(4, 8)), constant(integers(8, 8))
    >>> schedule = per_layer({"first": int8, "Block/**@-1": int8}, default=int4)
    """
    schedules = (*rules.values(), default)

    def init(table: Table) -> PerLayerState:
        owner = assign(tuple(rules), table)
        tables = [
            table._replace(
                contractions=tuple(
                    c for c in table.contractions if np.any(owner[c.name] == k)
                )
            )
            for k in range(len(schedules))
        ]
        return PerLayerState(
            parts=tuple(s.init(t) for s, t in zip(schedules, tables, strict=True)),
            scopes=tuple(map(Scope, tables)),
            owner=jax.tree.map(jnp.asarray, owner),
        )

    def update(
        step: Int32[Array, ""], stats: Stats, state: PerLayerState
    ) -> tuple[Plan, PerLayerState]:
        decided = [
            schedule.update(step, stats, part)
            for schedule, part in zip(schedules, state.parts, strict=True)
        ]
        plan = {
            path: _choose(owner, [plan.get(path) for plan, _ in decided])
            for path, owner in state.owner.items()
        }
        return plan, state._replace(parts=tuple(part for _, part in decided))

    def observe(
        step: Int32[Array, ""], weights: Weights, state: PerLayerState
    ) -> PerLayerState:
        parts = []
        for schedule, part, scope in zip(
            schedules, state.parts, state.scopes, strict=True
        ):
            own = {n: weights[n] for n in scope.table.names if n in weights}
            parts.append(observed(schedule, step, own, part))
        return state._replace(parts=tuple(parts))

    return _together(schedules, init, update, observe, lambda state: state.parts)


class ClipState(NamedTuple):
    """State of `clip`: that of the schedule, and the bounds."""

    inner: PyTree
    min_bits: Int32[Array, ""]
    max_bits: Int32[Array, ""]


def clip(schedule: Schedule, *, min_bits: int, max_bits: int) -> Schedule:
    """Keeps the widths of the integers in a schedule's plans within bounds.

    Formats other than integers stay as they are.

    Args:
        schedule: The schedule to follow.
        min_bits: Fewest bits of an integer.
        max_bits: Most bits of an integer.

    Raises:
        ValueError: Not 1 <= min_bits <= max_bits <= 24.

    >>> from adaprec_jax.schedules import cpt
    >>> cycles = cpt(min_bits=3, max_bits=8, cycles=4, steps=900, gradient_bits=8)
    >>> schedule = clip(cycles, min_bits=4, max_bits=6)
    """
    if not 1 <= min_bits <= max_bits <= WIDEST_INTEGER:
        raise ValueError(
            f"Expected 1 <= min_bits <= max_bits <= {WIDEST_INTEGER}, got {min_bits=}, "
            f"{max_bits=}."
        )

    def init(table: Table) -> ClipState:
        return ClipState(schedule.init(table), jnp.int32(min_bits), jnp.int32(max_bits))

    def update(
        step: Int32[Array, ""], stats: Stats, state: ClipState
    ) -> tuple[Plan, ClipState]:
        plan, inner = schedule.update(step, stats, state.inner)
        clipped = jax.tree.map(
            lambda fmt: _clip_format(fmt, state.min_bits, state.max_bits),
            plan,
            is_leaf=lambda node: isinstance(node, Format),
        )
        return clipped, state._replace(inner=inner)

    return around(schedule, init, update)


class DelayState(NamedTuple):
    """State of `delay`: that of the schedule, and the plans to come, the next first."""

    inner: PyTree
    coming: Plan


def delay(schedule: Schedule, steps: int) -> Schedule:
    """Lets each plan take effect `steps` calls after it was decided.

    Until then, the plan that the schedule makes without any statistics is in force.

    Args:
        schedule: The schedule to follow.
        steps: At least 1.

    Raises:
        ValueError: `steps` is below 1.

    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.schedules import piecewise
    >>> schedule = delay(piecewise([5], [integers(4, 8), integers(8, 8)]), steps=2)
    """
    if steps < 1:
        raise ValueError(f"Expected a delay of at least 1 step, got {steps}.")

    def init(table: Table) -> DelayState:
        inner = schedule.init(table)
        first = first_plan(schedule, table, inner)
        repeated = jax.tree.map(lambda leaf: jnp.stack([leaf] * steps), first)
        return DelayState(inner, repeated)

    def update(
        step: Int32[Array, ""], stats: Stats, state: DelayState
    ) -> tuple[Plan, DelayState]:
        decided, inner = schedule.update(step, stats, state.inner)
        queue = jax.tree.map(
            lambda coming, last: jnp.concatenate([coming, last[None]]),
            state.coming,
            decided,
        )
        plan = jax.tree.map(lambda leaf: leaf[0], queue)
        return plan, DelayState(inner, jax.tree.map(lambda leaf: leaf[1:], queue))

    return around(schedule, init, update)


class HoldState(NamedTuple):
    """State of `hold`: that of the schedule, the plan in force, calls per plan."""

    inner: PyTree
    plan: Plan
    every: Int32[Array, ""]


def hold(schedule: Schedule, every: int) -> Schedule:
    """Takes over a schedule's plan at every `every`-th step and keeps it in between.

    The schedule sees the statistics of every step.

    Args:
        schedule: The schedule to follow.
        every: At least 1; plans change at steps 0, every, 2 * every, ...

    Raises:
        ValueError: `every` is below 1.

    >>> from adaprec_jax.schedules import cpt
    >>> cycles = cpt(min_bits=3, max_bits=8, cycles=4, steps=900, gradient_bits=8)
    >>> schedule = hold(cycles, every=10)
    """
    if every < 1:
        raise ValueError(f"Expected plans held for at least 1 step, got {every}.")

    def init(table: Table) -> HoldState:
        inner = schedule.init(table)
        return HoldState(inner, first_plan(schedule, table, inner), jnp.int32(every))

    def update(
        step: Int32[Array, ""], stats: Stats, state: HoldState
    ) -> tuple[Plan, HoldState]:
        decided, inner = schedule.update(step, stats, state.inner)
        plan = select(step % state.every == 0, decided, state.plan)
        return plan, state._replace(inner=inner, plan=plan)

    return around(schedule, init, update)


def around(
    schedule: Schedule, init: Callable[..., Any], update: Callable[..., Any]
) -> Schedule:
    """Returns a schedule that looks at what the one inside of it looks at.

    For combinators of one's own: statistics, weights and signals are those of the
    schedule inside.

    Args:
        schedule: The one inside.
        init: As of a schedule; its state is a NamedTuple with the field `inner`, the
            state of the schedule inside.
        update: As of a schedule; it calls the schedule inside once.

    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.schedules import constant
    >>> class State(NamedTuple):
    ...     inner: PyTree
    >>> inside = constant(integers(4, 8))
    >>> def update(step, stats, state):
    ...     plan, inner = inside.update(step, stats, state.inner)
    ...     return plan, State(inner)
    >>> same = around(inside, lambda table: State(inside.init(table)), update)
    """

    def observe(step: Int32[Array, ""], weights: Weights, state: Any) -> Any:
        return state._replace(inner=observed(schedule, step, weights, state.inner))

    return _together([schedule], init, update, observe, lambda state: (state.inner,))


def _together(
    schedules: Sequence[Schedule],
    init: Callable[..., Any],
    update: Callable[..., Any],
    observe: Callable[..., Any],
    parts: Callable[[Any], Sequence[PyTree]],
) -> Schedule:
    """Returns a schedule that looks at all that its parts look at."""
    reads, every = reads_of(schedules)
    looks = any(schedule.observe for schedule in schedules)

    def signals(state: PyTree) -> Signals:
        found: dict[str, dict[str, Array]] = {}
        for schedule, part in zip(schedules, parts(state), strict=True):
            for name, by_path in schedule.signals(part).items():
                found[name] = found.get(name, {}) | dict(by_path)
        return found

    return Schedule(init, update, reads, every, observe if looks else None, signals)


def first_plan(schedule: Schedule, table: Table, state: PyTree) -> Plan:
    """Returns the plan of step 0 without any statistics, as strongly typed arrays."""
    everything = Watch(tuple(QUANTITIES), what_if=schedule.reads.what_if)
    plan, _ = schedule.update(jnp.int32(0), empty(table, everything), state)
    return jax.tree.map(jnp.asarray, plan)


def _choose(owner: Int32[Array, "*axes"], entries: Sequence[Entry | None]) -> Entry:
    """Returns for each layer the entry of its owner; None owns nothing."""
    owned = [(k, entry) for k, entry in enumerate(entries) if entry is not None]
    (_, chosen), *others = owned
    for k, entry in others:
        if type(entry) is not type(chosen):
            raise ValueError(
                "Schedules that take turns over one contraction must have entries of "
                f"one type, got {type(chosen).__name__} and {type(entry).__name__}; "
                "precision.separate writes a shared entry out."
            )
        chosen = select(owner == k, entry, chosen)
    return chosen


def _clip_format(
    fmt: Format, min_bits: Int32[Array, ""], max_bits: Int32[Array, ""]
) -> Format:
    def integer(bits: Int32[Array, "*shape"]) -> Format:
        signed, unsigned = (formats.integer(bits, signed=s) for s in (True, False))
        return select(fmt.min_value < 0, signed, unsigned)

    fmt = jax.tree.map(jnp.asarray, fmt)
    width = formats.bits(fmt)
    # An integer format is the one that equals the integer format of its width.
    same = jax.tree.map(jnp.equal, fmt, integer(jnp.clip(width, 1, WIDEST_INTEGER)))
    is_integer = jnp.stack(same).all(axis=0)
    return select(is_integer, integer(jnp.clip(width, min_bits, max_bits)), fmt)
