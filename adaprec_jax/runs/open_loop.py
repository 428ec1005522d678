"""What a schedule that depends on the step alone decides at each step of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int, Int32, PyTree

from adaprec_jax import formats, stats
from adaprec_jax.cost.bitops import step_cost
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
    starts, packed, costs = plans(experiment, program)
    bits = np.asarray(formats.bits(record.formats_of(packed)))
    # A format may change and keep its width.
    moved = np.ones(len(bits), bool)
    moved[1:] = (bits[1:] != bits[:-1]).any(axis=(1, 2))
    return starts[moved], bits[moved], None if costs is None else costs[moved]


def plans(
    experiment: Experiment, program: Program
) -> tuple[
    Int[np.ndarray, " changes"],
    Float32[np.ndarray, "changes layers operands fields"],
    Float[np.ndarray, " changes"] | None,
]:
    """Returns where formats change, the packed plans, and what a step costs from there.

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
        packed = record.pack_plan(plan, table)
        return state, (packed, step_cost(table, plan) if counted else None)

    block = jax.jit(lambda state, steps: lax.scan(decide, state, steps))
    found: list[tuple[Any, Any, Any]] = []
    last = None
    for first in range(0, experiment.steps, _BLOCK):
        # Of one length, for one compilation; what is beyond the end is left out.
        state, (packed, cost) = block(
            state, first + jnp.arange(_BLOCK, dtype=jnp.int32)
        )
        left = slice(0, experiment.steps - first)
        packed = np.asarray(packed)[left]
        moved = np.ones(len(packed), bool)
        moved[1:] = (packed[1:] != packed[:-1]).any(axis=(1, 2, 3))
        moved[0] = last is None or (packed[0] != last).any()
        found.append(
            (
                first + np.flatnonzero(moved),
                packed[moved],
                np.asarray(cost, np.float64)[left][moved] if counted else None,
            )
        )
        last = packed[-1]
    starts, widths, costs = zip(*found, strict=True)
    return (
        np.concatenate(starts),
        np.concatenate(widths),
        np.concatenate(costs) if counted else None,
    )
