"""One run in several processes, which JAX has joined: each has devices of its own.

All take the same steps. Process 0 alone writes the run's directory; the others work on
a copy of it, without its checkpoints, that is removed when they end.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from adaprec_jax.runs import store
from adaprec_jax.runs.errors import InputError

GONE = "another process of the run has ended, or cannot be reached"


def writes() -> bool:
    """Returns whether this process writes the run's directory."""
    return jax.process_index() == 0


def is_gone(error: Exception) -> bool:
    """Returns whether an error says that another process does not answer."""
    words = ("Gloo", "coordination", "closed by peer", "Socket closed")
    return jax.process_count() > 1 and any(word in str(error) for word in words)


def check_devices(devices: int) -> None:
    """Refuses a run that leaves a process without a device.

    Raises:
        InputError: It does.
    """
    if jax.process_count() > 1 and devices != jax.device_count():
        raise InputError(
            f"devices: {devices} are asked for, and the {jax.process_count()} "
            f"processes have {jax.device_count()} together; all must be used."
        )


@contextlib.contextmanager
def copied(directory: Path) -> Iterator[Path]:
    """Yields a copy of a run's directory, for a process that does not write it."""
    agree(0)  # Process 0 has begun the run.
    left_out = shutil.ignore_patterns(store.CHECKPOINTS, ".lock", "*.tmp")
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, directory.name)
        shutil.copytree(directory, own, ignore=left_out)
        yield own


def agree(step: int) -> None:
    """Waits for the other processes, and checks that they go on from the same step.

    Raises:
        InputError: They found another checkpoint.
    """
    if jax.process_count() == 1:
        return
    try:
        found = multihost_utils.process_allgather(np.int32(step)).ravel()
    except jax.errors.JaxRuntimeError as error:
        raise InputError(GONE.capitalize() + ".") from error
    if (found != step).any():
        each = ", ".join(map(str, found))
        raise InputError(
            f"The processes of the run found checkpoints of steps {each}; they must "
            "share the folder of runs."
        )


def any_of(stop: Callable[[], bool]) -> Callable[[], bool]:
    """Returns whether one of the processes was asked to stop: they stop together."""
    if jax.process_count() == 1:
        return stop
    return lambda: bool(multihost_utils.process_allgather(np.bool_(stop())).any())


def gathering(
    save: Callable[[int, PyTree], None], everywhere: Any
) -> Callable[[int, PyTree], None]:
    """Returns `save` for a state that lies in several processes; process 0 saves it.

    Args:
        save: `(step, state)`.
        everywhere: The sharding of what every device holds a copy of.
    """
    if jax.process_count() == 1:
        return save
    gather = jax.jit(lambda state: state, out_shardings=everywhere)

    def whole(step: int, state: PyTree) -> None:
        gathered = gather(state)
        if writes():
            save(step, gathered)

    return whole
