"""The precision range test of an experiment: trains, and says how few bits learn."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from adaprec_jax.report.progress import Moment, display
from adaprec_jax.runs.build import build
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.run import fetch
from adaprec_jax.runs.widths import Widths, rising
from adaprec_jax.schedules import RangeTest, range_test as decide
from adaprec_jax.train import (
    Cadence,
    Hooks,
    Metrics,
    make_dispatch,
    make_train_step,
    train,
)


class Found(NamedTuple):
    """What came of a range test.

    Attributes:
        metric: Name of the training metric that counted.
        found: The fewest bits that learn, and the gains.
        steps: Steps trained, at all widths together.
        message: How training diverged, "" if it did not.
    """

    metric: str
    found: RangeTest
    steps: int
    message: str


def range_test(experiment: Experiment, widths: Widths) -> Found:
    """Trains one run, from few bits to more, until the training metric rises.

    The parameters go on from one width to the next. The metric is the task's own, such
    as accuracy, on the batches it trains on; where less is better it counts negative.

    Args:
        experiment: All settings; its schedule and its number of steps are replaced.
        widths: What is tried.

    Raises:
        InputError: A number is out of range, or the data cannot be used.
    """
    raised = rising(experiment, widths)
    built = build(raised)
    name, more_is_better = built.task.metric
    values: list[float] = []
    found = RangeTest(None, {})
    with display(f"{experiment.name}, range test", 0, raised.steps) as shown:

        def report(numbers: Int[np.ndarray, "steps"], metrics: Metrics) -> None:
            nonlocal found
            if name not in metrics.scalars:
                raise InputError(
                    f"The loss reports no {name!r} while it trains; a range test needs "
                    "the task's metric at each step."
                )
            column = metrics.scalars[name]
            values.extend((column if more_is_better else -column).tolist())
            found = _decided(values, widths)
            bits = widths.min_bits + (len(values) - 1) // widths.steps
            shown.update(
                Moment(
                    step=int(numbers[-1]),
                    loss=float(metrics.scalars["loss"][-1]),
                    precision=f"{bits} bits",
                    saturation=float("nan"),
                    skipped=int(metrics.scalars["skipped"][-1]),
                )
            )

        ending = train(
            make_dispatch(make_train_step(built.program)),
            jax.jit(built.init)(built.key),
            Cadence(
                raised.steps, raised.steps_per_dispatch, raised.steps, raised.steps
            ),
            Hooks(
                fetch=lambda numbers: fetch(raised, built, numbers),
                on_metrics=report,
                stop=lambda: found.min_bits is not None,
            ),
        )
    return Found(name, found, len(values), ending.message)


def _decided(values: list[float], widths: Widths) -> RangeTest:
    """Returns the test of all widths that have been in force for two windows."""
    starts = range(0, len(values), widths.steps)
    parts = [values[start : start + widths.steps] for start in starts]
    known = {
        widths.min_bits + k: part
        for k, part in enumerate(parts)
        if len(part) >= 2 * widths.window
    }
    if not known:
        return RangeTest(None, {})
    return decide(known, threshold=widths.threshold, window=widths.window)
