"""How far runs are that other processes train, read from what they have written."""

import time
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaprec_jax.report.chart import bit_range
from adaprec_jax.report.progress import left
from adaprec_jax.runs import metrics, store

_COMPARED = 64  # bytes before what is new, to see that the file is still the same


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


class News(NamedTuple):
    """What was added to the metrics of a run.

    Attributes:
        rows: Whole lines, each with its `step`.
        anew: Whether the file is another one, or went back to a checkpoint: these rows
            are its first, and what was read before no longer holds.
        damaged: Lines among them that cannot be read; who asks for results is told
            where they are.
        more: Whether there is more to be read at once.
    """

    rows: list[dict[str, Any]]
    anew: bool = False
    damaged: int = 0
    more: bool = False


class Tail:
    """Reads the metrics of a run as they grow; each byte is read once."""

    def __init__(self, path: Path) -> None:
        """Follows a file that need not exist yet."""
        self._path, self._read, self._torn, self._end = path, 0, b"", b""

    def look(self, at_most: int = 1 << 30) -> News:
        """Returns what was written since the last look.

        Args:
            at_most: Bytes to read.
        """
        try:
            with self._path.open("rb") as file:
                if anew := self._is_another(file):
                    self._read, self._torn, self._end = 0, b"", b""
                    file.seek(0)
                new = file.read(at_most)
                more = bool(file.read(1))
        except OSError:  # Not there yet, or no more.
            anew = bool(self._read)
            self._read, self._torn, self._end = 0, b"", b""
            return News([], anew)
        self._read += len(new)
        self._end = (self._end + new)[-_COMPARED:]
        *whole, self._torn = (self._torn + new).split(b"\n")
        rows = [row for line in whole if (row := metrics.parsed(line)) is not None]
        return News(rows, anew, len(whole) - len(rows), more)

    def _is_another(self, file: BufferedReader) -> bool:
        """Returns whether what was read is not there any more; stays behind it."""
        file.seek(self._read - len(self._end))
        return file.read(len(self._end)) != self._end


class Follower:
    """Tells how far a run is, from its metrics."""

    def __init__(self, directory: Path, steps: int) -> None:
        """Follows the run in a directory, which need not exist yet.

        Args:
            directory: Of the run.
            steps: Of the whole run.
        """
        self._tail, self._steps = Tail(directory / store.METRICS), steps
        self._step, self._loss = 0, float("nan")
        self._bits: dict[str, float] = {}
        self._clock = Clock(steps)

    def look(self) -> Line:
        """Returns where the run is now."""
        for row in self._tail.look().rows:
            self._step = row.pop("step")
            self._loss = row.get("loss", self._loss)
            self._bits |= {
                name: value
                for name, value in row.items()
                if name.startswith("bits/") and "/forward." in name
            }
        return Line(
            self._step, self._loss, self._precision(), self._clock.left(self._step)
        )

    def _precision(self) -> str:
        bits = np.array([*self._bits.values()], dtype=np.int64)
        return bit_range(bits) if bits.size else ""


class Clock:
    """Estimates the time that a run still takes, from when it was where."""

    def __init__(self, steps: int) -> None:
        """Begins with the first step that it is told of.

        Args:
            steps: Of the whole run.
        """
        self._steps = steps
        self._began: tuple[int, float] | None = None

    def left(self, step: int) -> str:
        """Returns the rest in words, "" where it is not known.

        Args:
            step: Where the run is now.
        """
        now = time.monotonic()
        if step and (self._began is None or step < self._began[0]):
            self._began = step, now
        if self._began is None or not self._began[0] < step:
            return ""
        began, then = self._began
        return left((now - then) / (step - began) * (self._steps - step))
