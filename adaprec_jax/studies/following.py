"""How far runs are that other processes train, read from what they have written."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaprec_jax.report.chart import bit_range
from adaprec_jax.report.progress import left
from adaprec_jax.runs import store


class Line(NamedTuple):
    """Where a run is.

    Attributes:
        step: Steps completed.
        loss: Of the last of them; NaN before the first.
        precision: The formats in force, in a few characters.
        left: The time that the rest will take, "" where it is not known.
    """

    step: int
    loss: float
    precision: str
    left: str


class Follower:
    """Reads the metrics of a run as they grow; each byte is read once."""

    def __init__(self, directory: Path, steps: int) -> None:
        """Follows the run in a directory, which need not exist yet.

        Args:
            directory: Of the run.
            steps: Of the whole run.
        """
        self._path, self._steps = directory / store.METRICS, steps
        self._read, self._torn = 0, b""
        self._step, self._loss = 0, float("nan")
        self._bits: dict[str, float] = {}
        self._began: tuple[int, float] | None = None

    def look(self) -> Line:
        """Returns where the run is now."""
        for row in self._rows():
            self._step = int(row.pop("step", self._step))
            self._loss = row.get("loss", self._loss)
            self._bits |= {
                name: value
                for name, value in row.items()
                if name.startswith("bits/") and "/forward." in name
            }
        return Line(self._step, self._loss, self._precision(), self._time_left())

    def _rows(self) -> Sequence[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._read:  # It went back to a checkpoint.
                    self._read, self._torn = 0, b""
                file.seek(self._read)
                new = file.read()
        except OSError:
            return ()
        self._read += len(new)
        *whole, self._torn = (self._torn + new).split(b"\n")
        rows = []
        for line in whole:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # Who reads the run for its results says what is damaged.
        return [row for row in rows if isinstance(row, dict)]

    def _precision(self) -> str:
        bits = np.array([*self._bits.values()], dtype=np.int64)
        return bit_range(bits) if bits.size else ""

    def _time_left(self) -> str:
        now = time.monotonic()
        if self._began is None and self._step:
            self._began = self._step, now
        if self._began is None or self._step <= self._began[0]:
            return ""
        step, began = self._began
        each = (now - began) / (self._step - step)
        return left(each * (self._steps - self._step))
