"""The points of a picture of accuracy against cost, from the runs of a study."""

from collections.abc import Sequence
from pathlib import Path

from adaprec_jax.cost.devices import Device
from adaprec_jax.cost.lenses import look
from adaprec_jax.report.frontier import Point
from adaprec_jax.runs import store
from adaprec_jax.runs.costing import recorded_cost
from adaprec_jax.runs.errors import InputError


def points(
    directories: Sequence[Path], lens: str, device: Device | None = None
) -> tuple[list[Point], str, str]:
    """Returns a point for each run, the unit of its cost, and the name of its score.

    The score is the first test score at the highest precision of a run; the baseline is
    the arm that is float32 throughout.

    Raises:
        InputError: A run is not done, or its cost or score is not known.
    """
    found, unit, metric = [], "", ""
    for directory in directories:
        ended = store.outcome(directory)
        scores = {} if ended is None else _scores(ended.results)
        if not scores:
            raise InputError(f"{directory} has no test score to draw.")
        metric = metric or next(iter(scores))
        if metric not in scores:
            raise InputError(f"{directory} has no test score {metric!r}.")
        spent = recorded_cost(directory)
        cost = look(lens, spent.done, device)
        if cost is None:
            raise InputError(f"{directory}: its cost by {lens} is not known.")
        unit = cost.unit
        kinds = {f.name for t in spent.done.terms for f in (t.first, t.second)}
        name = store.experiment_of(directory).name
        found.append(
            Point(name, cost.value, cost.low, cost.high, scores[metric],
                  baseline=kinds == {"float32"})
        )  # fmt: skip
    return found, unit, metric


def _scores(results: dict[str, float]) -> dict[str, float]:
    """Returns the test scores at the highest precision, the loss last."""
    start = "test/highest/"
    named = {
        n.removeprefix(start): v for n, v in results.items() if n.startswith(start)
    }
    return dict(sorted(named.items(), key=lambda item: item[0] == "loss"))
