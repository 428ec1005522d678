"""The run directory: the one truth about a run.

    config.json        the resolved experiment; never changed
    environment.json   the run's id, its data, and where and when it was worked on
    status.json        how it ended; absent while it runs and after it was killed
    metrics.jsonl      see `adaprec_jax.runs.metrics`
    plans.jsonl        the formats that were in force; see `adaprec_jax.runs.plan_log`
    cost.json          what `adaprec cost` says of it, once it is over
    checkpoints/       see `adaprec_jax.train.checkpoint`
    log.txt            what was said
    pack.json          the ids of the runs that it trains together with, if it does

A run is over when its status was put in place by an atomic rename. The process that
works on it holds a lock that the kernel drops when the process dies, so nothing has to
be cleaned up after it, and the state of a run is computed, never stored.
"""

import contextlib
import datetime
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter, ValidationError

from adaprec_jax.runs import environment, identity
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.environment import Environment
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.runs.load import from_json
from adaprec_jax.runs.overrides import leaves
from adaprec_jax.runs.wording import about

CONFIG, ENVIRONMENT, STATUS = "config.json", "environment.json", "status.json"
METRICS, CHECKPOINTS, LOG = "metrics.jsonl", "checkpoints", "log.txt"
COST = "cost.json"
PACK = "pack.json"
_LOCK = ".lock"

End: TypeAlias = Literal["done", "diverged", "failed", "interrupted"]
State: TypeAlias = Literal["new", "running"] | End
RunId: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{12}$")]


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        state: "done": all steps were taken. "diverged": a stop rule ended it, which is
            a result, too. "failed": an error did. "interrupted": the user did.
        step: How many steps were completed.
        results: The final numbers by name, for instance "test/accuracy".
        message: Why it ended, if before its last step, and where that began.
    """

    state: End
    step: int
    results: dict[str, float]
    message: str = ""


class Over(NamedTuple):
    """A run that is over, and what changed in the environment since."""

    outcome: Outcome
    changes: tuple[str, ...]


class Record(NamedTuple):
    """What `environment.json` holds.

    Attributes:
        run_id: The id of the run.
        data: Fingerprint of its examples.
        sessions: The environment each time that it was worked on, and when that began.
    """

    run_id: str
    data: str
    sessions: list[dict[str, Any]]


class _Pack(NamedTuple):
    """What `pack.json` holds."""

    members: tuple[RunId, ...]


_Kind = TypeVar("_Kind")


def locate(out: Path, experiment: Experiment) -> Path:
    """Returns the run's directory in the folder `out`, whether or not it exists.

    A run that was begun under another name is found by its id.
    """
    run_id = identity.run_id(experiment)
    existing = sorted(out.glob(f"*-{run_id}"))
    return existing[0] if existing else out / f"{experiment.name}-{run_id}"


def find(run: str, out: Path) -> Path:
    """Returns the directory of an existing run.

    Args:
        run: A path or the beginning of one, or the beginning of the name or of the id
            of a run in `out`.
        out: The folder of runs.

    Raises:
        InputError: No run is meant, or several are.
    """
    if (Path(run) / CONFIG).is_file():
        return Path(run)
    out, run = (Path(run).parent, Path(run).name) if "/" in run else (out, run)
    runs = [path.parent for path in sorted(out.glob(f"*/{CONFIG}"))]
    meant = [
        path
        for path in runs
        if run
        and any(name.startswith(run) for name in (path.name, path.name.split("-")[-1]))
    ]
    if len(meant) == 1:
        return meant[0]
    names = [path.name for path in meant or runs]
    among = ", ".join(names[:8]) + (f" and {len(names) - 8} more" * (len(names) > 8))
    raise InputError(
        f"{run!r} means {len(meant) or 'no'} runs in {out}; "
        f"there are {among or 'none'}."
    )


def state(directory: Path) -> State:
    """Returns the state of the run, from what its directory holds."""
    if not (directory / CONFIG).is_file():
        return "new"
    if _is_held(directory):
        return "running"
    ended = outcome(directory)
    return ended.state if ended else "interrupted"


def outcome(directory: Path) -> Outcome | None:
    """Returns how the run ended, None if it has not or was killed."""
    path = directory / STATUS
    return _read(path, Outcome) if path.is_file() else None


def pack_of(directory: Path) -> tuple[str, ...]:
    """Returns the ids of the runs that a run was last trained with, () if alone.

    Raises:
        InputError: The file that says so is damaged.
    """
    path = directory / PACK
    return _read(path, _Pack).members if path.is_file() else ()


def checkpoints_of(directory: Path) -> list[int]:
    """Returns the steps of which a run has a checkpoint, rising."""
    folder = directory / CHECKPOINTS
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def is_over(state: State) -> bool:
    """Returns whether nothing is left to do: divergence is a result, too."""
    return state in ("done", "diverged")


def id_of(directory: Path) -> str:
    """Returns the id of an existing run, as it was when the run began."""
    return record(directory).run_id


def experiment_of(directory: Path) -> Experiment:
    """Returns the experiment of an existing run.

    Raises:
        InputError: The config cannot be read, or is not the one the run began with.
    """
    experiment = from_json(directory / CONFIG)
    recorded, now = record(directory).run_id, identity.run_id(experiment)
    if recorded != now:
        raise InputError(
            f"{directory / CONFIG}, or code that it imports, was changed after the "
            f"run began: its id was {recorded} and would now be {now}. What runs now "
            "is another run; `adaprec run` begins it."
        )
    return experiment


def over(directory: Path) -> Over | None:
    """Returns how a run ended in whose directory nothing is left to do, else None.

    Raises:
        InputError: As `experiment_of`.
    """
    ended = outcome(directory)
    if ended is None or not is_over(ended.state):
        return None
    experiment_of(directory)
    return Over(ended, changes(directory, environment.code()))


def check_writable(out: Path) -> None:
    """Makes the folder of runs if need be, and tries to write there.

    Raises:
        InputError: It cannot be written, or is full.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(bytes(4096))


def changes(directory: Path, now: Environment) -> tuple[str, ...]:
    """Returns what changed in the environment since the run was last worked on."""
    sessions = record(directory).sessions
    return tuple(environment.differences(sessions[-1], now)) if sessions else ()


def check_free(directory: Path) -> None:
    """Refuses a run that another process works on.

    Raises:
        InputError: Its lock is held.
    """
    if _is_held(directory):
        raise _in_use(directory)


@contextlib.contextmanager
def session(
    directory: Path, experiment: Experiment, now: Environment, data: str
) -> Iterator[tuple[str, ...]]:
    """Holds the run while the block works on it, and writes what it begins with.

    Args:
        directory: What `locate` returned.
        experiment: The run's experiment.
        now: What `adaprec_jax.runs.environment.capture` returned.
        data: Fingerprint of the examples.

    Yields:
        What changed in the environment since the run was last worked on; to be told to
        the user, because the run then mixes two environments.

    Raises:
        InputError: The directory cannot be written, is in use by another process,
            holds a run with other settings or other data, or one that is over.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        changed: tuple[str, ...] = ()
        begun = Record(identity.run_id(experiment), data, sessions=[])
        is_new = not (directory / CONFIG).is_file()
        if not is_new:
            _check_drift(directory, experiment)
            _check_not_over(directory)
            begun, changed = record(directory), changes(directory, now)
            if begun.data != data:
                raise InputError(
                    f"The run in {directory} began with other data: its fingerprint "
                    f"was {begun.data}, and is now {data}."
                )
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        begun.sessions.append({"began": began, **now})
        write_json(directory / ENVIRONMENT, begun._asdict())
        if is_new:  # Last: a directory with a config is a run, and has the rest.
            write_json(directory / CONFIG, experiment.model_dump(mode="json"))
        with writing(directory):
            (directory / STATUS).unlink(missing_ok=True)
        yield changed


def finish(directory: Path, outcome: Outcome) -> None:
    """Records how the run ended; to be called within its session.

    Raises:
        InputError: The directory cannot be written.
    """
    write_json(directory / STATUS, outcome._asdict())


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    lock = FileLock(directory / _LOCK)
    with writing(directory):
        try:
            lock.acquire(timeout=1)  # Somebody may be asking for the state.
        except Timeout as error:
            raise _in_use(directory) from error
    try:
        yield
    finally:
        lock.release()


def _in_use(directory: Path) -> InputError:
    return InputError(f"{directory} is in use by another process.")


def _is_held(directory: Path) -> bool:
    if not (directory / _LOCK).exists():
        return False
    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # Read only, such as a published run.
        return False
    lock.release()
    return False


def record(directory: Path) -> Record:
    """Returns id, data and environments of an existing run.

    Raises:
        InputError: They cannot be read.
    """
    return _read(directory / ENVIRONMENT, Record)


def _check_drift(directory: Path, experiment: Experiment) -> None:
    """Refuses settings other than those in the directory."""
    there = leaves(identity.deciding(from_json(directory / CONFIG)))
    here = leaves(identity.deciding(experiment))
    drifted = [
        f"{path} is {there.get(path)} there and {here.get(path)} here"
        for path in there | here
        if there.get(path) != here.get(path)
    ]
    if drifted:
        raise InputError(
            f"{directory} holds a run with other settings: {'; '.join(drifted)}."
        )


def _check_not_over(directory: Path) -> None:
    ended = outcome(directory)
    if ended and is_over(ended.state):
        raise InputError(f"{directory} holds a run that is already {ended.state}.")


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    try:
        return _adapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} is missing: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is damaged: {about(where, first)}.") from error


@functools.cache
def _adapter(kind: type[Any]) -> Any:
    """Returns what reads a kind; it takes longer to make than to use."""
    return TypeAdapter(kind)


def write_json(path: Path, tree: Any) -> None:
    """Writes JSON so that the file is at any time the old or the new one, whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(tree, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
