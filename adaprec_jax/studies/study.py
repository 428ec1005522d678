"""A study: the experiments that belong together, as cells of arm and seed.

A study is a file, `NAME.study.json` in the folder of runs. It says which runs there
ought to be, so that one that is missing can be told of; what became of each is in its
run directory, as of any other run.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from adaprec_jax.runs import identity, store
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.config.base import Name
from adaprec_jax.runs.errors import InputError, suggest, writing
from adaprec_jax.runs.overrides import leaves
from adaprec_jax.runs.validation import validate
from adaprec_jax.runs.wording import about

SUFFIX = ".study.json"
_SEED = "seed"
_NO_ARM = ("name", "tags", "sinks", "keep_checkpoints")  # settings that name no arm


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
        arm: All in which it differs from the other arms, but for the seed, such as
            `schedule=cpt schedule.min_bits=3`.
        seed: The seed of the run.
        experiment: All its settings.
        run_id: As `adaprec_jax.runs.identity.run_id` gave it when the study was made.
    """

    arm: str
    seed: int
    experiment: Experiment
    run_id: str


class Study(NamedTuple):
    """Runs that belong together.

    Attributes:
        name: Of the study and its file.
        cells: The runs, in the order in which they were declared.
    """

    name: str
    cells: tuple[Cell, ...]


class _Stored(NamedTuple):
    """A cell as the file of a study has it."""

    arm: str
    seed: int
    run_id: store.RunId
    config: dict[str, Any]


def study_of(experiments: Iterable[Experiment], name: str) -> Study:
    """Returns the study of some experiments.

    An arm is named by the settings that vary, each as `path=value`. Settings that are
    called `seed`, or end in `_seed`, name no arm, unless runs of one seed differ in
    them.

    Args:
        experiments: One per run, each with its seed.
        name: Of the study, and of its file.

    Raises:
        InputError: There is no experiment, two would be the same run, or the name
            cannot name a file.

    >>> from adaprec_jax.runs.load import load
    >>> study = study_of([load("digits-int8"), load("digits-cpt")], "two")
    >>> [cell.seed for cell in study.cells]
    [0, 0]
    >>> study.cells[1].arm
    'schedule=cpt'
    """
    experiments = tuple(experiments)
    _check_name(name)
    if not experiments:
        raise InputError(f"The study {name!r} has no runs.")
    ids = [identity.run_id(each) for each in experiments]
    _check_different(experiments, ids)
    arms = _arms(experiments)
    cells = [
        Cell(arm, each.seed, each, run_id)
        for arm, each, run_id in zip(arms, experiments, ids, strict=True)
    ]
    return Study(name, tuple(cells))


def titles(cells: Iterable[Cell]) -> dict[str, str]:
    """Returns what each arm is called: its experiments' name, if no other arm has it.

    An arm whose name does not tell it apart is called by its settings.

    >>> from adaprec_jax.runs.load import load
    >>> study = study_of([load("digits-int8"), load("digits-cpt")], "two")
    >>> titles(study.cells)["schedule=cpt"]
    'digits-cpt'
    """
    names: dict[str, set[str]] = {}
    for cell in cells:
        names.setdefault(cell.arm, set()).add(cell.experiment.name)
    times = Counter(name for own in names.values() for name in own)
    return {
        arm: max(own) if len(own) == 1 and times[max(own)] == 1 else arm
        for arm, own in names.items()
    }


def save(study: Study, out: Path) -> Path:
    """Writes the file of a study into the folder of runs, at once or not at all.

    Returns:
        The file's path.

    Raises:
        InputError: It cannot be written.
    """
    path = path_of(study.name, out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    cells = [
        {
            "arm": cell.arm,
            "seed": cell.seed,
            "run_id": cell.run_id,
            "config": cell.experiment.model_dump(mode="json"),
        }
        for cell in study.cells
    ]
    store.write_json(path, cells)
    return path


def load_study(study: str | Path, out: Path) -> Study:
    """Returns a study that was saved.

    Args:
        study: Its name, or the path of its file.
        out: The folder of runs, in which a name is looked for.

    Raises:
        InputError: There is no such study, or its file is damaged.
    """
    path = Path(study)
    if not path.name.endswith(SUFFIX):
        path = path_of(str(study), out)
    try:
        stored = TypeAdapter(list[_Stored]).validate_json(path.read_bytes())
    except FileNotFoundError as error:
        known = [each.name.removesuffix(SUFFIX) for each in out.glob(f"*{SUFFIX}")]
        end = suggest(str(study), sorted(known)) if known else "there are none."
        raise InputError(f"There is no study {str(study)!r} in {out}; {end}") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is damaged: {about(where, first)}.") from error
    cells = [_cell(path, number, each) for number, each in enumerate(stored)]
    return Study(path.name.removesuffix(SUFFIX), tuple(cells))


def path_of(name: str, out: Path) -> Path:
    """Returns the path of a study's file, whether or not it exists.

    >>> path_of("bits", Path("runs")).as_posix()
    'runs/bits.study.json'
    """
    return out / f"{name}{SUFFIX}"


def directories(study: Study, out: Path) -> list[Path]:
    """Returns the directory of each cell, whether or not it exists.

    They are those that `adaprec_jax.runs.store.locate` finds, looked for together: of
    a thousand cells, the folder is read once.
    """
    found: dict[str, Path] = {}
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        found.setdefault(path.name.rpartition("-")[2], path)
    return [
        found.get(cell.run_id, out / f"{cell.experiment.name}-{cell.run_id}")
        for cell in study.cells
    ]


def _cell(path: Path, number: int, stored: _Stored) -> Cell:
    try:
        experiment = validate(stored.config)
    except InputError as error:
        faults = (f"{path}, cell {number}: {fault}" for fault in error.args)
        raise InputError(*faults) from error
    return Cell(stored.arm, stored.seed, experiment, stored.run_id)


def _check_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InputError(
            f"{about('The name of a study', error.errors()[0])}"
        ) from error


def _check_different(experiments: Sequence[Experiment], ids: Sequence[str]) -> None:
    """Refuses experiments that would be one run."""
    first: dict[str, int] = {}
    for number, (experiment, run_id) in enumerate(zip(experiments, ids, strict=True)):
        if run_id in first:
            raise InputError(
                f"The runs {first[run_id]} and {number} of the study are the same, "
                f"{run_id}: {experiment.name} with seed {experiment.seed}."
            )
        first[run_id] = number


def _arms(experiments: Sequence[Experiment]) -> list[str]:
    """Returns the names of the arms: the fewest settings that tell them apart."""
    trees = [
        leaves(each.model_dump(mode="json", exclude={*_NO_ARM, _SEED}))
        for each in experiments
    ]
    without = [
        {p: v for p, v in tree.items() if not p.endswith(f"_{_SEED}")} for tree in trees
    ]
    seeded = [
        (identity.canonical(tree), each.seed)
        for tree, each in zip(without, experiments, strict=True)
    ]
    if len(set(seeded)) == len(seeded):
        trees = without
    paths = [*dict.fromkeys(path for tree in trees for path in tree)]

    def named(*, of_all: bool) -> list[str]:
        varies = [path for path in paths if _varies(path, trees, of_all=of_all)]
        return [
            " ".join(_setting(p, tree[p]) for p in varies if p in tree) or "all"
            for tree in trees
        ]

    # A setting that only some kinds have names an arm where it differs among them.
    short = named(of_all=False)
    apart = len({identity.canonical(tree) for tree in trees})
    return short if len(set(short)) == apart else named(of_all=True)


def _varies(path: str, trees: Sequence[dict[str, Any]], *, of_all: bool) -> bool:
    """Returns whether a setting differs among those that have it, or among all."""
    values = {json.dumps(tree[path]) for tree in trees if path in tree}
    return len(values) > 1 or (of_all and any(path not in tree for tree in trees))


def _setting(path: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{path.removesuffix('.kind')}={text}"
