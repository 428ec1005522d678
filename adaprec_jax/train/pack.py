"""A pack: runs that differ only in numbers, trained together in one compilation.

Schedules of one kind (tabulated ones above all), seeds, learning rates, bit ranges, the
order of the data: all of it is data in the state, so such runs are one program, mapped
over them. They share one copy of the examples and read rows of their own:

    state = init_pack(init, keys, schedule_states)
    dispatch = make_pack_dispatch(program, gather)
    state, metrics = dispatch(state, rows, arrays)  # rows: (steps, runs, batch)

Every leaf of the state has a leading axis of runs, but for `calls`, which all share:
so what happens now and then (gathering statistics) is a branch and not a `where`. That
a step is skipped differs between runs, and costs each of them a `where`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32, Key, PyTree

from adaprec_jax.schedules import stack
from adaprec_jax.train.evaluate import Score
from adaprec_jax.train.state import Program, TrainState
from adaprec_jax.train.step import Metrics, make_train_step

# A tree of axes in the place of the arrays.
_AXES: Any = TrainState(None, *[0] * (len(TrainState._fields) - 1))  # pyright: ignore[reportArgumentType]


def init_pack(
    init: Callable[[Key[Array, ""], PyTree], TrainState],
    keys: Key[Array, " runs"],
    schedule_states: Sequence[PyTree],
) -> TrainState:
    """Returns the first state of a pack.

    Args:
        init: `(key, schedule_state) -> state` of one run: `init_state`, after the
            task's `init`.
        keys: The key of each run.
        schedule_states: The state of each run's schedule; all of one kind.

    Raises:
        ValueError: The schedules differ in more than their numbers.
    """
    states = jax.jit(jax.vmap(init))(keys, stack(schedule_states))
    return states._replace(calls=jnp.int32(0))


def make_pack_dispatch(
    program: Program,
    gather: Callable[[PyTree, Array], PyTree],
    on_trace: Callable[[], object] = lambda: None,
) -> Callable[[TrainState, Array, PyTree], tuple[TrainState, Metrics]]:
    """Returns `dispatch(state, rows, arrays)`: several steps of all runs in one call.

    `rows` counts steps, runs and examples along its axes; `arrays` are the examples,
    on the device and not donated; the metrics count steps and runs.

    Args:
        program: What is trained.
        gather: `(arrays, rows) -> batch`, as the task's data has it.
        on_trace: Called at each trace, that is before each compilation.
    """
    train_step = make_train_step(program)

    def one(
        state: TrainState, rows: Int32[Array, " batch"], arrays: PyTree
    ) -> tuple[TrainState, Metrics]:
        return train_step(state, gather(arrays, rows))

    steps = jax.vmap(one, in_axes=(_AXES, 0, None), out_axes=(_AXES, 0))

    def dispatch(
        state: TrainState, rows: Int32[Array, "steps runs batch"], arrays: PyTree
    ) -> tuple[TrainState, Metrics]:
        on_trace()
        return lax.scan(lambda state, rows: steps(state, rows, arrays), state, rows)

    return jax.jit(dispatch, donate_argnums=0)


def pack_score(score: Score, gather: Callable[[PyTree, Array], PyTree]) -> Score:
    """Returns `score(state, plan, (rows, arrays))` for all runs of a pack.

    Args:
        score: What `make_score` returned.
        gather: As in `make_pack_dispatch`; `rows` count runs and examples.
    """

    def one(state: TrainState, plan: Any, rows: Array, arrays: PyTree) -> Any:
        return score(state, plan, gather(arrays, rows))

    mapped = jax.vmap(one, in_axes=(_AXES, 0, 0, None))
    return lambda state, plan, batch: mapped(state, plan, *batch)


def run_of(state: TrainState, run: int) -> TrainState:
    """Returns the state of one run of a pack."""
    alone = jax.tree.map(lambda leaf: leaf[run], state._replace(calls=()))
    return alone._replace(calls=state.calls)
