"""Metrics in an MLflow store, one of its runs for each of ours; needs extra `mlflow`.

MLflow gives its runs ids of its own, so ours is a tag by which it is found again. What
it has of each metric is asked for when a session begins, and only what follows is sent.
"""

import contextlib
import importlib
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from adaprec_jax.runs import store
from adaprec_jax.runs.overrides import leaves
from adaprec_jax.runs.sinks import Sink
from adaprec_jax.runs.trackers.tracker import (
    Row,
    Tracker,
    history,
    in_background,
    settings,
)

TAG = "adaprec.run_id"
_METRICS, _PARAMS, _LETTERS = 1000, 100, 6000  # that MLflow takes: in a call, of a text


def sink(directory: Path, start: int, folder: str = "") -> Sink:
    """Returns a sink that writes to MLflow.

    Args:
        directory: Of the run.
        start: The step that the run goes on from.
        folder: Of the file `mlflow.db`, or the address of a store; if none is named,
            `MLFLOW_TRACKING_URI`, else the folder of runs.
    """
    if not folder:
        folder = os.environ.get("MLFLOW_TRACKING_URI", str(directory.parent))
    return in_background(lambda: _opened(directory, folder), history(directory, start))


def name_of(metric: str) -> str:
    """Returns a name that MLflow accepts.

    >>> name_of("bits/Dense_0/forward.weight"), name_of("loss#2")
    ('bits/Dense_0/forward.weight', 'loss_x23_2')
    """
    return re.sub(r"[^\w\-. :/]", lambda found: f"_x{ord(found[0]):x}_", metric)


def _opened(directory: Path, folder: str) -> Tracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # Nobody asked for it.
    mlflow = importlib.import_module("mlflow")
    entities = importlib.import_module("mlflow.entities")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    is_file = "://" not in folder
    if is_file:
        path = Path(folder).absolute()
        path.mkdir(parents=True, exist_ok=True)
        address, lock = f"sqlite:///{path}/mlflow.db", FileLock(path / "mlflow.db.lock")
    else:
        address, lock = folder, contextlib.nullcontext()
    config = settings(directory)
    with lock:  # Several runs may make the tables, and the experiment, at once.
        client = mlflow.MlflowClient(tracking_uri=address)
        run = _run(client, directory)
    run_id = run.info.run_id
    if not run.data.params:
        texts = {name_of(name): str(value) for name, value in leaves(config).items()}
        params = [entities.Param(name, text[:_LETTERS]) for name, text in texts.items()]
        for first in range(0, len(params), _PARAMS):
            client.log_batch(run_id, params=params[first : first + _PARAMS])
    known = {
        name: max(each.step for each in client.get_metric_history(run_id, name))
        for name in run.data.metrics
    }
    last = 0

    def write(rows: Sequence[Row]) -> None:
        nonlocal last
        now = time.time_ns() // 1_000_000
        new = [
            entities.Metric(name_of(name), value, now, step)
            for step, values in rows
            for name, value in values.items()
            if step > known.get(name_of(name), -1)
        ]
        for first in range(0, len(new), _METRICS):
            client.log_batch(run_id, metrics=new[first : first + _METRICS])
        last = rows[-1][0]

    def close() -> None:
        whole = last == config["steps"]
        client.set_terminated(run_id, status="FINISHED" if whole else "KILLED")

    return Tracker(write, close)


def _run(client: Any, directory: Path) -> Any:
    """Returns the run that has our id as a tag; makes it if there is none."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "adaprec")
    there = client.get_experiment_by_name(name)
    experiment = there.experiment_id if there else client.create_experiment(name)
    run_id = store.id_of(directory)
    found = client.search_runs([experiment], f"tags.`{TAG}` = '{run_id}'")
    if not found:
        return client.create_run(
            experiment, run_name=directory.name, tags={TAG: run_id}
        )
    client.update_run(found[0].info.run_id, status="RUNNING")
    return found[0]
