"""A sink of metrics: a table in a file."""

from pathlib import Path

from adaprec_jax.runs.sinks import Sink


def table(name: str, directory: Path, start: int) -> Sink:
    """Writes `step,name,value` lines into the run's folder."""
    file = (directory / f"{name}-from-{start}.csv").open("w")

    def write(step, values):
        file.writelines(f"{step},{key},{value!r}\n" for key, value in values.items())

    return Sink(write, file.close)
