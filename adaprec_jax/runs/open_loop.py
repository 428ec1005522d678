"""What a schedule that depends on the step alone decides at each step of a run."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from adaprec_jax import formats, stats
from adaprec_jax.cost.bitops import step_cost
from adaprec_jax.native import learns
from adaprec_jax.native.foresee import plan_blocks
from adaprec_jax.runs import kinds
from adaprec_jax.runs.config import Experiment
from adaprec_jax.train import Program, record


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
    table = program.table
    nothing = stats.empty(table, program.watch)
    if learns(program.schedule, nothing, program.schedule.init(table)):
        raise kinds.closed(experiment)
    counted = all(contraction.executions for contraction in table.contractions)
    found: list[tuple[Any, Any, Any]] = []
    last = None
    for first, packed, cost in plan_blocks(
        program,
        steps=experiment.steps,
        beside=lambda plan: step_cost(table, plan) if counted else None,
    ):
        moved = np.ones(len(packed), bool)
        moved[1:] = (packed[1:] != packed[:-1]).any(axis=(1, 2, 3))
        moved[0] = last is None or (packed[0] != last).any()
        found.append(
            (
                first + np.flatnonzero(moved),
                packed[moved],
                np.asarray(cost, np.float64)[moved] if counted else None,
            )
        )
        last = packed[-1]
    starts, widths, costs = zip(*found, strict=True)
    return (
        np.concatenate(starts),
        np.concatenate(widths),
        np.concatenate(costs) if counted else None,
    )
