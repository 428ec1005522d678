"""Accuracy against cost, for all runs of a study; needs matplotlib.

Each run is a point with the band of its cost, runs of one arm have one colour, and a
line joins the arms on the Pareto front: no other arm is better for less.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure

_SIZE = (7.2, 4.2)  # inches
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^v<>Ph*X"


class Point(NamedTuple):
    """One run.

    Attributes:
        arm: What it is a run of.
        cost: Through one lens.
        low: The lowest cost of the lens's band.
        high: The highest.
        score: What was reached.
        baseline: Whether its arm is what others are compared with.
    """

    arm: str
    cost: float
    low: float
    high: float
    score: float
    baseline: bool = False


def front(
    costs: Sequence[float], scores: Sequence[float], *, higher_is_better: bool = True
) -> Bool[np.ndarray, " arms"]:
    """Returns which arms no other is at least as good as for at most the cost.

    Of two that are equal in both, both are on the front.

    >>> front([1.0, 2.0, 3.0], [0.5, 0.4, 0.6]).tolist()
    [True, False, True]
    """
    cost, score = np.asarray(costs), np.asarray(scores)
    gain = score if higher_is_better else -score
    no_worse = (cost[:, None] <= cost) & (gain[:, None] >= gain)
    better = no_worse & ((cost[:, None] < cost) | (gain[:, None] > gain))
    return np.logical_not(better.any(axis=0))


def figure(
    points: Sequence[Point], *, x: str, y: str, higher_is_better: bool = True
) -> Figure:
    """Returns the picture.

    Args:
        points: All runs.
        x: What the cost is, with its unit.
        y: What the score is.
        higher_is_better: Of the score.

    Raises:
        ValueError: There are no points.
    """
    if not points:
        raise ValueError("There is no run to draw.")
    drawn = Figure(figsize=_SIZE, layout="constrained")
    axes = drawn.subplots()
    arms = tuple(dict.fromkeys(point.arm for point in points))
    means: list[tuple[float, float]] = []
    for k, arm in enumerate(arms):
        mine = [point for point in points if point.arm == arm]
        baseline = any(point.baseline for point in mine)
        cost, score = (
            np.array([getattr(p, field) for p in mine]) for field in ("cost", "score")
        )
        band = np.array(
            [[p.cost - p.low for p in mine], [p.high - p.cost for p in mine]]
        )
        colour = "#000000" if baseline else _COLOURS[k % (len(_COLOURS) - 1)]
        axes.errorbar(
            cost, score, xerr=band, fmt="none", ecolor=colour, alpha=0.35, linewidth=1
        )
        mean = float(cost.mean()), float(score.mean())
        means.append(mean)
        axes.scatter(cost, score, s=10, color=colour, alpha=0.6, linewidths=0)
        axes.scatter(
            *mean, s=80 if baseline else 45, color=colour, zorder=3,
            marker="*" if baseline else _MARKERS[k // (len(_COLOURS) - 1) % 9],
            label=f"{arm} (baseline)" if baseline else arm,
        )  # fmt: skip
    on = front(*zip(*means, strict=True), higher_is_better=higher_is_better)
    line = sorted(mean for mean, is_on in zip(means, on, strict=True) if is_on)
    axes.plot(*zip(*line, strict=True), color="#555555", linewidth=1, zorder=1,
              linestyle="--", label="Pareto front of the means")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, which="both", linewidth=0.3, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.legend(loc="outside right upper", fontsize=8, frameon=False)
    return drawn
