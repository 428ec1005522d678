"""What a study has and what it costs, before a step is taken; imports no JAX."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adaprec_jax.runs import expected, store
from adaprec_jax.studies.packs import packs
from adaprec_jax.studies.states import Counts, count, look
from adaprec_jax.studies.study import Cell, Study, titles


class Arm(NamedTuple):
    """An arm, counted.

    Attributes:
        arm: Its name.
        runs: How many seeds it has.
        steps: Of one run.
        cost: Mean bit operations of a step, relative to float32; None where they
            depend on statistics.
    """

    arm: str
    runs: int
    steps: int
    cost: float | None


class Price(NamedTuple):
    """A study, counted.

    Attributes:
        name: Of the study.
        runs: How many it has.
        states: How many are in each state already.
        steps: Of all runs together.
        steps_left: Of the runs that are not over, as if each began anew.
        float32_steps: The steps of all runs whose cost is known, each by its cost:
            how many steps in float32 have as many bit operations.
        uncounted: How many runs have a cost that depends on statistics.
        packs: How many processes train what is left: runs that train together are one.
        arms: Its arms.
    """

    name: str
    runs: int
    states: Counts
    steps: int
    steps_left: int
    float32_steps: float
    uncounted: int
    packs: int
    arms: tuple[Arm, ...]


def price(study: Study, out: Path, *, packed: bool) -> Price:
    """Returns what a study has, how much of it is done, and what it costs.

    Args:
        study: The study.
        out: The folder of runs.
        packed: Whether runs that can train together will.

    Raises:
        InputError: What a run wrote is damaged.
    """
    found = look(study, out)
    left = [each for each in found if not store.is_over(each.state)]
    by_arm: dict[str, list[Cell]] = {}
    for cell in study.cells:
        by_arm.setdefault(cell.arm, []).append(cell)
    called = titles(study.cells)
    arms = tuple(_arm(called[arm], cells) for arm, cells in by_arm.items())
    return Price(
        name=study.name,
        runs=len(study.cells),
        states=count(found),
        steps=_steps(study.cells),
        steps_left=_steps([each.cell for each in left]),
        float32_steps=sum(
            arm.runs * arm.steps * arm.cost for arm in arms if arm.cost is not None
        ),
        uncounted=sum(arm.runs for arm in arms if arm.cost is None),
        packs=len(packs(left)) if packed else len(left),
        arms=arms,
    )


def _arm(name: str, cells: Sequence[Cell]) -> Arm:
    first = cells[0].experiment
    return Arm(name, len(cells), first.steps, expected.mean_cost(first))


def _steps(cells: Sequence[Cell]) -> int:
    return sum(cell.experiment.steps for cell in cells)
