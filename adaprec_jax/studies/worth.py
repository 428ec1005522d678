"""The value of a bit: what a fork says of each layer and phase."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaprec_jax import inference
from adaprec_jax.inference import Interval
from adaprec_jax.runs.config import Change, Forked
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import Column
from adaprec_jax.studies.forking import AS_IT_WAS, named
from adaprec_jax.studies.results import Arm, Results


class Worth(NamedTuple):
    """What a plan of a fork changed.

    Attributes:
        layers: Where it changed the formats.
        start: First step of the change, counted from 0.
        end: First step after it.
        formats: The other formats.
        runs: How many branches there are, each beside that of its run as it was.
        gbitops: 10^9 bit operations, the branch minus the run as it was, mean over
            runs.
        difference: Of the metric, the branch minus the run as it was, with its 95 %
            interval, which no single run has.
        per_gbitop: The difference by 10^9 bit operations, with its interval; NaN where
            the plan costs what the run did.
        p: Chance of such a difference if there were none, adjusted for all plans; none
            of a single run.
    """

    layers: str
    start: int
    end: int
    formats: str
    runs: int
    gbitops: float
    difference: Interval
    per_gbitop: Interval
    p: float | None


def worth(results: Results, column: Column) -> list[Worth]:
    """Returns what each plan of a fork changed, by bit operation.

    Branches are paired with those of the same run as it was, so that what seeds do
    cancels. Where a plan has fewer bits, both differences are negative if the metric
    falls, so that a metric that grows with bits has a positive worth in either case.

    Args:
        results: Of the fork's study, as `adaprec_jax.studies.results.gathered` returns
            them.
        column: The metric.

    Raises:
        InputError: The study is no fork.
    """
    base = next((arm for arm in results.arms if arm.settings == AS_IT_WAS), None)
    if base is None or not base.runs:
        raise InputError(f"The study {results.study} is no fork, or has not begun.")
    found = [
        (each, change, _difference(each, base, column))
        for each in results.arms
        if (change := change_of(each)) is not None
    ]
    known = [p for _, _, (_, p) in found if p is not None]
    adjusted = iter(inference.adjusted([[p] for p in known]))
    table = []
    for arm, change, (difference, p) in found:
        seeds = _seeds(arm, base)
        gbitops = float(
            np.mean([_gbitops(arm, seed) - _gbitops(base, seed) for seed in seeds])
        )
        table.append(
            Worth(
                change.layers, change.start, change.end, named(change), len(seeds),
                gbitops, difference, _by(difference, gbitops),
                None if p is None else next(adjusted)[0],
            )
        )  # fmt: skip
    return table


def change_of(arm: Arm) -> Change | None:
    """Returns what the runs of an arm change, None for those of no change."""
    first = next(iter(arm.runs.values()), None)
    schedule = first.cell.experiment.schedule if first else None
    return schedule.change if isinstance(schedule, Forked) else None


def _seeds(arm: Arm, base: Arm) -> Sequence[int]:
    return sorted(arm.runs.keys() & base.runs.keys())


def _difference(arm: Arm, base: Arm, column: Column) -> tuple[Interval, float | None]:
    """Returns the difference that a plan makes, and the chance of it."""
    seeds = _seeds(arm, base)
    if not seeds:
        raise InputError(f"{arm.name} has no run whose own branch is over.")
    own, theirs = (
        inference.worst(column.of(each.name, seeds), higher=column.higher)
        for each in (arm, base)
    )
    if len(seeds) == 1:
        gap = float(own[0] - theirs[0]) if math.isfinite(theirs[0]) else math.nan
        return Interval(gap, -math.inf, math.inf), None
    found = inference.difference(own, theirs)
    return Interval(found.estimate, found.low, found.high), found.p


def _gbitops(arm: Arm, seed: int) -> float:
    return arm.runs[seed].outcome.results.get("gbitops", math.nan)


def _by(difference: Interval, gbitops: float) -> Interval:
    """Returns an interval in units of what it cost."""
    if not gbitops:
        return Interval(math.nan, math.nan, math.nan)
    low, high = sorted((difference.low / gbitops, difference.high / gbitops))
    return Interval(difference.estimate / gbitops, low, high)
