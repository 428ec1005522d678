"""Branches of a run: directories that begin with one of its checkpoints.

A branch is an ordinary run whose schedule is `forked`: that of its parent, changed
after the step of the checkpoint. Up to there it is its parent, so it is given what the
parent wrote until then, and goes on as a run does that was interrupted. Trained from
its first step, it would come to the same end.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from adaprec_jax.runs import identity, metrics, plan_log, store
from adaprec_jax.runs.build import build, make_schedule
from adaprec_jax.runs.config import Experiment, Forked
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.runs.expected import decay
from adaprec_jax.train import TrainState
from adaprec_jax.train.checkpoint import restore, saving
from adaprec_jax.train.guard import CheckpointError


def begin(
    parent: Path,
    branches: Sequence[Experiment],
    packs: Mapping[str, Sequence[str]],
    out: Path,
) -> None:
    """Writes the directories of those branches that have none, each at once.

    The parent is only read.

    Args:
        parent: Directory of the run.
        branches: With a `forked` schedule, all of one step.
        packs: By the id of a branch, the ids of the runs that it trains together with.
        out: The folder of runs.

    Raises:
        InputError: The checkpoint is not there or is damaged, or a directory cannot be
            written.
    """
    missing = [b for b in branches if not store.locate(out, b).exists()]
    if not missing:
        return
    experiment = store.experiment_of(parent)
    built = build(experiment)
    step = _step(missing[0])
    state = _state(parent, step, jax.jit(built.init)(built.key))
    for each in missing:
        schedule = make_schedule(each.schedule, each.steps, decay(each))
        own = schedule.init(built.program.table)._replace(inner=state.schedule_state)
        own = jax.tree.map(jnp.asarray, own)
        _write(parent, step, each, state._replace(schedule_state=own), packs, out)


def _step(branch: Experiment) -> int:
    schedule = branch.schedule
    if not isinstance(schedule, Forked):
        raise InputError(f"{branch.name} is no branch: its schedule is not forked.")
    return schedule.step


def _state(parent: Path, step: int, first: TrainState) -> TrainState:
    """Returns the state of a run after a step."""
    try:
        found = restore(parent / store.CHECKPOINTS, first, at_most=step)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if found is None or found.step != step:
        said = f": {'; '.join(found.refused)}" if found and found.refused else ""
        raise InputError(f"{parent} has no checkpoint of step {step}{said}.")
    return found.state


def _write(
    parent: Path,
    step: int,
    branch: Experiment,
    state: TrainState,
    packs: Mapping[str, Sequence[str]],
    out: Path,
) -> None:
    """Writes the directory of a branch beside its place, and moves it there."""
    run_id = identity.run_id(branch)
    folder = out / f".fork-{run_id}-{os.getpid()}"
    try:
        with writing(folder):
            folder.mkdir(parents=True)
            for name in (store.METRICS, plan_log.FILE):
                shutil.copyfile(parent / name, folder / name)
        # What lies beyond the checkpoint is the parent's own.
        metrics.start(folder / store.METRICS, step, branch.log_every).close()
        try:
            with saving(folder / store.CHECKPOINTS, step) as save:
                save(step, state)
        except CheckpointError as error:
            raise InputError(str(error)) from error
        if run_id in packs:
            store.write_json(folder / store.PACK, {"members": [*packs[run_id]]})
        begun = store.record(parent)._replace(run_id=run_id)
        store.write_json(folder / store.ENVIRONMENT, begun._asdict())
        store.write_json(folder / store.CONFIG, branch.model_dump(mode="json"))
        target = out / f"{branch.name}-{run_id}"
        with writing(target):
            os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
