"""Checkpoints: orbax, behind a guard.

One checkpoint holds the whole train state: parameters, optimizer, schedule, statistics,
loss scale, key, and the number of steps, which is the position in the data. It is
written in the background and appears under its name by an atomic rename: at any moment
a process may be killed, and the folder holds whole checkpoints only.

    restored = restore(folder, init_state(...))
    with saving(folder, restored.step if restored else 0) as save:
        train(dispatch, state, cadence, Hooks(fetch, save=save))
"""

import contextlib
import errno
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from adaprec_jax.train import guard
from adaprec_jax.train.guard import Arrays, CheckpointError, Leaf

_OVERHEAD = 4096  # bytes on disk for an array beside its numbers, at most


class Restored(NamedTuple):
    """A state that was read.

    Attributes:
        step: Under which it was saved.
        state: The state, equal to the bit to the one that was saved.
        refused: A sentence for each later checkpoint that was damaged, for the user.
    """

    step: int
    state: PyTree
    refused: tuple[str, ...]


@contextlib.contextmanager
def saving(
    directory: Path, step: int, *, keep: int = 2
) -> Iterator[Callable[[int, PyTree], None]]:
    """Yields `save(step, state)`, which returns as soon as the state is copied.

    One checkpoint is written at a time: a second `save`, or the end of the block, waits
    for the first, and raises what went wrong with it.

    Args:
        directory: The folder; it is made if need be.
        step: Where the run goes on from. Checkpoints of later steps are removed: the
            run will take these steps again.
        keep: How many checkpoints stay.

    Raises:
        CheckpointError: The folder cannot be written or is full. What is in it stays.
    """
    with _explained(f"Cannot write checkpoints to {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass  # Only to see whether it can be made.
        manager = _manager(directory, read_only=False, keep=keep)
        for later in manager.all_steps():
            if later > step:
                manager.delete(later)
    writing: list[Future[None]] = []

    def wait() -> None:
        while writing:
            writing.pop().result()

    def save(step: int, state: PyTree) -> None:
        wait()
        leaves, arrays = guard.leaves_of(state), guard.snapshot(state)
        writing.append(thread.submit(_write, manager, directory, step, leaves, arrays))

    with contextlib.closing(manager), ThreadPoolExecutor(1) as thread:
        try:
            yield save
        finally:
            wait()


def restore(
    directory: Path, template: PyTree, *, at_most: int | None = None
) -> Restored | None:
    """Returns the last checkpoint that is whole, None if there never was one.

    Args:
        directory: The folder; it need not exist.
        template: A first state of the same run, such as `init_state` returns.
        at_most: The last step that counts; if all are later, there is none.

    Raises:
        CheckpointError: The state was saved by another model, or in other dtypes; or
            there are checkpoints and every one is damaged.
    """
    if not directory.is_dir():
        return None
    wanted = guard.leaves_of(template)
    refused: list[str] = []
    with _quiet():
        manager = _manager(directory, read_only=True)
        with contextlib.closing(manager):
            steps = manager.all_steps()
            if at_most is not None:
                steps = [step for step in steps if step <= at_most]
            for step in sorted(steps, reverse=True):
                try:
                    arrays = _read(manager, step, wanted)
                except CheckpointError:
                    raise
                except Exception as error:  # whatever reading broken files may raise
                    name = f"the checkpoint of step {step} in {directory}"
                    refused.append(f"{name} is damaged ({_summary(error)})")
                    continue
                state = guard.assemble(arrays, template)
                return Restored(step, state, tuple(refused))
    if refused:
        raise CheckpointError(f"No checkpoint can be used: {'; '.join(refused)}.")
    return None


def damages(directory: Path) -> dict[int, str]:
    """Returns what is wrong with each checkpoint of a folder, by step; "" if nothing.

    All bytes are read and compared with their digests; no model is needed.

    Args:
        directory: The folder; it need not exist.
    """
    found: dict[int, str] = {}
    if not directory.is_dir():
        return found
    with _quiet():
        manager = _manager(directory, read_only=True)
        with contextlib.closing(manager):
            for step in sorted(manager.all_steps()):
                try:
                    _read(manager, step, None)
                    found[step] = ""
                except Exception as error:  # whatever reading broken files may raise
                    found[step] = _summary(error)
    return found


def _manager(directory: Path, *, read_only: bool, keep: int | None = None) -> Any:
    import orbax.checkpoint as ocp  # Slow to import.

    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
    options = ocp.CheckpointManagerOptions(
        # A process reads and writes for itself, whether or not there are others.
        multiprocessing_options=alone,
        max_to_keep=keep,
        read_only=read_only,
        create=False,
        enable_async_checkpointing=False,  # A thread of ours makes the digests, too.
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


def _write(
    manager: Any, directory: Path, step: int, leaves: dict[str, Leaf], arrays: Arrays
) -> None:
    import orbax.checkpoint as ocp

    # Orbax has no place for arrays without elements.
    stored = {name: array for name, array in arrays.items() if array.size}
    with _explained(f"Cannot write the checkpoint of step {step} to {directory}"):
        _check_space(directory, stored)
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(stored),
                guard=ocp.args.JsonSave(guard.manifest(leaves, arrays)),
            ),
            force=True,
        )


def _check_space(directory: Path, arrays: Arrays) -> None:
    """Refuses a disk that is too full, before each thread of orbax says so itself."""
    needed = sum(array.nbytes + _OVERHEAD for array in arrays.values())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free:,} bytes are free, {needed:,} needed")


def _read(manager: Any, step: int, wanted: dict[str, Leaf] | None) -> Arrays:
    """Returns the arrays of a checkpoint, checked before and after reading.

    Without a template (None) nothing is compared before.

    Raises:
        CheckpointError: It is of another model.
        Exception: It is damaged.
    """
    import orbax.checkpoint as ocp

    item = manager.restore(step, args=ocp.args.Composite(guard=ocp.args.JsonRestore()))
    stored, digests = guard.read_manifest(item["guard"])
    if wanted and (difference := guard.first_difference(stored, wanted)):
        raise CheckpointError(
            f"The checkpoint of step {step} is of another model or dtype: {difference}."
        )
    layout = {name: guard.storage(leaf) for name, leaf in stored.items()}
    layout = {name: array for name, array in layout.items() if array.size}
    args = ocp.args.Composite(state=ocp.args.StandardRestore(layout))
    arrays = manager.restore(step, args=args)["state"]
    digests = {name: digest for name, digest in digests.items() if name in layout}
    if damaged := guard.first_damaged(arrays, digests):
        raise ValueError(f"the bytes of {damaged} are not those that were saved")
    return arrays


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns whatever the block raises into one sentence."""
    try:
        with _quiet():
            yield
    except Exception as error:  # Orbax reports a full disk as a ValueError, too.
        raise CheckpointError(
            f"{what} ({_summary(error)}); what was there is kept."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from the user what orbax logs about an error that we report."""
    logger = logging.getLogger("absl")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _summary(error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError) and error.strerror:
        line = error.strerror
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-90:]}"
