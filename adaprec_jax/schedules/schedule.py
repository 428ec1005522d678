"""What a schedule is: two pure functions, as an optax transformation is.

One that learns from the weights, and not only from statistics, has a third.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, PyTree

from adaprec_jax.contractions.statistics import ROLES, Stats, Watch
from adaprec_jax.contractions.table import Table
from adaprec_jax.contractions.weights import Weights
from adaprec_jax.formats import Format, describe
from adaprec_jax.precision import Plan

Tree = TypeVar("Tree", bound=PyTree)


Signals: TypeAlias = Mapping[str, Mapping[str, Float32[Array, "*axes"]]]
"""Numbers of a schedule by name and path, over the plan axes."""

NOTHING = Watch(roles=())


def no_signals(state: PyTree) -> Signals:
    """Returns that a schedule has no numbers of its own to log.

    >>> no_signals(())
    {}
    """
    del state
    return {}


class Schedule(NamedTuple):
    """Decides which formats each step uses.

    `update` is called once before every step, skipped steps included, and traces under
    `jit`, `vmap` and `scan`. Its plan covers every contraction of the table and never
    changes structure, so that one compilation serves a whole run. What may differ
    between runs is data in the state, so such runs share an executable and can be
    stacked under `vmap`.

    A scheduled run means: step t equals, to the bit, one step from the same state with
    the plan of step t held constant.

    Attributes:
        init: Takes the table of contractions, on the host; returns the state.
        update: Takes the number of calls so far, what the step before measured (before
            the first step `adaprec_jax.stats.empty`), and the state; returns the plan
            of this step and the new state. Statistics that are not `finite`, NaN or of
            no elements change no decision.
        reads: The statistics that `update` is shown.
        every: Calls from one look at statistics and weights to the next. Statistics
            are fresh in calls that are multiples of it.
        observe: Takes the number of calls so far, the weights with what the step did to
            them, and the state; returns the new state. It is called at the end of every
            `every`-th step, before an `update` in which statistics are fresh, and what
            it returns is dropped where the step was skipped. None for a schedule that
            looks at no weight.
        signals: Takes the state; returns the numbers that decisions are taken from, by
            name and path, float32 over the plan axes. They are logged.

    >>> from adaprec_jax import contractions, plan as plans, schedules, stats
    >>> params = {"Dense_0": {"kernel": jnp.eye(2)}}
    >>> table = contractions.contraction_table(
    ...     lambda params, x: x @ params["Dense_0"]["kernel"], params, jnp.eye(2)
    ... )
    >>> schedule = schedules.constant(plans.integers(4, 8))
    >>> state = schedule.init(table)
    >>> plan, state = schedule.update(jnp.int32(0), stats.empty(table), state)
    >>> print(plans.describe(plan))
    Dense_0: activation int4, weight int4, gradient int8
    """

    init: Callable[[Table], PyTree]
    update: Callable[[Int32[Array, ""], Stats, PyTree], tuple[Plan, PyTree]]
    reads: Watch = NOTHING
    every: int = 1
    observe: Callable[[Int32[Array, ""], Weights, PyTree], PyTree] | None = None
    signals: Callable[[PyTree], Signals] = no_signals


@jax.tree_util.register_static
class Scope(NamedTuple):
    """The contractions a schedule decides about, as a part of its state.

    It holds no arrays: to JAX it is structure, so states are only alike, and only share
    an executable, if they plan for the same table.

    Attributes:
        table: The contractions.
        fixed: What else a schedule does not carry as data: names of formats, choices.
            Runs that differ in it cannot be stacked.
    """

    table: Table
    fixed: tuple[Hashable, ...] = ()


def select(condition: Bool[Array, "..."], yes: Tree, no: Tree) -> Tree:
    """Returns `yes` where `condition`, else `no`, leaf by leaf, broadcast.

    >>> select(jnp.array([True, False]), {"bits": jnp.int32(4)}, {"bits": jnp.int32(8)})
    {'bits': Array([4, 8], dtype=int32)}
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def observed(
    schedule: Schedule,
    step: Int32[Array, ""],
    weights: Weights,
    state: PyTree,
    applied: Bool[Array, ""] | None = None,
) -> PyTree:
    """Returns the state of a schedule after a step's weights were there to be seen.

    Args:
        schedule: The schedule.
        step: Number of calls before this one.
        weights: What the step did to them.
        state: Of the schedule.
        applied: Whether the step was not skipped; None if that is known.

    >>> observed(Schedule(lambda table: 0, lambda step, stats, state: ({}, state)),
    ...          jnp.int32(0), {}, 0)
    0
    """
    observe = schedule.observe
    if observe is None:
        return state

    # The test of the step is one for a pack of runs, so the condition stays one.
    def look() -> PyTree:
        after = observe(step, weights, state)
        return after if applied is None else select(applied, after, state)

    return lax.cond((step + 1) % schedule.every == 0, look, lambda: state)


def reads_of(schedules: Sequence[Schedule]) -> tuple[Watch, int]:
    """Returns what several schedules read together, and how many calls apart.

    Raises:
        ValueError: Two ask about different formats under one name.

    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.schedules import constant
    >>> reads_of([constant(integers(4, 8))])
    (Watch(quantities=(), roles=(), what_if={}), 1)
    """
    readers = [s for s in schedules if s.reads.quantities or s.observe]
    what_if: dict[str, Format] = {}
    for reader in readers:
        for name, fmt in reader.reads.what_if.items():
            if describe(what_if.setdefault(name, fmt)) != describe(fmt):
                raise ValueError(
                    f"Two schedules ask about different formats called {name!r}."
                )
    watches = [reader.reads for reader in readers]
    return Watch(
        quantities=tuple(sorted({q for watch in watches for q in watch.quantities})),
        roles=tuple(r for r in ROLES if any(r in watch.roles for watch in watches)),
        what_if=what_if,
    ), math.gcd(*(reader.every for reader in readers)) or 1
