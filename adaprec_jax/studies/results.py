"""What has come of the runs of a study, and what keeps them from being put together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaprec_jax.runs import store
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.runs.store import Outcome
from adaprec_jax.studies.study import Cell, Study, directories, titles

_NAMED = 3  # holes that are told of by name
_NO_CLASS = ("began", "pack")  # in which sessions may differ


class Result(NamedTuple):
    """A run that is over.

    Attributes:
        cell: Of the study.
        directory: Of the run.
        outcome: How it ended, "done" or "diverged".
        environments: What it depended on, for each session in which it was worked on.
    """

    cell: Cell
    directory: Path
    outcome: Outcome
    environments: tuple[Mapping[str, Any], ...]


class Arm(NamedTuple):
    """The runs of an arm.

    Attributes:
        name: A short one where the experiments have one that no other arm has, else
            the settings in which it differs.
        settings: In which it differs from the other arms.
        task: What distinguishes its task from the others of the study, "" if nothing.
        runs: Those that are over, by seed.
        asked: How many the study asks for.
    """

    name: str
    settings: str
    task: str
    runs: Mapping[int, Result]
    asked: int


class Results(NamedTuple):
    """The runs of a study.

    Attributes:
        study: Its name.
        arms: In the order of the study.
        notes: What a reader must know, one sentence each: holes, and environments that
            differ.
    """

    study: str
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]


def gathered(study: Study, out: Path, *, exploratory: bool = False) -> Results:
    """Returns what has come of a study.

    Args:
        study: What `load_study` returned.
        out: The folder of runs.
        exploratory: Whether runs may be missing, and environments differ; it is then
            said in the notes.

    Raises:
        InputError: A run is missing, or runs were made in different environments, and
            the comparison is not exploratory; or a file of a run is damaged.
    """
    paths = directories(study, out)
    found = [_result(cell, path) for cell, path in zip(study.cells, paths, strict=True)]
    results = [each for each in found if isinstance(each, Result)]
    holes = [each for each in found if isinstance(each, str)]
    faults = [*_about_holes(holes, len(found)), *_about_environments(results)]
    if faults and not exploratory:
        raise InputError(
            *faults, "What there is can be looked at with --exploratory, which says so."
        )
    packed = sum(bool(each.environments[-1].get("pack")) for each in results)
    if 0 < packed < len(results):
        faults.append(
            f"{packed} of {len(results)} runs were trained in packs, which equal "
            "single runs but for the order of float32 sums."
        )
    return Results(study.name, tuple(_arms(study, results)), tuple(faults))


def find_arm(arms: Sequence[Arm], meant: str) -> Arm:
    """Returns the arm that is meant by its name, its settings, or a part of them.

    Raises:
        InputError: No arm is meant, or several are.
    """
    names = [arm.name for arm in arms]
    for fits in (
        lambda arm: meant in (arm.name, arm.settings),
        lambda arm: bool(meant) and (meant in arm.name or meant in arm.settings),
    ):
        found = [arm for arm in arms if fits(arm)]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(repr(arm.name) for arm in found)
            raise InputError(f"The baseline {meant!r} means several arms: {several}.")
    raise InputError(f"There is no arm {meant!r}; {suggest(meant, names)}")


def _result(cell: Cell, directory: Path) -> Result | str:
    """Returns what came of a run, or why there is nothing yet."""
    if not (directory / store.CONFIG).is_file():
        return f"{cell.arm} seed {cell.seed} (never begun)"
    outcome = store.outcome(directory)
    if outcome is None or not store.is_over(outcome.state):
        state = outcome.state if outcome else store.state(directory)
        return f"{cell.arm} seed {cell.seed} ({state})"
    return Result(cell, directory, outcome, tuple(store.record(directory).sessions))


def _about_holes(holes: Sequence[str], runs: int) -> Iterable[str]:
    """Yields a sentence if runs are missing."""
    if not holes:
        return
    named = ", ".join(holes[:_NAMED])
    more = f" and {len(holes) - _NAMED} more" if len(holes) > _NAMED else ""
    yield f"{len(holes)} of {runs} runs are not over: {named}{more}."


def _about_environments(results: Sequence[Result]) -> Iterable[str]:
    """Yields a sentence for each part of the environment that differs."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        for environment in result.environments:
            for name, value in environment.items():
                counts.setdefault(name, Counter())[str(value)] += 1
    for name, values in counts.items():
        if name in _NO_CLASS or len(values) == 1:
            continue
        said = ", ".join(
            f"{value[:12] if name == 'commit' else value} ({count})"
            for value, count in values.most_common(_NAMED)
        )
        yield f"The runs differ in their environment: {name} is {said}."


def _arms(study: Study, results: Sequence[Result]) -> Iterable[Arm]:
    """Yields the arms of a study, with their runs."""
    cells: dict[str, list[Cell]] = {}
    for cell in study.cells:
        cells.setdefault(cell.arm, []).append(cell)
    runs: dict[str, dict[int, Result]] = {arm: {} for arm in cells}
    for result in results:
        runs[result.cell.arm][result.cell.seed] = result
    called = titles(study.cells)
    kinds = {arm: _task(cells[arm][0]) for arm in cells}
    for arm, mine in cells.items():
        task = kinds[arm] if len(set(kinds.values())) > 1 else ""
        yield Arm(called[arm], arm, task, runs[arm], len(mine))


def _task(cell: Cell) -> str:
    """Returns what names the task of a cell."""
    tree = cell.experiment.task.model_dump(mode="json", exclude={"folder"})
    rest = " ".join(f"{name}={value}" for name, value in tree.items() if name != "kind")
    return f"{tree['kind']} {rest}".strip()
