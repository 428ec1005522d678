"""Metrics as event files of TensorBoard; needs the extra `tensorboard`.

The file is made anew in each session, from the run's own rows and then from what the
session adds, so a step is in it once, however often the run was killed.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from adaprec_jax.runs.sinks import Sink
from adaprec_jax.runs.trackers.tracker import (
    Row,
    Tracker,
    history,
    in_background,
    settings,
)


def sink(directory: Path, start: int, folder: str = "") -> Sink:
    """Returns a sink that writes an event file.

    Args:
        directory: Of the run.
        start: The step that the run goes on from.
        folder: In which the run has a folder of its own; if none is named, it is
            `tensorboard` in the run's directory.
    """
    where = Path(folder) / directory.name if folder else directory / "tensorboard"
    return in_background(lambda: _opened(directory, where), history(directory, start))


def _opened(directory: Path, where: Path) -> Tracker:
    writers = importlib.import_module("tensorboardX.writer")
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    summaries = importlib.import_module("tensorboardX.proto.summary_pb2")
    texts = importlib.import_module("tensorboardX.summary")
    where.mkdir(parents=True, exist_ok=True)
    for before in where.glob("events.out.tfevents.*"):
        before.unlink()
    file = writers.FileWriter(str(where))
    # Makes a TensorBoard that is open drop what it has read of the file before.
    started = events.SessionLog(status=events.SessionLog.START)
    file.add_event(events.Event(session_log=started), step=0)
    config = json.dumps(settings(directory), indent=2)
    indented = "".join(f"    {line}\n" for line in config.splitlines())
    file.add_summary(texts.text("config", indented), 0)

    def write(rows: Sequence[Row]) -> None:
        for step, values in rows:
            named = [
                summaries.Summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
            ]
            file.add_summary(summaries.Summary(value=named), step)
        file.flush()

    return Tracker(write, file.close)
