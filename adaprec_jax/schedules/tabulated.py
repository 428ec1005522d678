"""Schedules that depend on the step alone: a table, made on the host, looked up.

The table is made in float64 NumPy, because float32 under `jit` rounds some ties the
other way, and is carried in the state, so that constant, cyclic and switching runs are
one executable and can train together under `vmap`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PyTree

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table
from adaprec_jax.plan import uniform
from adaprec_jax.precision import Entry, Plan
from adaprec_jax.schedules.schedule import Schedule, Scope


class TabulatedState(NamedTuple):
    """State of a tabulated schedule; it never changes.

    Attributes:
        scope: The contractions it plans for.
        palette: The entries it chooses from, along a leading axis of every leaf.
        lookup: Which entry each step uses; the last one holds from then on.
    """

    scope: Scope
    palette: Entry
    lookup: Int32[Array, "steps"]


def tabulated(entries: Sequence[Entry], index: Int[np.ndarray, "steps"]) -> Schedule:
    """Uses `entries[index[step]]` for every contraction, `index[-1]` after the end.

    Decides:
        One entry for all contractions, at each step that of the table.

    Signal:
        The step alone.

    Costs:
        A table of one integer per step, made before the run; no statistics.

    Source:
        Ours: whatever depends on the step alone can be written so.

    Against:
        It cannot react to a run; a table is as long as the run is.

    Args:
        entries: The entries to choose from, all `SharedPrecision` or all `Precision`.
        index: Which entry each step uses.

    Raises:
        ValueError: The entries are of both types, there is no step, or the index points
            outside the entries.

    >>> from adaprec_jax.plan import integers
    >>> schedule = tabulated([integers(4, 8), integers(8, 8)], np.array([0, 1, 0, 1]))
    """
    kinds = {type(entry) for entry in entries}
    if len(kinds) != 1:
        raise ValueError(
            "The entries of a schedule must all be of one type, SharedPrecision or "
            f"Precision, got {sorted(kind.__name__ for kind in kinds)}; "
            "precision.separate writes a shared entry out."
        )
    if not index.size or index.min() < 0 or index.max() >= len(entries):
        raise ValueError(
            "The index of a schedule needs at least one step and values in 0 to "
            f"{len(entries) - 1}, got {np.unique(index).tolist()}."
        )

    def init(table: Table) -> TabulatedState:
        return TabulatedState(
            scope=Scope(table),
            palette=jax.tree.map(lambda *leaves: jnp.stack(leaves), *entries),
            lookup=jnp.asarray(index, jnp.int32),
        )

    return Schedule(init, _update)


def _update(
    step: Int32[Array, ""], stats: Stats, state: TabulatedState
) -> tuple[Plan, TabulatedState]:
    del stats
    now = state.lookup[jnp.minimum(step, state.lookup.size - 1)]
    entry = jax.tree.map(lambda leaf: leaf[now], state.palette)
    return uniform(state.scope.table, entry), state


def shuffled(schedule: Schedule, seed: int) -> Schedule:
    """Uses the entries of a tabulated schedule equally often, in a random order.

    The control arm for a claim about a schedule's shape: same formats, same cost, no
    order in time.

    Args:
        schedule: A tabulated schedule.
        seed: Of the permutation.

    Raises:
        TypeError: (in `init`) The schedule is not tabulated.

    >>> from adaprec_jax.plan import integers
    >>> rising = tabulated([integers(bits, 8) for bits in (3, 5, 8)], np.arange(3))
    >>> sorted(shuffled(rising, seed=0).init(Table((), ())).lookup.tolist())
    [0, 1, 2]
    """

    def init(table: Table) -> TabulatedState:
        state = schedule.init(table)
        if not isinstance(state, TabulatedState):
            raise TypeError(
                "Only a tabulated schedule can be shuffled, one whose decisions depend "
                f"on the step alone; this one has the state {type(state).__name__}."
            )
        order = np.random.default_rng(seed).permutation(state.lookup.size)
        return state._replace(lookup=state.lookup[order])

    return Schedule(init, schedule.update)


def stack(states: Sequence[PyTree]) -> PyTree:
    """Returns one state with a leading axis of runs, for `vmap` over `update`.

    Shorter palettes and tables are continued by their last value, which changes no
    decision.

    Args:
        states: States of schedules of one kind for one table.

    Raises:
        ValueError: The states differ in more than their numbers.

    >>> from adaprec_jax.plan import integers
    >>> low = tabulated([integers(4, 8)], np.zeros(1, int))
    >>> then_high = tabulated([integers(4, 8), integers(8, 8)], np.array([0, 0, 1]))
    >>> table = Table((), ())
    >>> stack([low.init(table), then_high.init(table)]).lookup.tolist()
    [[0, 0, 0], [0, 0, 1]]
    """
    kinds = {jax.tree.structure(state) for state in states}
    if len(kinds) != 1:
        raise ValueError(
            f"Only states of one structure can be stacked, got {len(kinds)} different "
            "ones; stack schedules of one kind, with entries of one type and for one "
            "table."
        )

    def join(*nodes: PyTree) -> PyTree:
        if isinstance(nodes[0], TabulatedState):
            nodes = tuple(
                jax.tree.map(_extend, node, _longest(nodes)) for node in nodes
            )
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *nodes)

    return jax.tree.map(
        join, *states, is_leaf=lambda node: isinstance(node, TabulatedState)
    )


def _longest(states: Sequence[TabulatedState]) -> TabulatedState:
    """Returns for each leaf the greatest length of its leading axis."""
    return jax.tree.map(lambda *leaves: max(leaf.shape[0] for leaf in leaves), *states)


def _extend(leaf: Array | np.ndarray, length: int) -> Array:
    return jnp.asarray(leaf)[np.minimum(np.arange(length), leaf.shape[0] - 1)]
