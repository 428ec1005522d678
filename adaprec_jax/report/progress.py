"""How far a run is: a living line in a terminal or notebook, else one now and then."""

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Without a terminal: a line for each tenth of the run, and at least one a minute.
_LINES, _SECONDS = 10, 60.0
_REFRESH = 0.2  # seconds between two changes of the line in a notebook


class Moment(NamedTuple):
    """Where a run is.

    Attributes:
        step: Steps completed.
        loss: Of the last of them.
        precision: The formats in force, in a few characters.
        saturation: Largest fraction of saturated elements in any tensor, NaN if it
            was not gathered yet.
        skipped: Skipped steps so far.
    """

    step: int
    loss: float
    precision: str
    saturation: float
    skipped: int


class Display(NamedTuple):
    """What can be told to the user."""

    update: Callable[[Moment], None]
    say: Callable[[str], None]


@contextlib.contextmanager
def display(name: str, start: int, steps: int) -> Iterator[Display]:
    """Yields what shows the progress of a run.

    It stands below the cell of a notebook, and elsewhere on the standard error.

    Args:
        name: Of the run.
        start: Steps that were completed before.
        steps: Of the whole run.
    """
    if sys.stderr.isatty():
        with _living(start, steps) as living:
            yield living
    elif _in_notebook():
        yield _in_place(name, start, steps)
    else:
        yield _lines(name, start, steps)


def describe(moment: Moment) -> str:
    """Returns the moment in one line.

    >>> describe(Moment(20, 0.25, "3-5 bits", float("nan"), 0))
    'loss 0.25, 3-5 bits, 0 skipped'
    """
    parts = [f"loss {moment.loss:.4g}", moment.precision]
    if moment.saturation == moment.saturation:
        parts.append(f"{100 * moment.saturation:.2g}% saturated")
    return ", ".join([*parts, f"{moment.skipped} skipped"])


def left(seconds: float) -> str:
    """Returns a duration for people.

    >>> left(5.2), left(61.0), left(7260.0)
    ('5 s', '1 min', '2 h 1 min')
    """
    if seconds < 60:
        return f"{round(seconds)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextlib.contextmanager
def _living(start: int, steps: int) -> Iterator[Display]:
    from rich.console import Console  # Slow to import.
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.completed}/{task.total}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[now]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=steps, completed=start, now="compiling")
        yield Display(
            update=lambda moment: bar.update(
                task, completed=moment.step, now=describe(moment)
            ),
            say=lambda text: console.print(text, markup=False, soft_wrap=True),
        )


def _in_notebook() -> bool:
    """Returns whether a cell of a notebook is what asks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


def _in_place(name: str, start: int, steps: int) -> Display:
    """Returns what changes one text below the cell: a line, and what was said."""
    publish = importlib.import_module("IPython.display").display
    left_of, said = _clock(steps), list[str]()
    line, shown_at = f"{name} {start}/{steps}: compiling", time.monotonic()
    handle = publish({"text/plain": line}, raw=True, display_id=True)

    def refresh() -> None:
        nonlocal shown_at
        shown_at = time.monotonic()
        handle.update({"text/plain": "\n  ".join([line, *said])}, raw=True)

    def say(text: str) -> None:
        said.append(text)
        refresh()

    def update(moment: Moment) -> None:
        nonlocal line
        line = f"{_place(name, moment, steps)}{left_of(moment.step)}"
        if moment.step == steps or time.monotonic() - shown_at >= _REFRESH:
            refresh()

    return Display(update, say)


def _lines(name: str, start: int, steps: int) -> Display:
    said, said_at = start, time.monotonic()
    left_of = _clock(steps)

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def update(moment: Moment) -> None:
        nonlocal said, said_at
        now, step = time.monotonic(), moment.step
        rest = left_of(step)
        if (step - said) * _LINES < steps and now - said_at < _SECONDS:
            return
        said, said_at = step, now
        say(f"{_place(name, moment, steps)}{rest}")

    return Display(update, say)


def _place(name: str, moment: Moment, steps: int) -> str:
    return f"{name} {moment.step}/{steps}: {describe(moment)}"


def _clock(steps: int) -> Callable[[int], str]:
    """Returns what estimates the rest of the run at each step, in words."""
    began: tuple[int, float] | None = None  # without the first steps, which compile

    def left_of(step: int) -> str:
        nonlocal began
        now = time.monotonic()
        began = began or (step, now)
        if not began[0] < step < steps:
            return ""
        return f", {left((now - began[1]) / (step - began[0]) * (steps - step))} left"

    return left_of
