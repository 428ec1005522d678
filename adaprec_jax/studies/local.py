"""The engine for one machine: a process per run or pack, several at a time.

What is done is known from the run directories alone, so a driver that was killed has
lost nothing: typed again, it trains what is missing. A run that another process works
on is waited for. A worker that dies is begun again where its last checkpoint is, twice.
"""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from adaprec_jax.runs import store
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.leaving import leave
from adaprec_jax.studies import worker
from adaprec_jax.studies.study import Cell

_POLL = 0.1  # seconds between two looks at the workers
_LIVES = 3  # workers that a job may lose
_IN_USE = "is in use by another process."
_COMMAND = (sys.executable, "-P", "-m", worker.__name__)


class Job(NamedTuple):
    """What one worker does.

    Attributes:
        cells: The runs; several are one pack.
        deaths: Workers that died of it so far.
    """

    cells: tuple[Cell, ...]
    deaths: int = 0


class Hooks(NamedTuple):
    """What the engine tells of.

    Attributes:
        ended: Called with the cells of a job whose worker has ended.
        tick: Called often, with the cells that are being trained.
        say: Told what else there is to know.
    """

    ended: Callable[[Sequence[Cell]], None]
    tick: Callable[[Sequence[Cell]], None]
    say: Callable[[str], None]


class _Worker(NamedTuple):
    job: Job
    process: subprocess.Popen[str]
    errors: IO[str]


class _Queue(NamedTuple):
    """What waits, what is being worked on, and why some cannot go on, by id."""

    waiting: collections.deque[Job]
    working: list[_Worker]
    faults: dict[str, str]


def train(
    packs: Sequence[Sequence[Cell]],
    directories: dict[str, Path],
    out: Path,
    workers: int,
    hooks: Hooks,
) -> dict[str, str]:
    """Trains runs and packs, `workers` at a time, until all have ended.

    Ctrl-C stops the workers with a checkpoint each; twice, at once.

    Args:
        packs: The cells of each process.
        directories: Of the runs, by id.
        out: The folder of runs.
        workers: How many processes work at a time.
        hooks: What is told.

    Returns:
        Why a run could not begin or go on, by id, for those that could not.
    """
    queue = _Queue(collections.deque(Job(tuple(pack)) for pack in packs), [], {})
    with _asked_to_stop(queue.working) as asked:
        while queue.working or (queue.waiting and not asked()):
            for _ in range(len(queue.waiting)):
                if len(queue.working) >= workers or asked():
                    break
                job = _left(queue.waiting.popleft(), directories)
                if _is_held(job, directories):
                    queue.waiting.append(job)
                elif job.cells:
                    queue.working.append(_start(job, out, workers))
            time.sleep(_POLL)
            for done in [w for w in queue.working if w.process.poll() is not None]:
                queue.working.remove(done)
                _end(queue, done, hooks, stopped=asked())
            hooks.tick([cell for each in queue.working for cell in each.job.cells])
    return queue.faults


def obey(line: str) -> None:
    """Has a process of its own do what a line says, and waits for it.

    What needs JAX for a moment must not keep a device from those that train.

    Args:
        line: What `worker.order_branches` returned.

    Raises:
        InputError: It could not; what the process said.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = _begun(line, errors, 1)
        code = process.wait()
        _close(process)
        if code:
            raise InputError(_last_line(errors))


def _end(queue: _Queue, done: _Worker, hooks: Hooks, *, stopped: bool) -> None:
    """Puts back what a worker left undone, or tells of its end."""
    cells, code = done.job.cells, done.process.returncode
    fault = _last_line(done.errors)
    _close(done.process)
    if code in (0, worker.STOPPED) or stopped:
        hooks.ended(cells)
    elif code == worker.USAGE and fault.endswith(_IN_USE):
        queue.waiting.append(done.job)
    elif code < 0:
        died = f"its process died of {signal.Signals(-code).name}"
        again = done.job._replace(deaths=done.job.deaths + 1)
        if again.deaths < _LIVES:
            hooks.say(f"{called(cells)}: {died}; it goes on")
            queue.waiting.appendleft(again)
        elif len(cells) > 1:  # Its memory may be too large.
            hooks.say(f"{called(cells)}: {died} again; each is trained alone")
            queue.waiting.extend(Job((cell,)) for cell in cells)
        else:
            queue.faults.update({c.run_id: f"{died}, {_LIVES} times" for c in cells})
    elif len(cells) > 1:
        hooks.say(f"{called(cells)} failed together; each is trained alone")
        queue.waiting.extend(Job((cell,)) for cell in cells)
    elif code == worker.FAILED:
        hooks.ended(cells)
    else:
        queue.faults.update({cell.run_id: fault for cell in cells})


def _is_held(job: Job, directories: dict[str, Path]) -> bool:
    """Returns whether another process works on a run of the job."""
    states = (store.state(directories[cell.run_id]) for cell in job.cells)
    return "running" in states


def _left(job: Job, directories: dict[str, Path]) -> Job:
    """Returns the job without what somebody else has finished meanwhile."""
    cells = [
        cell
        for cell in job.cells
        if not store.is_over(store.state(directories[cell.run_id]))
    ]
    return job._replace(cells=tuple(cells))


def _start(job: Job, out: Path, workers: int) -> _Worker:
    errors = tempfile.TemporaryFile(  # noqa: SIM115 (closed when the worker ends)
        "w+", encoding="utf-8", errors="replace"
    )
    line = worker.order(out, [cell.experiment for cell in job.cells])
    return _Worker(job, _begun(line, errors, workers), errors)


def _begun(line: str, errors: IO[str], workers: int) -> subprocess.Popen[str]:
    """Returns a process that does what a line says."""
    process = subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        env=_environment(workers),
        start_new_session=True,  # Ctrl-C is for the driver, which passes it on.
    )
    with contextlib.suppress(BrokenPipeError):  # It died; its exit code says so.
        stdin: Any = process.stdin
        stdin.write(line)
        stdin.flush()  # and stays open, as a sign of life
    return process


def _environment(workers: int) -> dict[str, str]:
    """Returns the variables of a worker: together they use the memory of one."""
    own = dict(os.environ)
    if workers > 1:
        own.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / workers:.3f}")
    return own


def _close(process: subprocess.Popen[str]) -> None:
    """Closes the input of a process that has ended."""
    with contextlib.suppress(BrokenPipeError):
        if process.stdin:
            process.stdin.close()


def _last_line(errors: IO[str]) -> str:
    """Returns what a worker said last: its fault, or where it broke."""
    with errors:
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    return lines[-1] if lines else "its process ended without a word."


def called(cells: Sequence[Cell]) -> str:
    """Returns what a job is called, for people."""
    first = cells[0]
    named = f"{first.experiment.name} with seed {first.seed}"
    return named if len(cells) == 1 else f"{named} and {len(cells) - 1} more"


@contextlib.contextmanager
def _asked_to_stop(working: list[_Worker]) -> Iterator[Callable[[], bool]]:
    """Yields whether the user wants to stop; the workers are told of it at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            for each in working:
                each.process.kill()
            leave(number, frame)
        asked.append(number)
        for each in working:
            each.process.terminate()
        sys.stderr.write(
            "adaprec: stops, with a checkpoint of each run; Ctrl-C again stops at "
            "once.\n"
        )

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in signals]
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
