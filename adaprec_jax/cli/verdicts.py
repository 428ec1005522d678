"""What the verb `compare` prints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adaprec_jax import inference
from adaprec_jax.display import text_table
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import Column
from adaprec_jax.studies.compare import Comparison, Summary, Verdict
from adaprec_jax.studies.results import Results
from adaprec_jax.studies.split import Split

_HEAD = (
    "arm", "mean", "95 % interval", "cost", "minus baseline", "95 % interval ",
    "p", "p within", "verdict", "could see", "r",
)  # fmt: skip


class Best(NamedTuple):
    """The best of some runs of an arm, in one column."""

    arm: str
    column: str
    best: inference.BestOf


def best_of(
    results: Results, columns: Sequence[Column], k: int | None
) -> dict[tuple[str, str], Best]:
    """Returns the best of k runs, by column and arm.

    Args:
        results: Of the study.
        columns: What the best is chosen by.
        k: How many runs it is chosen from; none returns nothing.

    Raises:
        InputError: An arm has fewer runs.
    """
    if k is None:
        return {}
    found = {}
    for each in columns:
        for arm in results.arms:
            values = inference.worst(
                each.of(arm.name, sorted(arm.runs)), higher=each.higher
            )
            try:
                best = inference.best_of(values, k, higher=each.higher)
            except ValueError as error:
                raise InputError(f"{arm.name}: {error}") from error
            found[each.name, arm.name] = Best(arm.name, each.name, best)
    return found


def lines(found: Comparison, best: Mapping[tuple[str, str], Best]) -> list[str]:
    """Returns a comparison as lines of text.

    The smallest effect that could be seen stands beside what is inconclusive.

    Args:
        found: The comparison.
        best: By column and arm, the best of some runs.
    """
    k = next((f"best of {each.best.k}" for each in best.values()), "")
    said = []
    for each in found.columns:
        better = "higher" if each.higher else "lower"
        margin = "no margin" if each.margin is None else f"margin {each.margin:g}"
        title = f"{each.name}, {better} is better, {margin}"
        verdicts = {v.arm: v for v in found.verdicts if v.column == each.name}
        rows = [
            _row(summary, verdicts.get(summary.arm), best)
            for summary in found.summaries
            if summary.column == each.name
        ]
        said += [text_table((*_HEAD, k), rows, caption=title), ""]
        said += _asides(found, each)
    for name, where, interval in found.across:
        said.append(f"interquartile mean over tasks, {where}, {name}: {span(interval)}")
    return [*said, *found.notes]


def split_lines(splits: Sequence[Split]) -> list[str]:
    """Returns what each schedule gains, and what that is due to, as lines of text."""
    said = []
    for each in splits:
        title = f"{each.arm}, {each.column}, cost {each.cost:.4f}"
        said += ["", f"{title}: no headline, {each.missing}" if each.missing else title]
        rows = [
            [
                part.name, f"{part.difference.estimate + 0.0:+.4g}",
                ends(part.difference.low, part.difference.high), chance(part.p),
                part.answer,
                number(part.visible if part.answer == "inconclusive" else None),
                part.of,
            ]
            for part in each.parts
        ]  # fmt: skip
        head = ("part", "gain", "95 % interval", "p", "verdict", "could see", "of")
        said += [text_table(head, rows)] if rows else []
    if splits:
        count = sum(len(each.parts) for each in splits)
        said += ["", f"p-values of the parts are adjusted for {count} of them (Holm)."]
    return said


def span(interval: inference.Interval) -> str:
    """Returns an estimate with its interval.

    >>> span(inference.Interval(0.5, 0.25, 0.75))
    '0.5 [0.25, 0.75]'
    """
    return f"{number(interval.estimate)} {ends(interval.low, interval.high)}"


def number(value: float | None) -> str:
    """Returns a number with four digits, "" for none.

    >>> number(0.123456), number(None)
    ('0.1235', '')
    """
    return "" if value is None or math.isnan(value) else f"{value + 0.0:.4g}"


def plain(value: Any) -> Any:
    """Returns named tuples as JSON objects, and numbers that JSON has not as text.

    >>> plain(inference.Interval(1.0, float("-inf"), float("nan")))
    {'estimate': 1.0, 'low': '-inf', 'high': 'nan'}
    """
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case tuple() if fields := getattr(value, "_fields", None):
            return {name: plain(getattr(value, name)) for name in fields}
        case tuple() | list():
            return [plain(each) for each in value]
        case dict():
            return {str(name): plain(each) for name, each in value.items()}
    return value


def _row(
    summary: Summary,
    verdict: Verdict | None,
    best: Mapping[tuple[str, str], Best],
) -> list[str]:
    cost = "" if math.isnan(summary.cost) else f"{summary.cost:.4f}"
    row = [summary.arm, number(summary.mean.estimate)]
    row += [ends(summary.mean.low, summary.mean.high), cost]
    mine = best.get((summary.column, summary.arm))
    last = number(mine.best.value) if mine else ""
    if verdict is None:
        return [*row, "", "", "", "", "baseline", "", "", last]
    gap = verdict.difference
    unsure = verdict.answer == "inconclusive"
    visible = verdict.visible if unsure else None
    return [
        *row, f"{gap.estimate + 0.0:+.4g}", ends(gap.low, gap.high), chance(verdict.p),
        chance(verdict.p_within), verdict.answer, number(visible),
        "" if gap.correlation is None else f"{gap.correlation:.2f}", last,
    ]  # fmt: skip


def _asides(found: Comparison, each: Column) -> Iterable[str]:
    """Yields what a row has no room for."""
    unreached = "did not reach it" if " to " in each.name else "diverged"
    for summary in found.summaries:
        if summary.column == each.name and summary.bad:
            yield (
                f"{summary.arm}: {summary.bad} of {summary.runs} runs {unreached}, "
                f"rate {span(summary.rate)}; they count as the worst."
            )
    for verdict in found.verdicts:
        if verdict.column == each.name and verdict.note:
            yield f"{verdict.arm}: {verdict.note}."


def ends(low: float, high: float) -> str:
    """Returns an interval, "unknown" for all numbers.

    >>> ends(-0.5, 0.25)
    '[-0.5, 0.25]'
    """
    if low == -math.inf and high == math.inf:
        return "unknown"
    return f"[{number(low)}, {number(high)}]"


def chance(value: float | None) -> str:
    """Returns a p-value, "" for none.

    >>> chance(0.00001)
    '<.0001'
    """
    if value is None:
        return ""
    return "<.0001" if value < 1e-4 else f"{value:.4f}"
