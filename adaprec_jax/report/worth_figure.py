"""The value of a bit by layer and phase, as pictures; importing this needs matplotlib.

As in `adaprec_jax.report.figure` nothing of the user's settings is read or changed, and
the same numbers give the same bytes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from adaprec_jax.report.figure import own_settings, settle, shortened

_WIDTH, _ROW, _REST = 2.6, 0.32, 1.7  # inches
_NAME = 28  # characters
_MAP = "RdBu"
_DARK = 0.6  # of the largest value, above which text is white


class Cell(NamedTuple):
    """The value of a bit in one place.

    Attributes:
        panel: The formats that were tried.
        layer: Where.
        phase: When.
        value: Change of the metric by 10^9 bit operations; NaN is unknown.
        sure: Whether its interval leaves out zero.
    """

    panel: str
    layer: str
    phase: str
    value: float
    sure: bool


def worth_figure(cells: Sequence[Cell], metric: str) -> Figure:
    """Returns a heat map for each of the formats: layers down, phases across.

    A value in bold has an interval that leaves out zero. One scale of colours serves
    all maps, and zero is its middle.

    Args:
        cells: At least one.
        metric: What the values change.
    """
    panels, layers, phases = (
        [*dict.fromkeys(getattr(cell, field) for cell in cells)]
        for field in ("panel", "layer", "phase")
    )
    finite = [abs(cell.value) for cell in cells if math.isfinite(cell.value)]
    largest = max(finite, default=0.0) or 1.0
    with own_settings():
        figure = Figure(
            (
                1.6 + max(_WIDTH, 0.95 * len(phases)) * len(panels),
                _REST + _ROW * len(layers),
            ),
            layout=ConstrainedLayoutEngine(),
        )
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, panel in zip(axes, panels, strict=True):
            mine = [cell for cell in cells if cell.panel == panel]
            _panel(ax, mine, layers, phases, largest)
            ax.set_title(panel)
        colours = ScalarMappable(Normalize(-largest, largest), _MAP)
        bar = figure.colorbar(colours, ax=axes, shrink=0.9)
        bar.set_label(f"{metric}\nby 10⁹ bit operations")
        settle(figure)
    return figure


def _panel(
    ax: Axes,
    cells: Sequence[Cell],
    layers: Sequence[str],
    phases: Sequence[str],
    largest: float,
) -> None:
    """Draws the map of one of the formats."""
    values = np.full((len(layers), len(phases)), np.nan)
    for cell in cells:
        y, x = layers.index(cell.layer), phases.index(cell.phase)
        shown = math.isfinite(cell.value)
        values[y, x] = cell.value if shown else np.nan
        pale = not shown or abs(cell.value) < _DARK * largest
        ax.text(
            x, y, f"{cell.value + 0.0:.2g}", ha="center", va="center", fontsize=7,
            color="black" if pale else "white",
            fontweight="bold" if cell.sure else "normal",
        )  # fmt: skip
    ax.imshow(values, cmap=_MAP, vmin=-largest, vmax=largest, aspect="auto")
    ax.set_xticks(range(len(phases)), phases)
    ax.set_yticks(range(len(layers)), [shortened(each, _NAME) for each in layers])
    ax.tick_params(length=0)
    ax.set_xlabel("steps")
    ax.set_facecolor("#e8e8e8")
