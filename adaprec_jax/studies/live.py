"""A study while its runs train, as JSON for a page: of each look only what is new.

Looks are counted, and every point knows in which one it was found. A page says up to
which look it has been told, so any number of pages share one reader and nothing is
kept about them. Long curves are thinned while they are read, so what is held and sent
does not grow with the length of the runs. Imports no JAX.
"""

import math
import secrets
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from adaprec_jax.runs import store
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.store import Outcome, State
from adaprec_jax.studies.columns import direction
from adaprec_jax.studies.following import Clock, Tail
from adaprec_jax.studies.study import (
    SUFFIX,
    Cell,
    Study,
    directories,
    load_study,
    path_of,
)

Tree: TypeAlias = dict[str, Any]

_POINTS, _FEWEST, _LARGEST = 60_000, 40, 400  # of a curve in all runs, and of one run
_BUDGET = 1.0  # seconds of a look
_AT_ONCE = 1 << 20  # bytes of a run that are read before the next one's turn
_REST = 0.5  # seconds between looks, whoever asks
_ASK = 5.0  # seconds after which a silent run is asked whether it still runs
_STATISTICS = ("saturation_fraction", "underflow_fraction")
_SCALARS = ("loss", "loss_scale")


class Curve:
    """Some of the rows of a run in which a quantity has a value, evenly spaced.

    >>> curve = Curve(room=4)
    >>> for step in range(1, 21):
    ...     curve.add(1, step, 0.5 * step)
    >>> curve.since(0)["steps"], curve.since(0)["last"]
    ([1, 5, 9, 13, 17], [20, 10.0])
    >>> curve.since(1) is None
    True
    """

    def __init__(self, room: int) -> None:
        """Begins without a point.

        Args:
            room: Points that are kept, at least; at most twice as many and one.
        """
        self._room, self._every, self._seen = room, 1, 0
        self._steps: list[int] = []
        self._values: list[Any] = []
        self._looks: list[int] = []
        self._last: tuple[int, int, Any] | None = None
        self._thinned = 0

    def add(self, look: int, step: int, value: Any) -> None:
        """Takes a row that was found in a look."""
        if self._seen % self._every == 0:
            self._steps.append(step)
            self._values.append(value)
            self._looks.append(look)
            if len(self._steps) > 2 * self._room:
                for kept in (self._steps, self._values, self._looks):
                    del kept[1::2]
                self._every, self._thinned = 2 * self._every, look
        self._seen += 1
        self._last = (look, step, value)

    def since(self, look: int) -> Tree | None:
        """Returns what was found after a look, None if nothing was.

        Returns:
            `from`: How many of the points told before still hold; `steps`, `values`:
            those that follow; `last`: the last row, whether or not it is a point;
            `every`: of how many rows one is a point.
        """
        if self._last is None or self._last[0] <= look:
            return None
        start = 0 if self._thinned > look else bisect_right(self._looks, look)
        return {
            "from": start,
            "steps": self._steps[start:],
            "values": self._values[start:],
            "last": [*self._last[1:]],
            "every": self._every,
        }


class Followed:
    """One run of a study."""

    def __init__(self, cell: Cell, directory: Path, room: int, look: int) -> None:
        """Follows a run that need not have begun.

        Args:
            cell: Of the study.
            directory: Of the run.
            room: Points of each curve.
            look: The present one.
        """
        self.cell, self.directory, self._room = cell, directory, room
        self._tail = Tail(directory / store.METRICS)
        self._clock = Clock(cell.experiment.steps)
        self._state: State = "new"
        self._outcome: Outcome | None = None
        self._fault = ""
        self._asked = -math.inf
        self._head: Tree = {}
        self._changed = look
        self._forget(look)

    def _forget(self, look: int) -> None:
        self._begun = look
        self._step, self._damaged = 0, 0
        self._curves: dict[str, Curve] = {}
        self._details: dict[str, Curve] = {}
        self._layers: list[str] = []
        self._paid: tuple[int, float, float] | None = None

    def look(self, look: int) -> bool:
        """Reads what is new; returns whether there is more to be read at once."""
        news = self._tail.look(_AT_ONCE)
        if news.anew:
            self._forget(look)
        for row in news.rows:
            self._take(look, row)
        self._damaged += news.damaged
        self._judge(grown=bool(news.rows))
        head = self._described()
        if head != self._head:
            self._head, self._changed = head, look
        return news.more

    def since(self, look: int) -> Tree | None:
        """Returns what is new after a look, None if nothing is."""
        anew = self._begun > look
        told = {
            name: new
            for name, curve in self._curves.items()
            if (new := curve.since(0 if anew else look))
        }
        if not (told or anew or self._changed > look):
            return None
        return {**self._head, "anew": anew, "curves": told}

    def details(self, look: int) -> Tree:
        """Returns what a page draws of the run that it shows closer, after a look."""
        anew = self._begun > look
        told = {
            name: new
            for name, curve in self._details.items()
            if (new := curve.since(0 if anew else look))
        }
        run_id = self.cell.run_id
        return {"id": run_id, "anew": anew, "layers": self._layers, "curves": told}

    def evaluated(self) -> list[str]:
        """Returns the names of what is evaluated while the run trains."""
        return [name for name in self._curves if name.startswith("validation/")]

    def _take(self, look: int, row: dict[str, Any]) -> None:
        step = self._step = row.pop("step")
        largest: dict[str, float] = {}
        bits: dict[str, dict[str, int]] = {}
        for name, raw in row.items():
            value = _number(raw)
            kind, _, rest = name.partition("/")
            if kind in _SCALARS or kind == "validation":
                self._add(self._curves, look, name, step, value)
            elif kind == "cost" and not rest:
                self._pay(step, value)
            elif kind == "bits" and value is not None:
                layer, _, operand = rest.rpartition("/")
                bits.setdefault(operand, {})[layer] = round(value)
            elif kind in _STATISTICS and value is not None:
                of_role = f"{kind}/{rest.rpartition('/')[2]}"
                for each in (kind, of_role):
                    largest[each] = max(largest.get(each, 0.0), value)
        for name, value in largest.items():
            where = self._details if "/" in name else self._curves
            self._add(where, look, name, step, value)
        for operand, by_layer in bits.items():
            self._layers = self._layers or [*by_layer]
            row_of_bits = [by_layer.get(layer) for layer in self._layers]
            self._add(self._details, look, f"bits/{operand}", step, row_of_bits)

    def _add(
        self, curves: dict[str, Curve], look: int, name: str, step: int, value: Any
    ) -> None:
        if name not in curves:
            curves[name] = Curve(self._room)
        curves[name].add(look, step, value)

    def _pay(self, step: int, cost: float | None) -> None:
        """Notes what each step from this one on costs."""
        before = 0.0
        if self._paid is not None:
            since, each, spent = self._paid
            before = spent + (step - 1 - since) * each
        self._paid = (step - 1, cost or 0.0, before)

    def _cost(self) -> float | None:
        """Returns the cost of a step so far, on average."""
        if self._paid is None or not self._step:
            return None
        since, each, spent = self._paid
        return (spent + (self._step - since) * each) / self._step

    def _judge(self, *, grown: bool) -> None:
        """Finds out the state; who has just written runs, and need not be asked.

        Asking takes the lock of the run for a moment, so it is done seldom.
        """
        now, ended = time.monotonic(), (self.directory / store.STATUS).exists()
        if ended and store.is_over(self._state):
            return  # Nothing becomes of it any more.
        if grown and not ended and self._asked > -math.inf:
            self._state, self._outcome, self._asked = "running", None, now
            return
        same = ended == (self._outcome is not None)
        if same and now - self._asked < _ASK:
            return
        self._asked, self._fault = now, ""
        try:
            self._state = store.state(self.directory)
            waits = self._state in ("new", "running")
            self._outcome = None if waits else store.outcome(self.directory)
        except (InputError, OSError) as error:
            self._state, self._outcome, self._fault = "failed", None, str(error)

    def _described(self) -> Tree:
        """Returns what a table says of the run."""
        cell, ended = self.cell, self._outcome
        running = self._state == "running"
        message = self._fault or (ended.message if ended else "")
        if self._damaged:
            message = f"Damaged lines of metrics: {self._damaged}. {message}"
        return {
            "id": cell.run_id,
            "arm": cell.arm,
            "name": cell.experiment.name,
            "seed": cell.seed,
            "steps": cell.experiment.steps,
            "state": self._state,
            "step": ended.step if ended else self._step,
            "left": self._clock.left(self._step) if running else "",
            "message": message.strip(),
            "cost": self._cost(),
        }


class Live:
    """A study that is being looked at."""

    def __init__(self, study: str, out: Path) -> None:
        """Reads the list of runs, not the runs.

        Args:
            study: Its name, or the path of its file.
            out: The folder of runs.

        Raises:
            InputError: There is no such study, or its file is damaged.
        """
        self._study, self._out = study, out
        self._lock, self._look, self._looked = threading.Lock(), 1, -math.inf
        self._session, self._said, self._unread = secrets.token_hex(8), "", 0
        self._stamp: tuple[int, int] | None = None
        self._runs: dict[str, Followed] = {}
        self._turn = 0
        self._name, self._list_of = "", 0
        self._load()
        if self._said:
            raise InputError(self._said)

    def tell(
        self, session: str = "", after: int = 0, run: str = "", seen: int = 0
    ) -> Tree:
        """Looks, unless somebody has just done so, and returns what is new.

        Args:
            session: What was told before as `session`; another one is told all.
            after: The `look` that was told before.
            run: The id of a run to be told of closely; another one is left out.
            seen: The look up to which it was told of closely.

        Returns:
            `session` and `look`, to be given again; `study`; `said`, what is wrong with
            the file of the study; `unread`, how many runs have more to be read at once;
            `order`, the ids of all runs if they changed; `runs`, those with something
            new; `metrics`, for each that is evaluated whether a higher one is better,
            null if that is not known; and `details` of one run.
        """
        with self._lock:
            if time.monotonic() - self._looked >= _REST or self._unread:
                self._refresh()
            if session != self._session:
                after = seen = 0
            news = (run.since(after) for run in self._runs.values())
            closer = self._runs.get(run)
            return {
                "session": self._session,
                "look": self._look,
                "study": self._name,
                "said": self._said,
                "unread": self._unread,
                "order": [*self._runs] if self._list_of > after else None,
                "runs": [each for each in news if each],
                "metrics": self._metrics(),
                "details": closer and closer.details(seen),
            }

    def _refresh(self) -> None:
        """Looks at every run once, or at as many as there is time for."""
        self._look += 1
        self._load()
        began = time.monotonic()
        waiting = [*self._runs.values()]
        waiting = waiting[self._turn :] + waiting[: self._turn]
        again: list[Followed] = []
        done = 0
        for run in waiting:
            if time.monotonic() - began > _BUDGET:
                break
            done += 1
            if run.look(self._look):
                again.append(run)
        while again and time.monotonic() - began < _BUDGET:
            again = [run for run in again if run.look(self._look)]
        self._turn = (self._turn + done) % max(len(waiting), 1)
        self._unread = len(waiting) - done + len(again)
        self._looked = time.monotonic()

    def _load(self) -> None:
        """Reads the list of runs if its file was written anew."""
        path = Path(self._study)
        if not path.name.endswith(SUFFIX):
            path = path_of(self._study, self._out)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                self._said = ""
                return
        except OSError:
            stamp = None
        try:
            study = load_study(self._study, self._out)
        except InputError as error:
            self._said = str(error)
            return
        self._stamp, self._said, self._name = stamp, "", study.name
        self._follow(study)

    def _follow(self, study: Study) -> None:
        """Keeps what is known of runs that stay, and begins with those that come."""
        room = max(_FEWEST, min(_LARGEST, _POINTS // max(len(study.cells), 1)) // 2)
        before, self._runs = self._runs, {}
        self._list_of = self._look
        for cell, directory in zip(
            study.cells, directories(study, self._out), strict=True
        ):
            known = before.get(cell.run_id)
            if known and (known.cell, known.directory) == (cell, directory):
                self._runs[cell.run_id] = known
            else:
                self._runs[cell.run_id] = Followed(cell, directory, room, self._look)

    def _metrics(self) -> Mapping[str, bool | None]:
        """Returns whether more is better, of each metric that is evaluated."""
        names = {name for run in self._runs.values() for name in run.evaluated()}
        return {name: _direction(name) for name in sorted(names)}


def _direction(name: str) -> bool | None:
    try:
        return direction(name, None)
    except InputError:
        return None


def _number(value: int | float) -> float | None:
    """Returns a finite number, else None: JSON has no NaN."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
