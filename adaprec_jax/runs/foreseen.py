"""What a schedule that depends on the step alone will decide, without training."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from adaprec_jax.report.figure import Course
from adaprec_jax.runs import kinds
from adaprec_jax.runs.build import as_input_error, make_learning_rate, make_program
from adaprec_jax.runs.build_task import blank_data, make_task
from adaprec_jax.runs.config import Experiment, LearningRate
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.open_loop import decisions
from adaprec_jax.train import record

_RATES = 1000  # points of a learning rate that moves


def foreseen(experiment: Experiment) -> Course:
    """Returns the course of an experiment, which is not run.

    It needs no data, but for a task of one's own.

    Raises:
        InputError: The schedule reads what is measured in training, does not fit the
            model, or the model multiplies nothing.
    """
    kinds.check_open(experiment)
    with as_input_error():
        task = make_task(experiment, blank_data(experiment.task))
    program = make_program(experiment, task)
    if not program.table.contractions:
        raise InputError(f"{experiment.name} multiplies nothing that could be plotted.")
    with as_input_error():
        starts, bits, cost = decisions(experiment, program)
    steps, rates = _rates(experiment.optimizer.learning_rate, experiment.steps)
    return Course(
        name=experiment.name,
        steps=experiment.steps,
        starts=starts,
        layers=record.rows(program.table),
        operands=record.OPERANDS,
        bits=bits,
        cost=cost,
        rate_steps=steps,
        rates=rates,
    )


def _rates(
    settings: LearningRate, steps: int
) -> tuple[Int[np.ndarray, " known"], Float[np.ndarray, " known"]]:
    """Returns steps from the first to the last, and their learning rates."""
    rate = make_learning_rate(settings, steps)
    known = np.unique(np.linspace(0, steps - 1, _RATES).astype(np.int32))
    if not callable(rate):
        return known, np.full(len(known), rate)
    return known, np.asarray(jax.vmap(rate)(jnp.asarray(known)), np.float64)
