"""Metrics in Weights & Biases, under the id of the run; needs the extra `wandb`.

Offline, where nobody is logged in or `WANDB_MODE=offline` says so, the recording is
made anew in each session from the run's own rows; `wandb sync` sends it. Online, the
run of that id goes on after the last step that it has. Project and account are those of
`WANDB_PROJECT` (else adaprec) and of `wandb login`.
"""

import importlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from adaprec_jax.runs import store
from adaprec_jax.runs.sinks import Sink
from adaprec_jax.runs.trackers.tracker import (
    Row,
    Tracker,
    history,
    in_background,
    settings,
)


def sink(directory: Path, start: int, folder: str = "") -> Sink:
    """Returns a sink that sends to W&B, or records for it.

    Args:
        directory: Of the run.
        start: The step that the run goes on from.
        folder: In which W&B makes its folder `wandb`; if none is named, it is the
            run's directory.
    """
    where = Path(folder) if folder else directory
    return in_background(lambda: _opened(directory, where), history(directory, start))


def _opened(directory: Path, where: Path) -> Tracker:
    wandb = importlib.import_module("wandb")
    mode = os.environ.get("WANDB_MODE")
    if not mode:  # Never asks for a key: nobody may be there to type one.
        known = wandb.login(prompt=False, verify=False)
        mode = "online" if known else "offline"
    run_id, config = store.id_of(directory), settings(directory)
    where.mkdir(parents=True, exist_ok=True)
    if mode == "offline":
        for before in (where / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(before)
    run = wandb.init(
        id=run_id,
        name=directory.name,
        project=os.environ.get("WANDB_PROJECT", "adaprec"),
        dir=str(where),
        config=config,
        mode=mode,
        resume=None if mode == "offline" else "allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    first, last = run.step, 0

    def write(rows: Sequence[Row]) -> None:
        nonlocal last
        for step, values in rows:
            last = step
            if step >= first:
                run.log(dict(values), step=step)

    def close() -> None:
        run.finish(exit_code=0 if last == config["steps"] else 1)

    return Tracker(write, close)
