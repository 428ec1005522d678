"""Options of a run in several processes, and how they meet and part."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, NamedTuple, TypeAlias

import typer

from adaprec_jax.runs.errors import InputError

Coordinator: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Of a run in several processes: where process 0 is reached.",
    ),
]
ProcessId: TypeAlias = Annotated[
    int | None, typer.Option(help="Which of them this is, from 0.")
]
Processes: TypeAlias = Annotated[int | None, typer.Option(help="How many there are.")]

_SECONDS = 60  # for which a process that does not answer is waited for
_FAILED = 3  # the exit code of a run that failed


class Place(NamedTuple):
    """Which process this is.

    Attributes:
        coordinator: Where process 0 is reached.
        process: Its number.
        processes: How many there are.
    """

    coordinator: str
    process: int
    processes: int


def place(
    coordinator: str | None, process_id: int | None, processes: int | None
) -> Place | None:
    """Returns which process of a run this is, None if it is the only one.

    Raises:
        InputError: The options do not say so.
    """
    if coordinator is None and process_id is None and processes is None:
        return None
    if coordinator is None or process_id is None or processes is None:
        raise InputError(
            "A run in several processes needs all of --coordinator, --process-id and "
            "--processes."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator must be HOST:PORT, got {coordinator}.")
    if not 0 <= process_id < processes:
        raise InputError(
            f"--process-id must lie in 0 to {processes - 1}, got {process_id}."
        )
    return Place(coordinator, process_id, processes)


def leads(where: Place | None) -> bool:
    """Returns whether this process writes the run's directory, and speaks for all."""
    return where is None or where.process == 0


@contextlib.contextmanager
def joined(where: Place | None) -> Iterator[None]:
    """Joins the processes of a run around the block, and leaves them in order.

    A process that has failed leaves at once: the others then see that it is gone, and
    need not wait for it.

    Raises:
        InputError: They do not all come.
    """
    if where is None:
        yield
        return
    # Libraries in C++ say on the standard output to whom they are connected.
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import jax

    try:
        jax.distributed.initialize(
            where.coordinator, where.processes, where.process,
            initialization_timeout=_SECONDS,
            heartbeat_timeout_seconds=_SECONDS, shutdown_timeout_seconds=_SECONDS,
            cluster_detection_method="deactivate",
        )  # fmt: skip
    except RuntimeError as error:
        raise InputError(
            f"Not all of the {where.processes} processes came to {where.coordinator} "
            f"within {_SECONDS} s."
        ) from error
    try:
        yield
    except typer.Exit as ended:
        if ended.exit_code == _FAILED:
            _leave(_FAILED)
        jax.distributed.shutdown()
        raise
    except InputError as error:
        for fault in error.args:
            sys.stderr.write(f"adaprec: {fault}\n")
        _leave(2)
    except BaseException:
        traceback.print_exc()
        _leave(1)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
