"""What became of the runs of a study, read from their directories; imports no JAX."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from adaprec_jax.runs import store
from adaprec_jax.runs.store import Outcome, State
from adaprec_jax.studies.study import Cell, Study, directories, titles

# In the order in which they are told of.
STATES: tuple[State, ...] = (
    "done", "diverged", "running", "interrupted", "failed", "new",
)  # fmt: skip

Counts: TypeAlias = dict[State, int]


class Found(NamedTuple):
    """A cell, and what became of it.

    Attributes:
        cell: The cell.
        directory: Of its run, whether or not it exists.
        state: As `adaprec_jax.runs.store.state` has it; "new" of one that was never
            begun.
        outcome: How it ended; None if it has not.
    """

    cell: Cell
    directory: Path
    state: State
    outcome: Outcome | None


def look(study: Study, out: Path) -> list[Found]:
    """Returns what became of every cell, in the order of the study.

    Args:
        study: The study.
        out: The folder of runs.

    Raises:
        InputError: What a run wrote is damaged.
    """
    return [
        found(cell, directory)
        for cell, directory in zip(study.cells, directories(study, out), strict=True)
    ]


def found(cell: Cell, directory: Path) -> Found:
    """Returns what became of a cell whose directory is known.

    Raises:
        InputError: What its run wrote is damaged.
    """
    state = store.state(directory)
    over = None if state in ("new", "running") else store.outcome(directory)
    return Found(cell, directory, state, over)


def count(found: Iterable[Found]) -> Counts:
    """Returns how many runs there are in each state; states without a run are there.

    >>> count([])["done"]
    0
    """
    counts = Counter(each.state for each in found)
    return {state: counts[state] for state in STATES}


def by_arm(found: Iterable[Found]) -> dict[str, Counts]:
    """Returns the counts of each arm, in the order of the study."""
    arms: dict[str, list[Found]] = {}
    found = [*found]
    called = titles(each.cell for each in found)
    for each in found:
        arms.setdefault(called[each.cell.arm], []).append(each)
    return {arm: count(some) for arm, some in arms.items()}


def holes(counts: Counts) -> int:
    """Returns how many runs have no result: all but those done or diverged.

    >>> holes(count([]) | {"failed": 2, "diverged": 1})
    2
    """
    return sum(n for state, n in counts.items() if not store.is_over(state))
