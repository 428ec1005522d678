"""What a study found, as pictures; importing this needs matplotlib.

As in `adaprec_jax.report.figure` nothing of the user's settings is read or changed, and
the same numbers give the same bytes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from adaprec_jax.report.figure import COLOURS, own_settings, settle, shortened

_WIDTH, _HEIGHT, _ROW = 7.2, 3.6, 0.3  # inches
_MARKERS = "osD^vP*X"
_GREY, _BAND = "#555555", "#e8e8e8"
_ANSWERS = {
    "better": "#009E73",
    "worse": "#D55E00",
    "equivalent": "#0072B2",
    "inconclusive": _GREY,
}
_UPRIGHT = 12  # entries of a legend in one column
_NAME = 34  # characters


class Point(NamedTuple):
    """An arm in the plane of cost and metric; an end may be infinite."""

    name: str
    cost: float
    mean: float
    low: float
    high: float


class Curve(NamedTuple):
    """A metric over the steps, mean over seeds with its interval."""

    name: str
    steps: Float[np.ndarray, " evaluations"]
    mean: Float[np.ndarray, " evaluations"]
    low: Float[np.ndarray, " evaluations"]
    high: Float[np.ndarray, " evaluations"]


class Gap(NamedTuple):
    """A difference with its interval, and what is said of it."""

    name: str
    estimate: float
    low: float
    high: float
    answer: str


class Layers(NamedTuple):
    """Bits of each layer over a run, mean over seeds."""

    name: str
    steps: int
    layers: tuple[str, ...]
    bits: Float[np.ndarray, "layers bins"]


def pareto(points: Sequence[Point], *, higher: bool) -> list[Point]:
    """Returns the points that no other one beats in both cost and metric.

    Args:
        points: Those whose cost is known.
        higher: Whether a higher metric is better.

    >>> cheap, dear = Point("a", 1, 0.8, 0, 1), Point("b", 2, 0.9, 0, 1)
    >>> bad = Point("c", 3, 0.85, 0, 1)
    >>> [point.name for point in pareto([bad, dear, cheap], higher=True)]
    ['a', 'b']
    """
    sign = 1 if higher else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, -sign * each.mean)):
        if not front or sign * point.mean > sign * front[-1].mean:
            front.append(point)
    return front


def cost_plane(points: Sequence[Point], metric: str, *, higher: bool) -> Figure:
    """Returns metric against cost, with intervals and the Pareto front.

    Args:
        points: One for each arm; those without a finite cost are left out.
        metric: Its name.
        higher: Whether a higher metric is better.
    """
    known = [point for point in points if _is_known(point)]
    with own_settings():
        drawn, axes = _panel(_HEIGHT)
        front = pareto(known, higher=higher)
        axes.plot(
            [p.cost for p in front], [p.mean for p in front],
            color=_GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1,
            label="Pareto front",
        )  # fmt: skip
        for k, point in enumerate(points):
            if not _is_known(point):
                continue
            colour, marker = _look(k)
            ends = np.array([[point.mean - point.low], [point.high - point.mean]])
            axes.errorbar(
                [point.cost], [point.mean],
                yerr=ends if np.isfinite(ends).all() else None,
                color=colour, marker=marker, markersize=5, linestyle="none",
                elinewidth=1, capsize=2.5, label=shortened(point.name, _NAME),
            )  # fmt: skip
        _log_costs(axes, [point.cost for point in known])
        axes.set_xlabel("bit operations relative to float32")
        axes.set_ylabel(metric)
        return _finished(drawn, axes, len(known) + 1)


def curves(found: Sequence[Curve], metric: str, arms: Sequence[str]) -> Figure:
    """Returns learning curves, with the intervals as bands.

    Args:
        found: One for each arm that has one.
        metric: Its name.
        arms: Names of all arms, which have the same colours in all figures.
    """
    with own_settings():
        drawn, axes = _panel(_HEIGHT)
        for curve in found:
            colour, marker = _look(arms.index(curve.name))
            axes.plot(
                curve.steps, curve.mean, color=colour, linewidth=1.3, marker=marker,
                markersize=3, label=shortened(curve.name, _NAME),
            )  # fmt: skip
            finite = np.isfinite(curve.low) & np.isfinite(curve.high)
            axes.fill_between(
                curve.steps, curve.low, curve.high, where=finite.tolist(), color=colour,
                alpha=0.12, linewidth=0,
            )  # fmt: skip
        shown = np.concatenate([c.mean for c in found] or [np.zeros(0)])
        shown = shown[np.isfinite(shown)]
        if shown.size and np.ptp(shown):
            # A band of few seeds may be far wider than all that happens.
            room = 0.25 * float(np.ptp(shown))
            axes.set_ylim(float(shown.min()) - room, float(shown.max()) + room)
        axes.set_xlabel("step")
        axes.set_ylabel(metric)
        return _finished(drawn, axes, len(found))


def forest(gaps: Sequence[Gap], title: str, margin: float | None) -> Figure:
    """Returns a forest plot: differences with intervals, one below the other.

    Args:
        gaps: From top to bottom.
        title: What is subtracted from what.
        margin: The margin that was stated, drawn as a band; none if there is none.
    """
    with own_settings():
        drawn = Figure(
            figsize=(_WIDTH, 1.1 + _ROW * max(len(gaps), 1)), dpi=200,
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07), facecolor="white",
        )  # fmt: skip
        axes = drawn.subplots()
        axes.axvline(0, color=_GREY, linewidth=0.8, zorder=1)
        if margin is not None:
            axes.axvspan(-margin, margin, color=_BAND, linewidth=0, zorder=0)
        ends = [
            end
            for gap in gaps
            for end in (gap.estimate, gap.low, gap.high)
            if math.isfinite(end)
        ]
        far = 1.1 * max([abs(end) for end in ends] + [margin or 0.0]) or 1.0
        for k, gap in enumerate(gaps):
            colour = _ANSWERS[gap.answer]
            low, high = (float(np.clip(x, -far, far)) for x in (gap.low, gap.high))
            axes.plot([low, high], [k, k], color=colour, linewidth=1.6)
            if math.isfinite(gap.estimate):
                axes.plot([gap.estimate], [k], color=colour, marker="s", markersize=5)
        axes.set_xlim(-far, far)
        axes.set_ylim(len(gaps) - 0.4, -0.6)  # the first on top
        axes.set_yticks(range(len(gaps)), [shortened(gap.name, _NAME) for gap in gaps])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        answers = axes.secondary_yaxis("right")
        answers.set_yticks(range(len(gaps)), [gap.answer for gap in gaps])
        answers.tick_params(axis="y", length=0)
        answers.spines["right"].set_visible(False)
        for label, gap in zip(answers.get_yticklabels(), gaps, strict=True):
            label.set_color(_ANSWERS[gap.answer])
        axes.set_xlabel(title)
        return _settled(drawn)


def layer_maps(found: Sequence[Layers]) -> Figure:
    """Returns heat maps of bits by layer and step, one for each arm.

    Args:
        found: At least one.
    """
    heights = [0.35 + 0.17 * max(len(each.layers), 4) for each in found]
    with own_settings():
        drawn = Figure(
            figsize=(_WIDTH, sum(heights) + 0.5), dpi=200,
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07), facecolor="white",
        )  # fmt: skip
        panels: list[Axes] = drawn.subplots(
            len(found), squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0].tolist()
        low = min(float(each.bits.min()) for each in found)
        high = max(float(each.bits.max()) for each in found)
        images = []
        for axes, each in zip(panels, found, strict=True):
            image = axes.imshow(
                each.bits, aspect="auto", interpolation="nearest", cmap="viridis",
                vmin=low, vmax=max(high, low + 1),
                extent=(0, each.steps, len(each.layers) - 0.5, -0.5),
            )  # fmt: skip
            images.append(image)
            axes.set_yticks(
                range(len(each.layers)), [shortened(name, 24) for name in each.layers]
            )
            axes.tick_params(axis="y", length=0)
            axes.set_title(shortened(each.name))
        panels[-1].set_xlabel("step")
        bar = drawn.colorbar(
            images[-1], ax=panels, label="bits", pad=0.01, fraction=0.05
        )
        bar.outline.set_visible(False)
        return _settled(drawn)


def _is_known(point: Point) -> bool:
    return bool(np.isfinite([point.cost, point.mean]).all()) and point.cost > 0


def _panel(height: float) -> tuple[Figure, Axes]:
    drawn = Figure(
        figsize=(_WIDTH, height), dpi=200,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07), facecolor="white",
    )  # fmt: skip
    axes = drawn.subplots()
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    return drawn, axes


def _look(k: int) -> tuple[str, str]:
    """Returns colour and marker of an arm; both together differ for 56 of them."""
    return COLOURS[k % len(COLOURS)], _MARKERS[(k // len(COLOURS)) % len(_MARKERS)]


def _log_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Makes costs logarithmic, with numbers that people read."""
    axes.set_xscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:.4g}")
    close = not costs or max(costs) / min(costs) < 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if close else (1, 3)))
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _finished(drawn: Figure, axes: Axes, entries: int) -> Figure:
    """Puts the legend beside the panel, where it hides nothing."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0,
        ncols=1 + (entries - 1) // (2 * _UPRIGHT),
    )  # fmt: skip
    return _settled(drawn)


def _settled(drawn: Figure) -> Figure:
    for text in drawn.findobj(Text):
        text.set_parse_math(False)  # a "$" in a name is one
    settle(drawn)
    return drawn
