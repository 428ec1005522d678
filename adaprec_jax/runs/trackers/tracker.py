"""A tracker as a sink: rows are handed over, and sent while the run goes on.

A tracker may be slow, unreachable or wrong. It works in a thread of its own: what it
raises there is raised by the next `write`, whereupon the run leaves it out.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

from adaprec_jax.runs import metrics, store
from adaprec_jax.runs.sinks import Sink

Row: TypeAlias = tuple[int, Mapping[str, float]]

PATIENCE = 60.0  # seconds that a run waits for a tracker which takes nothing
_WAITING = 1000  # rows that wait for a tracker, at most
_TOGETHER = 100  # rows that are sent in one call, at most


class Tracker(NamedTuple):
    """What rows are sent to.

    Attributes:
        write: `write(rows)`; each row is a step and what is known of it, by name.
            Several rows may belong to one step.
        close: Called once, in the end.
    """

    write: Callable[[Sequence[Row]], None]
    close: Callable[[], None]


def in_background(opened: Callable[[], Tracker], past: Iterable[Row]) -> Sink:
    """Returns a sink that opens a tracker and writes to it in a thread.

    Args:
        opened: Makes the tracker.
        past: Rows of earlier sessions, which are written first.

    Returns:
        A sink whose `write` and `close` raise what went wrong in the thread, once, and
        `TimeoutError` where the tracker took nothing for `PATIENCE` seconds.

    >>> found = []
    >>> sink = in_background(lambda: Tracker(found.extend, lambda: None), [(1, {})])
    >>> sink.write(2, {"loss": 0.5})
    >>> sink.close()
    >>> found
    [(1, {}), (2, {'loss': 0.5})]
    """
    thread = _Thread(opened, past)
    return Sink(thread.write, thread.close)


class _Thread:
    """Sends rows; a daemon, so that a tracker which hangs does not keep the process."""

    def __init__(self, opened: Callable[[], Tracker], past: Iterable[Row]) -> None:
        self._opened, self._past = opened, past
        self._waiting: queue.Queue[Row | None] = queue.Queue(_WAITING)
        self._failed: list[BaseException] = []
        self._given_up = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands over a row."""
        self._put((step, dict(values)))

    def close(self) -> None:
        """Waits until all is sent."""
        if self._given_up:
            return
        self._put(None)
        self._thread.join(PATIENCE)
        self._check()
        if self._thread.is_alive():
            self._give_up(f"did not finish within {PATIENCE:g} seconds")

    def _work(self) -> None:
        try:
            tracker = self._opened()
            try:
                for rows in _parts(self._past):
                    tracker.write(rows)
                for rows in _taken(self._waiting):
                    tracker.write(rows)
            finally:
                tracker.close()
        except BaseException as error:  # Some trackers exit.
            self._failed.append(error)

    def _put(self, row: Row | None) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            self._check()
            try:
                self._waiting.put(row, timeout=0.1)
            except queue.Full:
                if time.monotonic() > until:
                    self._give_up(f"took no row for {PATIENCE:g} seconds")
            else:
                return

    def _check(self) -> None:
        if self._failed:
            self._given_up = True
            error = self._failed[0]
            raise error if isinstance(error, Exception) else RuntimeError(repr(error))

    def _give_up(self, why: str) -> NoReturn:
        self._given_up = True
        raise TimeoutError(why)


def history(directory: Path, start: int) -> Iterator[Row]:
    """Yields the rows of a run up to the step that this session goes on from.

    Args:
        directory: Of the run.
        start: The step.

    Raises:
        InputError: Its metrics are damaged.
    """
    if start:
        yield from metrics.rows_until(directory / store.METRICS, start)


def settings(directory: Path) -> dict[str, Any]:
    """Returns the config of a run as JSON values."""
    return json.loads((directory / store.CONFIG).read_bytes())


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yields rows, some at a time."""
    rows = iter(rows)
    while part := list(islice(rows, _TOGETHER)):
        yield part


def _taken(waiting: "queue.Queue[Row | None]") -> Iterator[list[Row]]:
    """Yields the rows that wait, as soon as there is one, until None comes."""
    while (row := waiting.get()) is not None:
        part = [row]
        while len(part) < _TOGETHER:
            try:
                row = waiting.get_nowait()
            except queue.Empty:
                break
            if row is None:
                yield part
                return
            part.append(row)
        yield part
