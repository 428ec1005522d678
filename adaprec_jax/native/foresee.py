"""The dtypes of a whole run, known beforehand where a schedule reads the step alone."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32, PyTree

from adaprec_jax import stats
from adaprec_jax.contractions.kernels import Kernels
from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.native.choose import choose, kernels_of
from adaprec_jax.precision import Plan
from adaprec_jax.schedules import Schedule
from adaprec_jax.targets import Target
from adaprec_jax.train import Program, record

_BLOCK = 1000  # steps asked about at a time, or one dispatch if that is longer


def foresee(
    program: Program, target: Target, *, steps: int, dispatch: int
) -> tuple[tuple[int, ...], tuple[dict[str, Kernels], ...]]:
    """Returns the kernels of every dispatch: which of the different ones, and those.

    A dispatch runs in dtypes that hold the formats of all its steps.

    Args:
        program: Its schedule reads the step alone (`learns` says so).
        target: What it runs on.
        steps: Of the run, a multiple of `dispatch`.
        dispatch: Steps in one.
    """
    order: list[int] = []
    seen: dict[bytes, int] = {}
    found: list[dict[str, Kernels]] = []
    for _, packed, _ in plan_blocks(program, steps=steps, dispatch=dispatch):
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


def plan_blocks(
    program: Program,
    *,
    steps: int,
    dispatch: int = 1,
    beside: Callable[[Plan], Any] = lambda _: None,
) -> Iterator[tuple[int, Float32[np.ndarray, "steps layers operands fields"], Any]]:
    """Yields the plans of a run in packed form, those of many steps at a time.

    Args:
        program: Its schedule reads the step alone (`learns` says so).
        steps: Of the run.
        dispatch: No block ends within so many steps.
        beside: What else is asked of each plan, traced; a pytree of arrays.

    Yields:
        The first step of a block, its packed plans, and what was asked beside them.
    """
    nothing = stats.empty(program.table, program.watch)

    def decide(state: PyTree, step: Int32[Array, ""]) -> tuple[PyTree, Any]:
        plan, state = program.schedule.update(step, nothing, state)
        return state, (record.pack_plan(plan, program.table), beside(plan))

    block = jax.jit(lambda state, steps: lax.scan(decide, state, steps))
    size = max(_BLOCK // dispatch, 1) * dispatch
    state = program.schedule.init(program.table)
    for first in range(0, steps, size):
        # Of one length, for one compilation; what is beyond the end is left out.
        state, found = block(state, first + jnp.arange(size, dtype=jnp.int32))
        packed, others = jax.tree.map(lambda x: np.asarray(x)[: steps - first], found)  # noqa: B023 (used at once)
        yield first, packed, others


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
