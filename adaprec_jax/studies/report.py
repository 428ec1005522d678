"""The report of a study: a page, tables and figures, equal to the byte each time.

Importing this needs matplotlib and jinja2, the extra `report`. Everything comes from
run directories; nothing depends on the day, the machine or the order of a folder.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adaprec_jax import inference
from adaprec_jax.inference import Interval
from adaprec_jax.report import figure as pictures, study_figures
from adaprec_jax.report.figure import Course
from adaprec_jax.report.page import Page, Picture, Section, as_markdown, html
from adaprec_jax.report.sheets import Sheet, as_csv, file_name, latex, markdown
from adaprec_jax.report.study_figures import Curve, Gap, Layers, Point
from adaprec_jax.runs import store
from adaprec_jax.runs.config import Float32
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.runs.recorded import NothingRecordedError, recorded
from adaprec_jax.studies.columns import Column, evaluations
from adaprec_jax.studies.compare import Comparison, Summary, Verdict, compare
from adaprec_jax.studies.results import Arm, Results
from adaprec_jax.studies.split import Split, split

_BINS = 200  # of a heat map, along the steps
_DRAWN = 8  # arms in one picture of precision, at most

_HEAD = (
    "arm", "runs", "diverged", "mean", "95 % interval", "cost", "minus baseline",
    "95 % interval of it", "p", "verdict", "could see", "r",
)  # fmt: skip
_FIELDS = (
    "arm", "runs", "diverged", "mean", "low", "high", "cost", "baseline", "difference",
    "difference_low", "difference_high", "p", "p_within", "verdict", "could_see",
    "correlation", "method",
)  # fmt: skip
_PARTS = ("part", "of", "gain", "95 % interval", "p", "verdict", "could see")
_PART_FIELDS = (
    "arm", "cost", "part", "of", "gain", "low", "high", "p", "verdict", "could_see",
)  # fmt: skip


def report(
    results: Results, baseline: str, columns: Sequence[Column], out: Path
) -> Path:
    """Writes the report of a study.

        index.html    opens offline; report.md has the same
        tables/       csv, tex and md
        figures/      svg and pdf

    Args:
        results: What `gathered` returned.
        baseline: As of `adaprec_jax.studies.compare.compare`.
        columns: What the arms are compared by.
        out: The folder; files of another report there are overwritten.

    Returns:
        The path of the page.

    Raises:
        InputError: As `compare`, or the folder cannot be written.
    """
    arms = [arm for arm in results.arms if arm.runs]
    found = compare(results, baseline, columns)
    sections, drawn = [], dict[str, Figure]()
    for column in columns:
        section, mine = _about(found, arms, column)
        sections.append(section)
        drawn |= mine
    for section, mine in (
        _about_controls(results, baseline, columns),
        _about_precision(arms),
        (_about_environment(arms), {}),
    ):
        sections += [section] if section else []
        drawn |= mine
    runs = sum(len(arm.runs) for arm in arms)
    lead = f"{runs} runs of {len(arms)} arms; intervals are of 95 %."
    page = Page(f"Study {results.study}", lead, found.notes, sections)
    _write(page, drawn, out)
    return out / "index.html"


def default_baseline(results: Results) -> str:
    """Returns the arm without rounding.

    Raises:
        InputError: There is none, or several.
    """
    plain = [
        arm.name
        for arm in results.arms
        if arm.runs and isinstance(_schedule(arm), Float32)
    ]
    if len(plain) != 1:
        raise InputError(
            f"The study {results.study} has {len(plain) or 'no'} arms in float32; say "
            "with --baseline what the others are compared with."
        )
    return plain[0]


def default_metrics(results: Results) -> list[str]:
    """Returns the results on the test set at the highest precision that all runs have.

    Raises:
        InputError: There is none.
    """
    have = [
        {name for name in run.outcome.results if name.startswith("test/highest/")}
        for arm in results.arms
        for run in arm.runs.values()
        if run.outcome.state == "done"
    ]
    common = sorted(set.intersection(*have)) if have else []
    if not common:
        raise InputError(
            f"The runs of {results.study} have no test result in common; say one with "
            "--metric."
        )
    return common


def _about(
    found: Comparison, arms: Sequence[Arm], column: Column
) -> tuple[Section, dict[str, Figure]]:
    """Returns what is said of the arms by one column, with its figures."""
    name = file_name(column.name)
    summaries = [each for each in found.summaries if each.column == column.name]
    verdicts = [each for each in found.verdicts if each.column == column.name]
    drawn: dict[str, tuple[Figure, str]] = {}
    points = [Point(each.arm, each.cost, *each.mean) for each in summaries]
    if any(math.isfinite(point.cost) for point in points):
        drawn[f"cost-{name}"] = (
            study_figures.cost_plane(points, column.name, higher=column.higher),
            f"{column.name} against cost, with 95 % intervals over seeds.",
        )
    gaps = [
        Gap(
            each.arm, each.difference.estimate, each.difference.low,
            each.difference.high, each.answer,
        )
        for each in verdicts
    ]  # fmt: skip
    bases = list(dict.fromkeys(each.baseline for each in verdicts))
    minus = f"{column.name}, minus {' and '.join(bases)}"
    band = (
        "" if column.margin is None else f" The band is the margin, {column.margin:g}."
    )
    drawn[f"forest-{name}"] = (
        study_figures.forest(gaps, minus, column.margin),
        f"Differences from {' and '.join(bases)}, with 95 % intervals.{band}",
    )
    evaluated, lines = _curves(arms, column)
    if lines:
        drawn[f"curves-{name}"] = (
            study_figures.curves(lines, evaluated, [arm.name for arm in arms]),
            f"{evaluated} over the steps, mean over seeds with 95 % intervals.",
        )
    better = "higher" if column.higher else "lower"
    margin = (
        "no margin was stated, so that nothing can be called equivalent"
        if column.margin is None
        else f"a difference below {column.margin:g} was said not to matter"
    )
    section = Section(
        column.name, f"{better.capitalize()} is better; {margin}.",
        [_sheet(name, summaries, verdicts)],
        [Picture(key, caption) for key, (_, caption) in drawn.items()],
    )  # fmt: skip
    return section, {key: figure for key, (figure, _) in drawn.items()}


def _sheet(
    name: str, summaries: Sequence[Summary], verdicts: Sequence[Verdict]
) -> Sheet:
    """Returns the table of one column."""
    by_arm = {each.arm: each for each in verdicts}
    rows, numbers = [], []
    for each in summaries:
        mean = each.mean
        row = [each.arm, str(each.runs), str(each.bad or ""), *_spanned(mean)]
        row += ["" if math.isnan(each.cost) else f"{each.cost:.4f}"]
        plain = [each.arm, each.runs, each.bad, *mean, each.cost]
        if verdict := by_arm.get(each.arm):
            gap = verdict.difference
            unsure = verdict.answer == "inconclusive"
            row += [
                *_spanned(Interval(*gap[:3]), sign="+"), _p(verdict.p), verdict.answer,
                _visible(verdict.visible) if unsure else "",
                "" if gap.correlation is None else f"{gap.correlation:.2f}",
            ]  # fmt: skip
            plain += [
                verdict.baseline, *gap[:3], verdict.p, verdict.p_within,
                verdict.answer, verdict.visible, gap.correlation, gap.method,
            ]  # fmt: skip
        else:
            row += ["", "", "", "baseline", "", ""]
            plain += [None] * (len(_FIELDS) - len(plain))
        rows.append(row)
        numbers.append(plain)
    used = [k for k in range(len(_HEAD)) if any(row[k] for row in rows)]
    head = [_HEAD[k] for k in used]
    return Sheet(
        name, "", head, [[row[k] for k in used] for row in rows], numbers, _FIELDS
    )


def _curves(arms: Sequence[Arm], column: Column) -> tuple[str, list[Curve]]:
    """Returns the learning curves that belong to a test result, if there are some."""
    first, _, rest = column.name.partition("/")
    evaluated = f"validation/{rest}"
    if first != "test":
        return evaluated, []
    found = []
    for arm in arms:
        runs = [evaluations(run, evaluated) for run in arm.runs.values()]
        runs = [each for each in runs if each]
        # Only where all runs have a value: else the mean would jump as one ends.
        steps = sorted(set.intersection(*map(set, runs))) if runs else []
        if len(steps) < 2:
            continue
        values = [np.array([each[step] for each in runs]) for step in steps]
        # The t-interval, however many runs: a band is looked at, not tested.
        means = [
            inference.t_interval(each)
            if len(each) > 1 and np.isfinite(each).all()
            else inference.mean_interval(each)
            for each in values
        ]
        found.append(Curve(arm.name, np.array(steps, float), *np.array(means).T))
    return evaluated, found


def _about_controls(
    results: Results, baseline: str, columns: Sequence[Column]
) -> tuple[Section | None, dict[str, Figure]]:
    """Returns what the gains of schedules are due to, if the study can tell."""
    try:
        splits = [each for each in split(results, baseline, columns) if each.parts]
    except InputError:  # nothing changes its formats
        return None, {}
    if not splits:
        return None, {}
    sheets = [_split_sheet(each) for each in splits]
    text = (
        "At equal cost: the schedule minus static formats, interpolated for each seed. "
        "The other parts say what that is due to. Their p-values are adjusted for all "
        f"{sum(len(each.parts) for each in splits)} parts (Holm)."
    )
    drawn: dict[str, Figure] = {}
    figures = []
    for column in columns:
        gaps = [
            Gap(
                each.arm, part.difference.estimate, part.difference.low,
                part.difference.high, part.answer,
            )
            for each in splits
            for part in each.parts[:1]
            if each.column == column.name
        ]  # fmt: skip
        if gaps:
            name = f"equal-cost-{file_name(column.name)}"
            title = f"{column.name}, minus static formats of equal cost"
            drawn[name] = study_figures.forest(gaps, title, column.margin)
            figures.append(Picture(name, f"{title}, with 95 % intervals."))
    return Section("What the gains are due to", text, sheets, figures), drawn


def _split_sheet(found: Split) -> Sheet:
    rows, numbers = [], []
    for part in found.parts:
        gap = part.difference
        visible = part.visible if part.answer == "inconclusive" else None
        rows.append(
            [
                part.name, part.of, *_spanned(Interval(*gap[:3]), sign="+"),
                _p(part.p), part.answer, _visible(visible),
            ]
        )  # fmt: skip
        numbers.append(
            [
                found.arm, found.cost, part.name, part.of, *gap[:3], part.p,
                part.answer, part.visible,
            ]
        )  # fmt: skip
    name = f"split-{file_name(found.arm)}-{file_name(found.column)}"
    title = f"{found.arm}, {found.column}, cost {found.cost:.4f}"
    return Sheet(name, title, _PARTS, rows, numbers, _PART_FIELDS)


def _about_precision(
    arms: Sequence[Arm],
) -> tuple[Section | None, dict[str, Figure]]:
    """Returns the precision over time, of the arms in which it changes."""
    moving, maps = [], []
    for arm in arms:
        run = arm.runs[min(arm.runs)]
        if not (run.directory / store.METRICS).is_file():
            continue
        try:
            course = recorded(run.directory)
        except NothingRecordedError:
            continue
        if len(course.starts) > 1:
            moving.append(course._replace(name=f"{arm.name}, seed {min(arm.runs)}"))
        if (course.bits != course.bits[:, :1]).any():
            maps.append(_layers(arm, course))
    drawn, figures = {}, []
    if moving:
        drawn["precision"] = pictures.figure(moving[:_DRAWN])
        more = f" The first {_DRAWN} of {len(moving)}." if len(moving) > _DRAWN else ""
        figures.append(Picture("precision", f"Bits and cost over the steps.{more}"))
    if maps:
        drawn["layers"] = study_figures.layer_maps(maps[:_DRAWN])
        said = "Bits of the forward weights by layer and step, mean over seeds."
        figures.append(Picture("layers", said))
    if not figures:
        return None, {}
    return Section("Precision", "", [], figures), drawn


def _layers(arm: Arm, first: Course) -> Layers:
    """Returns the bits of the layers of an arm, mean over its seeds."""
    weight = first.operands.index("forward.weight")
    at = np.linspace(0, first.steps - 1, min(_BINS, first.steps)).astype(int)
    bits = []
    for run in arm.runs.values():
        course = recorded(run.directory)
        place = np.searchsorted(course.starts, at, side="right") - 1
        bits.append(course.bits[place][:, :, weight].T)
    return Layers(arm.name, first.steps, first.layers, np.mean(bits, axis=0))


def _about_environment(arms: Sequence[Arm]) -> Section:
    """Returns what all runs depended on."""
    values: dict[str, dict[str, None]] = {}
    for arm in arms:
        for run in arm.runs.values():
            for environment in run.environments:
                for name, value in environment.items():
                    if name != "began":
                        values.setdefault(name, {})[str(value)] = None
    rows = [[name, ", ".join(sorted(each))] for name, each in sorted(values.items())]
    sheet = Sheet(
        "environment", "", ("setting", "value"), rows, rows, ("name", "value")
    )
    return Section("Environment", "", [sheet], [])


def _write(page: Page, drawn: Mapping[str, Figure], out: Path) -> None:
    sheets = [sheet for section in page.sections for sheet in section.sheets]
    texts = {"index.html": html(page), "report.md": as_markdown(page)}
    for sheet in sheets:
        texts[f"tables/{sheet.name}.csv"] = as_csv(sheet)
        texts[f"tables/{sheet.name}.tex"] = f"{latex(sheet)}\n"
        texts[f"tables/{sheet.name}.md"] = f"{markdown(sheet)}\n"
    with writing(out):
        for folder in ("tables", "figures"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8", newline="\n")
        for name, figure in drawn.items():
            for suffix in (".svg", ".pdf"):
                pictures.save(figure, out / "figures" / f"{name}{suffix}")


def _schedule(arm: Arm) -> object:
    return next(iter(arm.runs.values())).cell.experiment.schedule


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value + 0.0:.4g}"


def _spanned(interval: Interval, sign: str = "") -> tuple[str, str]:
    """Returns an estimate and its interval, with as many digits as that is wide."""
    mean, low, high = interval
    if not np.isfinite([mean, low, high]).all():
        ends = f"{_text(low)} to {_text(high)}"
        return _text(mean), "unknown" if -low == high == math.inf else ends
    half = (high - low) / 2
    digits = 4 if not half else int(np.clip(1 - math.floor(math.log10(half)), 0, 7))
    mean, low, high = (round(each, digits) + 0.0 for each in interval)
    return f"{mean:{sign}.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


def _visible(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _p(value: float) -> str:
    return "<.0001" if value < 1e-4 else f"{value:.4f}"
