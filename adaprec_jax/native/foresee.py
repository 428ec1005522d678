"""The dtypes of a whole run, known beforehand where a schedule reads the step alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, PyTree

from adaprec_jax import stats
from adaprec_jax.contractions.kernels import Kernels
from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.native.choose import choose, kernels_of
from adaprec_jax.schedules import Schedule
from adaprec_jax.targets import Target
from adaprec_jax.train import Program, record

_BLOCK = 1000  # steps asked about at a time, or one dispatch if that is longer


def foresee(
    program: Program,
    target: Target,
    *,
    steps: int,
    dispatch: int,
    schedule_state: PyTree | None = None,
) -> tuple[tuple[int, ...], tuple[dict[str, Kernels], ...]]:
    """Returns the kernels of every dispatch: which of the different ones, and those.

    A dispatch runs in dtypes that hold the formats of all its steps.

    Args:
        program: Its schedule reads the step alone (`learns` says so).
        target: What it runs on.
        steps: Of the run, a multiple of `dispatch`.
        dispatch: Steps in one.
        schedule_state: In place of the schedule's own first state.
    """
    nothing = stats.empty(program.table, program.watch)

    def decide(state: PyTree, step: Int32[Array, ""]) -> tuple[PyTree, Array]:
        plan, state = program.schedule.update(step, nothing, state)
        return state, record.pack_plan(plan, program.table)

    block = jax.jit(lambda state, steps: lax.scan(decide, state, steps))
    size = max(_BLOCK // dispatch, 1) * dispatch
    state = schedule_state
    if state is None:
        state = program.schedule.init(program.table)
    order: list[int] = []
    seen: dict[bytes, int] = {}
    found: list[dict[str, Kernels]] = []
    for first in range(0, steps, size):
        state, packed = block(state, first + jnp.arange(size, dtype=jnp.int32))
        packed = np.asarray(packed)[: steps - first]
        for of_one in packed.reshape(-1, dispatch, *packed.shape[1:]):
            formats = np.unique(of_one, axis=0)
            key = formats.tobytes()
            if key not in seen:
                kernels = kernels_of(choose(program, formats, target))
                if kernels not in found:
                    found.append(kernels)
                seen[key] = found.index(kernels)
            order.append(seen[key])
    return tuple(order), tuple(found)


def learns(schedule: Schedule, nothing: Stats, state: PyTree) -> bool:
    """Returns whether a schedule computes anything from what training measured.

    Args:
        schedule: The schedule.
        nothing: Statistics of no elements, as `adaprec_jax.stats.empty` returns them.
        state: A state of it.
    """
    return bool(schedule.observe) or _reads(schedule.update, nothing, state)


def _reads(update: Callable[..., Any], nothing: Stats, state: PyTree) -> bool:
    jaxpr = jax.make_jaxpr(update)(jnp.int32(0), nothing, state).jaxpr
    measured = jaxpr.invars[1 : 1 + len(jax.tree.leaves(nothing))]
    used = [each for equation in jaxpr.eqns for each in equation.invars]
    return any(one is other for one in (*used, *jaxpr.outvars) for other in measured)
