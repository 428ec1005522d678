"""A bundle trained again, and compared with what was published; imports no JAX itself.

Each run is one of three: "equal" to the bit, in every number of its metrics and
results; "consistent", where its results on test data lie where another seed of its arm
would be expected; or "different". What is said of the bundle is the worst of them.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic import TypeAdapter, ValidationError

from adaprec_jax.runs import environment, identity, imports, store
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.validation import validate
from adaprec_jax.runs.wording import about
from adaprec_jax.studies import bundle
from adaprec_jax.studies.bundle import plain
from adaprec_jax.studies.difference import Difference, difference
from adaprec_jax.studies.study import Cell, Study, directories, study_of

Verdict: TypeAlias = Literal["equal", "consistent", "different"]

_ORDER: tuple[Verdict, ...] = ("equal", "consistent", "different")
_FEWEST = 3  # seeds that say what another seed is expected to give
_NO_SPREAD = 1e-6  # of a result that was the same for every seed, relative


class Compared(NamedTuple):
    """A run that was trained again.

    Attributes:
        name: Of its directory in the bundle.
        verdict: What is said of it.
        cause: The first thing in which it differs, "" if it does not.
    """

    name: str
    verdict: Verdict
    cause: str


class _StoredCell(NamedTuple):
    arm: str
    seed: int
    run_id: store.RunId
    config: dict[str, Any]


class _Stored(NamedTuple):
    """What `study.json` holds; arms are named anew from the configs."""

    name: str
    cells: list[_StoredCell]


def read(folder: Path, allowed: Collection[str] = ()) -> Study:
    """Returns the study of a bundle that is sound.

    Sinks and the folders of data are left out: they are the publisher's.

    Args:
        folder: The bundle.
        allowed: Packages whose code may be imported, where the bundle needs it and they
            are installed as they were published.

    Raises:
        InputError: The bundle is damaged or not what its list says; or it needs code
            that is not allowed, not installed, or not equal.
    """
    bundle.check(folder)
    path = folder / bundle.STUDY
    try:
        stored = TypeAdapter(_Stored).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        detail = (
            about(".".join(map(str, (e := error.errors()[0])["loc"])), e)
            if isinstance(error, ValidationError)
            else "it is missing"
        )
        raise InputError(f"{path} is damaged: {plain(detail)}.") from error
    experiments = []
    for cell in stored.cells:
        own = _without_places(_validated(path, cell.config))
        _check_code(folder, own, allowed)
        if (now := identity.run_id(own)) != cell.run_id:
            raise InputError(
                f"{path}: a run is called {cell.run_id}, but its settings are those of "
                f"{now}."
            )
        experiments.append(own)
    study = study_of(experiments, stored.name)
    for cell, path in zip(
        study.cells, directories(study, folder / bundle.RUNS), strict=True
    ):
        _check_run(path, cell.experiment)
    return study


def sample(study: Study, runs: int | None) -> list[Cell]:
    """Returns so many cells of a study, evenly spaced; all if none is said.

    Args:
        study: The study.
        runs: How many.
    """
    total = len(study.cells)
    if runs is None or runs >= total:
        return [*study.cells]
    return [study.cells[k * total // runs] for k in range(runs)]


def jobs(study: Study, cells: Sequence[Cell], folder: Path) -> list[list[Cell]]:
    """Returns what must be trained for some cells: each alone, or with its pack.

    A run that was trained with others is equal to the bit only in the same pack.

    Args:
        study: All cells.
        cells: Those to be repeated.
        folder: The bundle.

    Raises:
        InputError: What was published of one is damaged.
    """
    by_id = {cell.run_id: cell for cell in study.cells}
    where = dict(zip(by_id, directories(study, folder / bundle.RUNS), strict=True))
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        # It reads all that a comparison will: better now than after hours of training.
        difference(where[cell.run_id], where[cell.run_id])
        members = store.pack_of(where[cell.run_id]) or (cell.run_id,)
        if not all(member in by_id for member in members):
            members = (cell.run_id,)
        found[members] = [by_id[member] for member in members]
    return [*found.values()]


def compare(
    study: Study, cells: Sequence[Cell], folder: Path, out: Path
) -> list[Compared]:
    """Returns what is said of some cells that were trained again.

    Args:
        study: All cells.
        cells: Those that were trained again.
        folder: The bundle.
        out: The folder of runs in which they were.

    Raises:
        InputError: What a run wrote is damaged.
    """
    runs = folder / bundle.RUNS
    published = dict(
        zip(
            (cell.run_id for cell in study.cells),
            directories(study, runs),
            strict=True,
        )
    )
    found: list[Compared] = []
    for cell in cells:
        there, here = published[cell.run_id], store.locate(out, cell.experiment)
        siblings = [
            published[each.run_id] for each in study.cells if each.arm == cell.arm
        ]
        one = _compared(there, here, siblings)
        found.append(one._replace(cause=plain(one.cause)))
    return found


def worst(found: Sequence[Compared]) -> Verdict:
    """Returns the verdict on several runs.

    >>> worst([Compared("a", "equal", ""), Compared("b", "consistent", "cpu")])
    'consistent'
    """
    return _ORDER[max(_ORDER.index(each.verdict) for each in found)]


def changes(folder: Path) -> list[str]:
    """Returns a phrase for each part of the environment that is another one here."""
    path = folder / bundle.ENVIRONMENT
    try:
        there = TypeAdapter(dict[str, str | bool | None]).validate_json(
            path.read_bytes()
        )
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is damaged or missing.") from error
    return [plain(each) for each in environment.differences(there, environment.code())]


def _compared(there: Path, here: Path, siblings: Sequence[Path]) -> Compared:
    published, again = store.outcome(there), store.outcome(here)
    if published is None:
        raise InputError(f"{there} has no result.")
    if again is None or not store.is_over(again.state):
        return Compared(there.name, "different", "it did not come to an end")
    differs = difference(there, here)
    cause = _cause(differs)
    if (
        differs.parting is None
        and not differs.results
        and ((published.state, published.step) == (again.state, again.step))
    ):
        return Compared(there.name, "equal", "")
    if (published.state, differs.data) != (again.state, None):
        return Compared(there.name, "different", cause)
    outcomes = [outcome for each in siblings if (outcome := store.outcome(each))]
    outside = [
        name
        for name, value in again.results.items()
        if name.startswith("test/")
        and not _is_expected(value, published, outcomes, name)
    ]
    if outside or set(again.results) != set(published.results):
        name = outside[0] if outside else "the names of its results"
        return Compared(there.name, "different", f"{name} is out of range; {cause}")
    return Compared(there.name, "consistent", cause)


def _is_expected(
    value: float,
    published: store.Outcome,
    outcomes: Sequence[store.Outcome],
    name: str,
) -> bool:
    """Returns whether a result lies in the 95 % prediction interval of its arm.

    The interval is mean ± t(0.975, n - 1) s sqrt(1 + 1 / n) of the published seeds,
    shifted to the run's own value: the spread of seeds says how much rounding may
    move a result. With fewer than three seeds only rounding itself is allowed.
    """
    own = published.results.get(name)
    if own is None:
        return False
    values = np.array([o.results[name] for o in outcomes if name in o.results])
    half = _NO_SPREAD * max(abs(own), 1.0)
    if len(values) >= _FEWEST and np.isfinite(values).all():
        from scipy.special import stdtrit  # Slow to import.

        n = len(values)
        spread = stdtrit(n - 1, 0.975) * np.std(values, ddof=1) * (1 + 1 / n) ** 0.5
        half = max(half, float(spread))
    return abs(value - own) <= half or value == own


def _cause(differs: Difference) -> str:
    """Returns the first thing in which two runs differ, causes before effects."""
    if differs.data:
        return "the data is another one"
    parted = ""
    if differs.parting:
        where = differs.parting
        parted = f"; they part at step {where.step}, in {where.name}"
    if differs.environment:
        return differs.environment[0] + parted
    if parted:
        return parted[2:]
    names = ", ".join([*differs.results][:3])
    return f"{names} differs" if names else ""


def _validated(path: Path, tree: Any) -> Experiment:
    try:
        return validate(tree)
    except InputError as error:
        raise InputError(
            *(f"{path}: {plain(str(fault))}" for fault in error.args)
        ) from error


def _without_places(experiment: Experiment) -> Experiment:
    """Returns the experiment without sinks and folders of whoever published it."""
    task = experiment.task
    if folder := type(task).model_fields.get("folder"):
        task = task.model_copy(update={"folder": folder.get_default()})
    return experiment.model_copy(update={"sinks": (), "task": task})


def _check_run(directory: Path, experiment: Experiment) -> None:
    """Refuses a run that is not there, or says other settings than the study does."""
    outer = {"name": True, "tags": True}
    said = _without_places(_validated(directory, _config(directory)))
    if said.model_dump(exclude=outer) != experiment.model_dump(exclude=outer):
        raise InputError(
            f"{directory}: {store.CONFIG} has other settings than {bundle.STUDY}."
        )
    if store.outcome(directory) is None:
        raise InputError(f"{directory} has no result.")


def _config(directory: Path) -> Any:
    path = directory / store.CONFIG
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or missing.") from error


def _check_code(folder: Path, experiment: Experiment, allowed: Collection[str]) -> None:
    """Refuses code that is not allowed, before looking for it, or not the same.

    To find a module of a package imports the package, so nothing is looked for first.
    """
    targets = imports.targets(experiment)
    if not targets:
        return
    for target in targets:
        package = target.partition(":")[0].partition(".")[0]
        if package not in allowed:
            raise InputError(
                f"The bundle needs the code of {target}, which is not a part of it; "
                f"read {folder / bundle.CODE}, install the package, and allow it with "
                f"--allow-code {package}."
            )
    origins = _origins(folder)
    for target in targets:
        here = imports.origin(target)
        if origins.get(target) != here:
            raise InputError(
                f"The installed code of {target} is not the one that was published: "
                "its version or the digest of its source differs."
            )


def _origins(folder: Path) -> Mapping[str, Mapping[str, str | None]]:
    path = folder / bundle.CODE / "origins.json"
    try:
        tree = json.loads(path.read_bytes())
        return TypeAdapter(dict[str, dict[str, str | None]]).validate_python(tree)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or missing.") from error
