"""Which contractions an experiment has, and in which precision they run."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from adaprec_jax import plan as plans
from adaprec_jax.contractions import Contraction, NotReached, Table
from adaprec_jax.runs.build import as_input_error, first_plan, make_program
from adaprec_jax.runs.build_task import blank_data, make_task
from adaprec_jax.runs.config import Experiment, PerLayer, Schedule
from adaprec_jax.runs.expected import changes


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
    """All contractions, and what no plan reaches."""

    lines: tuple[Line, ...]
    not_reached: tuple[NotReached, ...]


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
    return Listing(tuple(lines), program.table.not_reached)


def _later(experiment: Experiment, table: Table) -> Iterator[tuple[str, str]]:
    """Yields the name of each contraction with how its formats change."""
    for c in table.contractions:
        parts = _owners(experiment.schedule, c, table)
        phrases = [changes(part, experiment.steps) for part in parts]
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
