"""What a schedule that depends on the step alone decides at each step of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int32, PyTree

from adaprec_jax import formats, stats
from adaprec_jax.cost import step_cost
from adaprec_jax.native import learns
from adaprec_jax.runs import kinds
from adaprec_jax.runs.config import Experiment
from adaprec_jax.train import Program, record

_BLOCK = 1000  # steps asked about at a time


def decisions(
    experiment: Experiment, program: Program
) -> tuple[
    Int[np.ndarray, " changes"],
    Int[np.ndarray, "changes layers operands"],
    Float[np.ndarray, " changes"] | None,
]:
    """Returns where formats change, to which bits, and what a step costs from there.

    No cost where the executions of a contraction are not known.

    Raises:
        InputError: The schedule reads what is measured in training.
    """
    table, update = program.table, program.schedule.update
    nothing = stats.empty(table, program.watch)
    counted = all(contraction.executions for contraction in table.contractions)
    state = program.schedule.init(table)
    if learns(program.schedule, nothing, state):
        raise kinds.closed(experiment)

    def decide(state: PyTree, step: Int32[Array, ""]) -> tuple[PyTree, tuple[Any, Any]]:
        plan, state = update(step, nothing, state)
        bits = formats.bits(record.formats_of(record.pack_plan(plan, table)))
        return state, (bits, step_cost(table, plan) if counted else None)

    block = jax.jit(lambda state, steps: lax.scan(decide, state, steps))
    found: list[tuple[Any, Any, Any]] = []
    last = None
    for first in range(0, experiment.steps, _BLOCK):
        # Of one length, for one compilation; what is beyond the end is left out.
        state, (bits, cost) = block(state, first + jnp.arange(_BLOCK, dtype=jnp.int32))
        left = slice(0, experiment.steps - first)
        bits = np.asarray(bits)[left]
        before = np.concatenate([bits[:1] - 1 if last is None else last, bits[:-1]])
        moved = (bits != before).any(axis=(1, 2))
        found.append(
            (
                first + np.flatnonzero(moved),
                bits[moved],
                np.asarray(cost, np.float64)[left][moved] if counted else None,
            )
        )
        last = bits[-1:]
    starts, widths, costs = zip(*found, strict=True)
    return (
        np.concatenate(starts),
        np.concatenate(widths),
        np.concatenate(costs) if counted else None,
    )
