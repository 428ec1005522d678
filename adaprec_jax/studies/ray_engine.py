"""The engine for a Ray cluster: plain tasks that call the function of every worker.

The folder of runs lies on storage that all nodes share. A task whose process or node
dies is begun again by Ray, where the run's last checkpoint is. Each task has a process
of its own, as on one machine. It needs `pip install 'adaprec-jax[ray]'`.
"""

import collections
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies import worker
from adaprec_jax.studies.local import Hooks, called
from adaprec_jax.studies.study import Cell

_RETRIES = 3  # tasks of a run that may be lost with their nodes
_POLL = 0.5  # seconds


def check() -> None:
    """Refuses a machine without Ray.

    Raises:
        InputError: It is not installed, or cannot be imported.
    """
    _ray()


def train(
    packs: Sequence[Sequence[Cell]],
    out: Path,
    address: str | None,
    hooks: Hooks,
) -> dict[str, str]:
    """Trains runs and packs on a cluster until all have ended.

    A pack that fails is trained run by run.

    Args:
        packs: The cells of each task.
        out: The folder of runs, on storage that all nodes share.
        address: Of the cluster, "auto" for the one that this machine belongs to; None
            begins one on this machine.
        hooks: What is told.

    Returns:
        Why a run could not begin or go on, by id, for those that could not.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    ray = _ray()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise InputError(f"There is no Ray cluster at {address}: {reason}.") from error
    task = ray.remote(max_retries=_RETRIES, max_calls=1, num_cpus=1)(worker.attempt)
    waiting = collections.deque([*pack] for pack in packs)
    working: dict[Any, list[Cell]] = {}
    faults: dict[str, str] = {}
    while waiting or working:
        while waiting:
            cells = waiting.popleft()
            line = worker.order(out.resolve(), [cell.experiment for cell in cells])
            working[task.remote(line)] = cells
        done, _ = ray.wait([*working], num_returns=1, timeout=_POLL)
        for each in done:
            cells = working.pop(each)
            code, fault = _result(ray, each)
            if code in (0, worker.STOPPED):
                hooks.ended(cells)
            elif len(cells) > 1:
                hooks.say(f"{called(cells)} failed together; each is trained alone")
                waiting.extend([cell] for cell in cells)
            elif code == worker.FAILED:
                hooks.ended(cells)
            else:
                faults[cells[0].run_id] = fault
        hooks.tick([cell for cells in working.values() for cell in cells])
    return faults


def _result(ray: ModuleType, task: Any) -> tuple[int, str]:
    """Returns what `attempt` returned, or why it could not."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        reason = (str(error).splitlines() or [""])[0]
        return worker.USAGE, f"{type(error).__name__}: {reason}"


def _ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise InputError(
            "--engine ray needs Ray, which is not installed: "
            "pip install 'adaprec-jax[ray]'."
        ) from error
    except Exception as error:  # As beside amdsmi where there is no ROCm.
        raise InputError(
            f"--engine ray: Ray cannot be imported, {type(error).__name__}: {error}."
        ) from error
