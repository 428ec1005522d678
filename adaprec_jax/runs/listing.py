"""Which contractions an experiment has, and in which precision they run."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from adaprec_jax import plan as plans
from adaprec_jax.bit_counts import gbitops
from adaprec_jax.contractions import Contraction, NotReached, Table
from adaprec_jax.contractions.table import forward_macs
from adaprec_jax.runs import kinds
from adaprec_jax.runs.build import as_input_error, first_plan, make_program
from adaprec_jax.runs.build_task import blank_data, make_task
from adaprec_jax.runs.config import Experiment, PerLayer, Schedule
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.expected import changes, decay, mean_cost
from adaprec_jax.runs.open_loop import decisions
from adaprec_jax.train import Program


class Line(NamedTuple):
    """A contraction of one micro-batch, and its precision.

    Attributes:
        contraction: What is multiplied.
        first: Its formats in the first step.
        later: How they change, "" if they do not.
    """

    contraction: Contraction
    first: str
    later: str


class Listing(NamedTuple):
    """All contractions, what no plan reaches, and the bit operations of the run.

    Attributes:
        lines: One for each contraction.
        not_reached: What else is multiplied.
        cost: Bit operations of the run relative to float32; None if they depend on
            statistics, or cannot be counted.
        gbitops: The same in units of 1e9; None where the cost is, or where it is not
            known how often a contraction is executed.
    """

    lines: tuple[Line, ...]
    not_reached: tuple[NotReached, ...]
    cost: float | None
    gbitops: float | None


def listing(experiment: Experiment) -> Listing:
    """Returns the contractions of the train step; computes nothing.

    It needs no data, but for a task of one's own.

    Raises:
        InputError: A rule of the schedule matches nothing.
    """
    with as_input_error():
        task = make_task(experiment, blank_data(experiment.task))
    program = make_program(experiment, task)
    with as_input_error():
        first = jax.jit(functools.partial(first_plan, program))()
    later = dict(_later(experiment, program.table))
    lines = (
        Line(c, plans.describe_entry(first[c.name]), later[c.name])
        for c in program.table.contractions
    )
    cost = _cost(experiment, program)
    found = None if cost is None else _gbitops(experiment, program.table, cost)
    return Listing(tuple(lines), program.table.not_reached, cost, found)


def _cost(experiment: Experiment, program: Program) -> float | None:
    """Returns the cost of a run, mean over its steps, where it can be known."""
    known = mean_cost(experiment)
    if known is not None or kinds.is_closed(experiment.schedule):
        return known
    if not program.table.contractions:
        return None
    try:
        with as_input_error():
            starts, _, cost = decisions(experiment, program)
    except InputError:  # An imported schedule that reads statistics.
        return None
    if cost is None:
        return None
    return float(np.average(cost, weights=np.diff([*starts, experiment.steps])))


def _gbitops(experiment: Experiment, table: Table, ratio: float) -> float | None:
    if not all(c.executions for c in table.contractions):
        return None
    macs = forward_macs(table) * experiment.micro_batches * experiment.steps
    return gbitops(ratio, macs)


def _later(experiment: Experiment, table: Table) -> Iterator[tuple[str, str]]:
    """Yields the name of each contraction with how its formats change."""
    for c in table.contractions:
        parts = _owners(experiment.schedule, c, table)
        phrases = [changes(part, experiment.steps, decay(experiment)) for part in parts]
        yield c.name, "; ".join(dict.fromkeys(filter(None, phrases)))


def _owners(
    schedule: Schedule, contraction: Contraction, table: Table
) -> list[Schedule]:
    """Returns the schedules that decide about the layers of a contraction."""
    if not isinstance(schedule, PerLayer):
        return [schedule]
    parts = (*(rule.schedule for rule in schedule.rules), schedule.default)
    owner = plans.assign([rule.pattern for rule in schedule.rules], table)
    owned = [parts[k] for k in np.unique(owner[contraction.name])]
    return [inner for part in owned for inner in _owners(part, contraction, table)]
