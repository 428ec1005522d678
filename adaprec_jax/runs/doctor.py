"""What is wrong with run directories, without changing anything in them.

A directory is read as whoever goes on with it or gathers results from it would: config
and record, state, metrics, plans. Imports no JAX, but to read checkpoints.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from adaprec_jax.runs import environment, identity, metrics, store
from adaprec_jax.runs.errors import InputError

# In which sessions of one environment may differ.
_OF_SESSION = ("began", "pack")
_PLANS = "plans.jsonl"  # of `plan_log`, which imports JAX


class Patient(NamedTuple):
    """A run directory, and what was found.

    Attributes:
        directory: Of the run.
        state: As `adaprec_jax.runs.store.state` has it, "unknown" if it is damaged.
        environment: The class of the environment that it was last worked on in.
        wrong: One sentence for each thing that is.
    """

    directory: Path
    state: str
    environment: str
    wrong: tuple[str, ...]


def here() -> dict[str, Any]:
    """Returns versions, processor, commit, and the flags that JAX would read."""
    flags = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("XLA_", "JAX_", "LIBTPU_", "TPU_"))
        or name == "CUDA_VISIBLE_DEVICES"
    }
    return {**environment.code(), "flags": flags}


def environment_class(session: dict[str, Any]) -> str:
    """Returns a short name of an environment; equal ones have the same.

    >>> environment_class({"jax": "1", "began": "a"}) == environment_class({"jax": "1"})
    True
    """
    kept = {name: value for name, value in session.items() if name not in _OF_SESSION}
    return hashlib.sha256(identity.canonical(kept).encode()).hexdigest()[:8]


def examine(directory: Path, *, checkpoints: bool = False) -> Patient:
    """Returns what is wrong with a run.

    Args:
        directory: Of the run.
        checkpoints: Whether all bytes of its checkpoints are read; it imports JAX.
    """
    wrong: list[str] = []
    state, known = "unknown", ""
    with _told(wrong):
        state = store.state(directory)
    with _told(wrong):
        sessions = store.record(directory).sessions
        known = environment_class(sessions[-1]) if sessions else ""
    with _told(wrong):
        store.experiment_of(directory)
    wrong += _stale(directory, state)
    if state == "running":  # What it is writing may be half there.
        return Patient(directory, state, known, tuple(wrong))
    with _told(wrong):
        _check_metrics(directory, state)
    with _told(wrong):
        _check_plans(directory / _PLANS)
    if checkpoints:
        wrong += _damaged(directory / store.CHECKPOINTS)
    return Patient(directory, state, known, tuple(wrong))


def folders(out: Path) -> list[Path]:
    """Returns the directories in a folder that are those of runs, or were to be.

    Args:
        out: The folder; it need not exist.
    """
    if not out.is_dir():
        return []
    names = (store.CONFIG, store.ENVIRONMENT, store.METRICS, store.STATUS)
    return [
        path
        for path in sorted(out.iterdir())
        if path.is_dir() and any((path / name).is_file() for name in names)
    ]


def _stale(directory: Path, state: str) -> Iterator[str]:
    """Yields what processes that were killed have left."""
    if not (directory / store.CONFIG).is_file():
        yield (
            f"{directory} has no {store.CONFIG}: it was killed while it began, or the "
            "file was lost; `adaprec run` begins anew."
        )
    elif state == "interrupted" and not (directory / store.STATUS).is_file():
        yield (
            f"{directory} says nothing of its end and nobody works on it: it was "
            f"killed; `adaprec resume {directory}` goes on."
        )
    if state != "running":
        for path in sorted(directory.glob("*.tmp")):
            yield f"{path} is left from a write that was killed; it can be deleted."
        for path in sorted(
            (directory / store.CHECKPOINTS).glob("*orbax-checkpoint-tmp*")
        ):
            yield f"{path} is left from a save that was killed; it can be deleted."


def _check_metrics(directory: Path, state: str) -> None:
    """Reads all metrics.

    Raises:
        InputError: They are damaged, or end before the run did.
    """
    path = directory / store.METRICS
    if not path.is_file():
        if store.outcome(directory) is None:
            return
        raise InputError(f"{path} is missing.")
    columns = metrics.read(path)
    if state != "done":
        return
    ended = store.outcome(directory)
    last = max((step for column in columns.values() for step in column), default=0)
    every = store.experiment_of(directory).log_every
    if ended and last < ended.step - ended.step % every:
        raise InputError(f"{path} ends at step {last}, but the run at {ended.step}.")


def _check_plans(path: Path) -> None:
    """Reads all plans; a torn last line is none.

    Raises:
        InputError: A line is damaged.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} is damaged at line {number}.") from error


def _damaged(folder: Path) -> list[str]:
    if "jax" not in sys.modules:  # Reading needs no device, and takes none.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from adaprec_jax.train.checkpoint import damages

    return [
        f"The checkpoint of step {step} in {folder} is damaged ({why})."
        for step, why in damages(folder).items()
        if why
    ]


@contextlib.contextmanager
def _told(wrong: list[str]) -> Iterator[None]:
    """Notes what the block refuses, each sentence once."""
    try:
        yield
    except InputError as error:
        wrong.extend(each for each in map(str, error.args) if each not in wrong)
    except OSError as error:
        wrong.append(f"Cannot read {error.filename}: {error.strerror}.")
