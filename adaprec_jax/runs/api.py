"""Whole experiments from Python, in a script or a notebook.

    from adaprec_jax import experiment, load, run

    ended = run(experiment("digits-cpt", {"steps": 200}))
    ended.results["test/highest/accuracy"]
    load(ended.directory).metrics["loss"]

`run` is what the command `adaprec run` does, with the same ids and folders: what one
began, the other goes on with. Reading a run imports no JAX.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adaprec_jax.display import html_table, text_table
from adaprec_jax.runs import metrics, overrides, store
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.load import from_json, load as load_config
from adaprec_jax.runs.metrics_table import MetricsTable, metrics_table

_HEAD = ("result", "value")


class Run(NamedTuple):
    """A run, and what has come of it.

    Attributes:
        directory: Where everything about it is.
        id: Twelve hexadecimal digits made of all that decides its outcome.
        experiment: Its settings.
        state: "done", "diverged", "failed" or "interrupted"; "running" while another
            process works on it.
        step: How many steps were completed.
        results: The final numbers by name, for instance `test/highest/accuracy`; empty
            until the run has ended.
        message: Why it ended, if before its last step.
        metrics: Its numbers over the steps.
    """

    directory: Path
    id: str
    experiment: Experiment
    state: store.State
    step: int
    results: dict[str, float]
    message: str
    metrics: MetricsTable

    def __repr__(self) -> str:
        """Returns how it ended and its results, in lines of text."""
        return text_table(_HEAD, self.results.items(), caption=self._title())

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self.results.items(), caption=self._title())

    def _title(self) -> str:
        message = f": {self.message}" if self.message else ""
        ended = f"{self.state} after {self.step} steps{message}"
        return f"{self.experiment.name}, {ended}\n{self.directory}"


def experiment(config: str, settings: Mapping[str, Any] | None = None) -> Experiment:
    """Returns the experiment that a config holds, with some settings replaced.

    Args:
        config: The name of a bundled config, or the path of a Python or JSON file.
        settings: Values by path, as after `--set` on the command line; a value may be
            an object of `adaprec_jax.runs.config`.

    Raises:
        InputError: There is no such config or setting, or a value does not fit.

    >>> experiment("digits-cpt", {"steps": 200, "schedule.min_bits": 4}).schedule
    CPT(min_bits=4, max_bits=8, gradient_bits=8, kind='cpt', cycles=6)
    """
    chosen = overrides.assignments(settings or {})
    return overrides.apply(load_config(config), chosen)


def run(experiment: Experiment, *, out: str | Path = "runs") -> Run:
    """Trains; goes on with a run that was interrupted, and returns one that is over.

    Args:
        experiment: All settings, as `experiment` returns them or made in Python.
        out: The folder of runs.

    Raises:
        InputError: The data, the directory or a checkpoint cannot be used. A run that
            fails while it trains is returned, with the reason in `message`.
    """
    if not isinstance(experiment, Experiment):
        raise TypeError(
            "run takes an Experiment, such as experiment('digits-cpt') returns, got "
            f"{experiment!r}."
        )
    directory = store.locate(Path(out), experiment)
    if (over := store.over(directory)) is None:
        from adaprec_jax.runs.run import run as train  # It imports JAX.

        train(experiment, out=Path(out))
        return load(directory)
    for change in over.changes:
        warnings.warn(f"Since the run {directory}, {change}.", stacklevel=2)
    return load(directory)


def load(run: str | Path, *, out: str | Path = "runs") -> Run:
    """Returns a run that exists, whether or not it is over.

    Args:
        run: Its directory, or the beginning of its name or of its id.
        out: The folder of runs, in which names and ids are looked for.

    Raises:
        InputError: No run is meant or several are, or what it wrote is damaged.
    """
    directory = store.find(str(run), Path(out))
    path = directory / store.METRICS
    table = metrics_table(metrics.read(path) if path.is_file() else {})
    ended = store.outcome(directory)
    return Run(
        directory=directory,
        id=store.id_of(directory),
        experiment=from_json(directory / store.CONFIG),
        state=store.state(directory),
        step=ended.step if ended else int(max(table["step"], default=0)),
        results=ended.results if ended else {},
        message=ended.message if ended else "",
        metrics=table,
    )
