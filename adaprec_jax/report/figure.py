"""The precision of runs as a picture: bits, learning rate and cost over the steps.

Importing this needs matplotlib, the extra `plot`. It draws on `Figure` objects alone:
no pyplot, no window, and nothing of the user's matplotlib settings is read or changed.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

SUFFIXES = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, told apart with any colour vision; no yellow on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
_WIDTH, _LINES, _SMALL = 7.2, 2.0, 1.2  # inches: a figure, its tall and its low panels
_UPON, _STACKED = 3, 0.9  # courses in one panel at most; inches of a panel of each
_ROW, _TALLEST = 0.17, 6.0  # inches: a layer of a heat map, and all of them
_FEWEST = 7  # layers for which a heat map has room
_LABELS = 34  # layers named at most
_LONGEST, _LONGEST_LAYER = 45, 31  # characters of a name
_TITLE, _CHARACTERS = 56, 105  # that fit above a panel: of a title, of a legend
_THIN, _ONE = 1.2, 1.9  # points: the narrowest line, and one in its own panel
_DENSE = 150  # changes, from which on a line is drawn thin
_PIXELS = 200  # per inch
_METADATA = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}


class Course(NamedTuple):
    """What was decided over a run, and what it cost.

    Attributes:
        name: Of the run.
        steps: Its length.
        starts: Steps before each of which the formats change; the first is 0.
        layers: Names of the layers.
        operands: Product and role of each operand, such as "forward.weight".
        bits: From each of the starts on.
        cost: From each of the starts on, bit operations relative to float32; none where
            they were not counted.
        rate_steps: Steps of which the learning rate is known.
        rates: The learning rate of these steps.
    """

    name: str
    steps: int
    starts: Int[np.ndarray, " changes"]
    layers: tuple[str, ...]
    operands: tuple[str, ...]
    bits: Int[np.ndarray, "changes layers operands"]
    cost: Float[np.ndarray, " changes"] | None
    rate_steps: Int[np.ndarray, " known"]
    rates: Float[np.ndarray, " known"]


class Group(NamedTuple):
    """Operands that have the same bits at all steps, in all layers.

    Attributes:
        name: Which operands.
        bits: From each start of the course on.
    """

    name: str
    bits: Int[np.ndarray, "changes layers"]


def groups(course: Course) -> tuple[Group, ...]:
    """Returns the operands of a course by what they have in common.

    >>> operands = "forward.activation", "forward.weight", "dgrad.gradient"
    >>> bits = np.array([[[3, 3, 8]], [[4, 4, 8]]])
    >>> none = np.zeros(0, int)
    >>> course = Course(
    ...     "x", 9, np.array([0, 5]), ("a",), operands, bits, None, none, none / 1
    ... )
    >>> [group.name for group in groups(course)]
    ['activation, weight', 'gradient']
    """
    together: dict[bytes, list[int]] = {}
    for k in range(len(course.operands)):
        together.setdefault(course.bits[..., k].tobytes(), []).append(k)
    return tuple(
        Group(_operands(course.operands, members), course.bits[..., members[0]])
        for members in together.values()
    )


def mean_cost(course: Course) -> float | None:
    """Returns the cost of a course, mean over its steps."""
    if course.cost is None:
        return None
    return float(np.average(course.cost, weights=np.diff(_edges(course))))


class _Style(NamedTuple):
    """How a line looks; later ones are narrower, to show what lies below them."""

    colour: str
    dash: int
    width: float


_NEUTRAL = _Style("#555555", 0, _THIN)


def figure(courses: Sequence[Course]) -> Figure:
    """Returns a figure of one or more courses.

    The bits are lines where all layers have the same, in one panel for up to three such
    courses and in a panel for each of more; else heat maps, one above the other with
    one colour bar. Gradients whose bits never change are a note beside the name. Below
    are learning rate and cost, over the same steps; a learning rate that is always the
    same is a note, too.

    Args:
        courses: At least one.
    """
    styles = _styles(len(courses))
    lines = [
        (course, style)
        for course, style in zip(courses, styles, strict=True)
        if not _maps(course)
    ]
    if stacked := len(lines) > _UPON:
        panels = [[(course, look._replace(width=_ONE))] for course, look in lines]
    else:
        panels = [lines] if lines else []
    maps = [(course, group) for course in courses for group in _maps(course)]
    rates = np.concatenate([course.rates for course in courses])
    steady = not rates.size or not np.ptp(rates)
    heights = [_STACKED if stacked else _LINES] * len(panels)
    heights += [_height(course) for course, _ in maps]
    heights += [_SMALL] * (1 if steady else 2)
    with own_settings():
        drawn = Figure(
            figsize=(_WIDTH, sum(heights) + 0.5 + 0.25 * stacked * len(panels)),
            dpi=_PIXELS,
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07),  # inches
            facecolor="white",
        )
        axes: list[Axes] = drawn.subplots(
            len(heights),
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )[:, 0].tolist()
        *others, cost = axes
        bits, others = others[: len(panels)], others[len(panels) :]
        for one, mine in zip(bits, panels, strict=True):
            _draw_lines(one, mine, alone=len(courses) == 1)
        if stacked:
            highest = max(int(course.bits.max()) for course, _ in lines)
            for one in bits:
                one.set_ylim(0, highest * 1.08)
        if maps:
            _draw_maps(drawn, others[: len(maps)], maps)
        if not steady:
            _draw_rates(others[-1], courses, styles)
        _draw_costs(cost, courses, styles)
        known = f" (learning rate {rates[0]:.4g})" if steady and rates.size else ""
        cost.set_xlabel(f"step{known}")
        cost.set_xlim(0, max(course.steps for course in courses))
        cost.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        drawn.align_ylabels([*bits, *others[len(maps) :], cost])
        for text in drawn.findobj(Text):
            text.set_parse_math(False)  # a "$" in a name is one
        settle(drawn)
        return drawn


def settle(drawn: Figure) -> None:
    """Lays the panels out for good.

    The solver's last digits differ from one time to the next, and files with them.
    """
    drawn.draw_without_rendering()
    places = [axes.get_position(original=True).bounds for axes in drawn.axes]
    drawn.set_layout_engine("none")
    for axes, (left, bottom, width, height) in zip(drawn.axes, places, strict=True):
        axes.set_position(
            (round(left, 6), round(bottom, 6), round(width, 6), round(height, 6))
        )


def save(drawn: Figure, path: Path) -> None:
    """Writes a figure; the same figure gives the same bytes.

    Args:
        drawn: What `figure` returned.
        path: Its suffix, one of `SUFFIXES`, says how.
    """
    with own_settings():
        drawn.savefig(path, metadata=_METADATA[path.suffix.lower()])


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Puts matplotlib's defaults in force, not the user's, for a while."""
    with mpl.rc_context(), warnings.catch_warnings():
        # A character that the font does not have is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.hashsalt": "adaprec_jax",
                "font.size": 8.5,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.titlelocation": "left",
                "axes.titlesize": "medium",
                "legend.frameon": False,
                "legend.fontsize": "small",
            }
        )
        yield


def _styles(count: int) -> list[_Style]:
    """Returns a style for each of so many lines that may lie upon each other."""
    return [
        _Style(
            COLOURS[k % len(COLOURS)],
            k // len(COLOURS),
            _THIN + 0.7 * min(count - 1 - k, 3),
        )
        for k in range(count)
    ]


def _draw_lines(
    axes: Axes, courses: Sequence[tuple[Course, _Style]], *, alone: bool
) -> None:
    """Draws the bits of courses whose layers have all the same."""
    highest = 0
    single = len(courses) == 1
    for course, style in courses:
        first, *others = groups(course)
        shown = (first, *(g for g in others if g.name != "gradient" or np.ptp(g.bits)))
        looks = _styles(len(shown)) if alone else [style] * len(shown)
        for k, (group, look) in enumerate(zip(shown, looks, strict=True)):
            name = group.name if single else shortened(course.name)
            if not single:
                name += f": {group.name}" if k else _note(course)
            bits = group.bits[:, 0]
            highest = max(highest, int(bits.max()))
            _steps(axes, course, bits, look._replace(dash=look.dash + k), name)
    axes.set_ylabel("bits")
    axes.set_ylim(0, highest * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 4, 5, 10]))
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    title = ""
    if single:
        [(course, _)] = courses
        title = _fitted(shortened(course.name), _note(course))
    _legend(axes, title=title)


def _note(course: Course) -> str:
    """Returns the bits of gradients that are not drawn, "" if they are."""
    _, *others = groups(course)
    steady = (g for g in others if g.name == "gradient" and not np.ptp(g.bits))
    return "".join(f" (gradient {group.bits.flat[0]} bits)" for group in steady)


def _fitted(name: str, about: str) -> str:
    """Returns a title, in two lines if it is long."""
    return (
        f"{name}{about}" if len(name + about) < _TITLE else f"{name}\n{about.strip()}"
    )


def _draw_maps(
    drawn: Figure, panels: Sequence[Axes], maps: Sequence[tuple[Course, Group]]
) -> None:
    """Draws the bits of courses by layer, with one colour bar."""
    widths = np.unique(np.concatenate([group.bits.ravel() for _, group in maps]))
    count = len(widths)
    # A colour for each width there is: 7 and 8 bits differ beside 32, too.
    colours = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.05, 1, count)))
    between = (widths[1:] + widths[:-1]) / 2
    norm = BoundaryNorm([widths[0] - 1, *between, widths[-1] + 1], count)
    for axes, (course, group) in zip(panels, maps, strict=True):
        edges = np.arange(len(course.layers) + 1) - 0.5
        axes.pcolormesh(
            _edges(course), edges, group.bits.T, cmap=colours, norm=norm,
            rasterized=True,
        )  # fmt: skip
        axes.set_ylim(edges[-1], edges[0])  # the first layer on top
        every = math.ceil(len(course.layers) / _LABELS)
        axes.set_yticks(
            range(0, len(course.layers), every),
            [shortened(name, _LONGEST_LAYER) for name in course.layers[::every]],
            fontsize="small",
        )
        axes.set_title(_title(course, group))
        axes.tick_params(axis="y", length=0)
    height = sum(_height(course) for course, _ in maps)
    places = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    bar = drawn.colorbar(
        ScalarMappable(places, colours), ax=list(panels), label="bits",
        aspect=height / 0.13, fraction=0.05, pad=0.01,
    )  # fmt: skip
    ticks = range(0, count, math.ceil(count / max(6 * height, 1)))
    bar.set_ticks(list(ticks), labels=[str(widths[tick]) for tick in ticks])
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _title(course: Course, group: Group) -> str:
    """Returns what a heat map shows, and which operands have no map of their own."""
    others = [
        f"{other.name} {other.bits.flat[0]} bits"
        for other in groups(course)
        if not np.ptp(other.bits)
    ]
    aside = f" ({'; '.join(others)})" if others else ""
    name, about = shortened(course.name), f"{group.name}{aside}"
    return f"{name}: {about}" if len(name + about) < _TITLE else f"{name}\n{about}"


def _draw_rates(
    axes: Axes, courses: Sequence[Course], styles: Sequence[_Style]
) -> None:
    """Draws the learning rates; one line where they are all the same."""
    first, *others = courses
    if all(
        np.array_equal(first.rates, other.rates)
        and np.array_equal(first.rate_steps, other.rate_steps)
        for other in others
    ):
        courses, styles = [first], [_NEUTRAL]
    highest = 0.0
    for course, style in zip(courses, styles, strict=True):
        if not course.rates.size:
            continue
        highest = max(highest, float(course.rates.max()))
        axes.plot(
            np.append(course.rate_steps, course.rate_steps[-1] + 1),
            np.append(course.rates, course.rates[-1]),
            color=style.colour, linewidth=style.width,
            linestyle=_DASHES[style.dash % len(_DASHES)],
        )  # fmt: skip
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(0, _above(highest))
    axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=False)


def _draw_costs(
    axes: Axes, courses: Sequence[Course], styles: Sequence[_Style]
) -> None:
    """Draws the cost of each step, with the mean over all."""
    alone, highest = len(courses) == 1, 0.0
    for course, style in zip(courses, styles, strict=True):
        if (mean := mean_cost(course)) is None or course.cost is None:
            continue
        highest = max(highest, float(course.cost.max()))
        name = "" if alone else f"{shortened(course.name)}: "
        look = _NEUTRAL if alone else style
        _steps(axes, course, course.cost, look, f"{name}mean {mean:.4f}")
    axes.set_ylabel("cost\n(float32: 1)")
    axes.set_ylim(0, _above(highest))
    _legend(axes)


def _steps(
    axes: Axes, course: Course, values: np.ndarray, style: _Style, name: str
) -> None:
    """Draws values that hold from one start to the next, as a line of steps."""
    changes = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    axes.plot(
        np.append(course.starts[changes], course.steps),
        np.append(values[changes], values[-1]),
        drawstyle="steps-post", label=name, color=style.colour,
        linewidth=0.5 if len(changes) > _DENSE else style.width,
        linestyle=_DASHES[style.dash % len(_DASHES)],
        solid_joinstyle="miter", solid_capstyle="butt", clip_on=False,
    )  # fmt: skip


def _legend(axes: Axes, *, title: str = "") -> None:
    """Names the lines above the panel, where they hide nothing."""
    axes.set_title(title)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        widest = max(map(len, labels)) + 8  # with its line, in characters
        columns = min(len(labels), max(_CHARACTERS // widest, 1))
        right = bool(title) or len(labels) == 1
        axes.legend(
            handles, labels, loc="lower right" if right else "lower left",
            bbox_to_anchor=(float(right), 1), ncols=columns, borderaxespad=0.3,
            columnspacing=1.5,
        )  # fmt: skip


def _maps(course: Course) -> list[Group]:
    """Returns the groups to be drawn by layer; none if all layers are alike."""
    if (course.bits == course.bits[:, :1]).all():
        return []
    return [group for group in groups(course) if np.ptp(group.bits)]


def _edges(course: Course) -> Int[np.ndarray, " edges"]:
    return np.append(course.starts, course.steps)


def _height(course: Course) -> float:
    return min(max(len(course.layers), _FEWEST) * _ROW, _TALLEST)


def _above(highest: float) -> float:
    return 1.08 * highest if highest > 0 and math.isfinite(highest) else 1.0


def _operands(operands: Sequence[str], members: Sequence[int]) -> str:
    """Returns the names of operands: roles or products where it has all of those."""
    if len(members) == len(operands):
        return "all operands"
    mine = {operands[k] for k in members}
    for part in (2, 0):  # `partition` gives product, dot and role
        named = {operand.partition(".")[part] for operand in mine}
        if mine == {each for each in operands if each.partition(".")[part] in named}:
            return ", ".join(sorted(named))
    return ", ".join(operands[k].replace(".", " ") for k in members)


def shortened(name: str, longest: int = _LONGEST) -> str:
    """Returns a name that fits: begin and end, and what cannot be seen as "?"."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
