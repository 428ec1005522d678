"""The engine for Slurm: an array of jobs, through submitit.

Each job calls the function of every worker. The folder of runs lies on storage that all
nodes share. A job that was lost is not begun again by itself: the sweep typed again
submits what is missing. It needs `pip install 'adaprec-jax[slurm]'`.
"""

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies import worker
from adaprec_jax.studies.local import Hooks
from adaprec_jax.studies.study import Cell

_FOLDER = ".slurm"  # in the folder of runs: scripts and logs of the jobs
_POLL = 1.0  # seconds


def check() -> None:
    """Refuses a machine without submitit.

    Raises:
        InputError: It is not installed.
    """
    _submitit()


def train(
    packs: Sequence[Sequence[Cell]],
    out: Path,
    workers: int,
    cluster: str | None,
    hooks: Hooks,
) -> dict[str, str]:
    """Submits runs and packs as an array of jobs, and waits until all have ended.

    Args:
        packs: The cells of each job.
        out: The folder of runs, on storage that all nodes share.
        workers: How many jobs work at a time.
        cluster: As submitit calls it: "slurm", or "local" for this machine; None is
            Slurm where there is one.
        hooks: What is told.

    Returns:
        Why a run could not begin or go on, by id, for those that could not.

    Raises:
        InputError: submitit is not installed, or cannot submit.
    """
    submitit = _submitit()
    lines = [
        worker.order(out.resolve(), [cell.experiment for cell in cells])
        for cells in packs
    ]
    try:
        executor = submitit.AutoExecutor(
            folder=out.resolve() / _FOLDER, cluster=cluster
        )
        if executor.cluster == "slurm":
            executor.update_parameters(slurm_array_parallelism=workers)
        jobs = executor.map_array(worker.attempt, lines)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise InputError(f"submitit cannot submit: {reason}.") from error
    working: dict[int, Any] = dict(enumerate(jobs))
    faults: dict[str, str] = {}
    while working:
        for k, job in [*working.items()]:
            if not job.done():
                continue
            del working[k]
            code, fault = _result(job)
            if code in (0, worker.FAILED, worker.STOPPED):
                hooks.ended(packs[k])
            else:
                faults.update({cell.run_id: fault for cell in packs[k]})
        hooks.tick([cell for k in working for cell in packs[k]])
        time.sleep(_POLL)
    return faults


def _result(job: Any) -> tuple[int, str]:
    """Returns what `attempt` returned, or why it could not."""
    error = job.exception()
    if error is None:
        return job.result()
    lines = str(error).splitlines() or [""]
    return worker.USAGE, f"the job failed: {lines[-1]}"


def _submitit() -> ModuleType:
    try:
        return importlib.import_module("submitit")
    except ModuleNotFoundError as error:
        raise InputError(
            "--engine slurm needs submitit, which is not installed: "
            "pip install 'adaprec-jax[slurm]'."
        ) from error
