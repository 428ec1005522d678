"""What else is shown the metrics: a tracker, a database, a file of one's own.

A sink only listens. One that fails is told of, once, and then left out: the run and its
own store of metrics go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from adaprec_jax.runs import imports
from adaprec_jax.runs.config import Experiment, ImportedSink
from adaprec_jax.runs.errors import InputError


class Sink(NamedTuple):
    """Where metrics are written to beside the run's own store.

    Attributes:
        write: `write(step, values)`: what is known of a step, by name. Several calls
            may belong to one step. After a crash, steps above the one that the run goes
            on from are written again.
        close: Called once: at the end of the session, or after `write` has failed.
    """

    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None] = lambda: None


Write: TypeAlias = Callable[[Sequence[int], Mapping[str, Sequence[float]]], None]


def with_sinks(experiment: Experiment, more: Sequence[ImportedSink]) -> Experiment:
    """Returns the same experiment, shown to more sinks; one is not added twice."""
    new = tuple(each for each in more if each not in experiment.sinks)
    return experiment.model_copy(update={"sinks": (*experiment.sinks, *new)})


@contextmanager
def opened(
    experiment: Experiment, directory: Path, start: int, say: Callable[[str], None]
) -> Iterator[Write]:
    """Makes the sinks of an experiment, and closes them in the end.

    Args:
        experiment: All settings.
        directory: The run's.
        start: The step that the run goes on from.
        say: Told of a sink that fails.

    Yields:
        `write(steps, columns)`, as of `metrics.append`.

    Raises:
        InputError: A sink cannot be made.
    """
    offered = {"directory": directory, "name": experiment.name, "start": start}
    sinks: dict[int, Sink] = {}

    def works(number: int, call: Callable[[], object]) -> bool:
        try:
            with imports.blamed(experiment.sinks[number].target, always=True):
                call()
        except InputError as error:
            say(f"sinks.{number} is left out from here on: {error}")
            return False
        return True

    def write(steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        for number, sink in list(sinks.items()):
            if not works(number, lambda sink=sink: _write(sink, steps, columns)):
                works(number, sinks.pop(number).close)

    try:
        for number, piece in enumerate(experiment.sinks):
            sinks[number] = imports.make(Sink, piece, **offered)
        yield write
    finally:
        for number, sink in sinks.items():
            works(number, sink.close)


def _write(
    sink: Sink, steps: Sequence[int], columns: Mapping[str, Sequence[float]]
) -> None:
    for k, step in enumerate(steps):
        sink.write(step, {name: values[k] for name, values in columns.items()})
