"""Verdicts: which arms are better, worse or equivalent, and of which nobody knows."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from adaprec_jax import inference
from adaprec_jax.inference import Difference, Interval
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import Column
from adaprec_jax.studies.results import Arm, Results, find_arm

Answer: TypeAlias = Literal["better", "worse", "equivalent", "inconclusive"]

SIGNIFICANCE = 0.05
_FEW = 3  # runs of an arm, below which a sentence warns


class Summary(NamedTuple):
    """An arm by itself, in one column.

    Attributes:
        arm: Its name.
        column: Name of the column.
        mean: With its 95 % interval; the median, without, where a run diverged.
        runs: How many there are.
        bad: How many of them diverged, or did not reach the target.
        rate: Of those, with Wilson's 95 % interval.
        cost: Bit operations relative to float32, mean over runs; NaN if not counted.
    """

    arm: str
    column: str
    mean: Interval
    runs: int
    bad: int
    rate: Interval
    cost: float


class Verdict(NamedTuple):
    """An arm beside its baseline, in one column.

    Attributes:
        arm: Its name.
        baseline: That of the other.
        column: Name of the column.
        answer: "better" or "worse" where the adjusted p-value is at most 5 %;
            "equivalent" where that of the equivalence is, at the margin that was
            stated; else "inconclusive".
        difference: Arm minus baseline.
        p: Adjusted for all comparisons.
        p_within: The same, of the equivalence; none without a margin.
        visible: The smallest effect that 80 of 100 such studies would find, with as
            many comparisons; none where a run diverged or nothing varies.
        paired: How many seeds are in both arms; 0 if they are not paired.
        note: What else is to be said, "" if nothing.
    """

    arm: str
    baseline: str
    column: str
    answer: Answer
    difference: Difference
    p: float
    p_within: float | None
    visible: float | None
    paired: int
    note: str


class Comparison(NamedTuple):
    """All that a study says.

    Attributes:
        study: Its name.
        columns: What the arms are compared by.
        summaries: Of each arm and column.
        verdicts: Of each arm but the baselines, and each column.
        across: Over tasks, by schedule: the interquartile mean of the differences.
        notes: One sentence each.
    """

    study: str
    columns: tuple[Column, ...]
    summaries: tuple[Summary, ...]
    verdicts: tuple[Verdict, ...]
    across: tuple[tuple[str, str, Interval], ...]
    notes: tuple[str, ...]


def compare(results: Results, baseline: str, columns: Sequence[Column]) -> Comparison:
    """Returns what can be claimed about each arm beside a baseline.

    Runs are paired by seed wherever both arms have the same seeds, whatever came of
    them: a choice by the results would find too much. Holm's steps go over all arms and
    columns; see `adaprec_jax.inference.adjusted`.

    Args:
        results: What `gathered` returned.
        baseline: Name of the arm that the others are compared with, or a part that no
            other arm has. With several tasks there is one in each.
        columns: What they are compared by.

    Raises:
        InputError: No arm is meant or several are, or arms have less than two runs.
    """
    arms = [arm for arm in results.arms if arm.runs]
    pairs = [*_pairs(arms, baseline)]
    if not pairs:
        raise InputError(
            f"The study {results.study} has no arm beside the baseline {baseline!r}."
        )
    found = [
        (arm, base, column, *_difference(arm, base, column))
        for column in columns
        for arm, base in pairs
    ]
    adjusted = inference.adjusted([claims(difference) for *_, difference, _ in found])
    verdicts = tuple(
        _verdict(*each, ps, len(found))
        for each, ps in zip(found, adjusted, strict=True)
    )
    summaries = tuple(summary(arm, column) for column in columns for arm in arms)
    return Comparison(
        results.study,
        tuple(columns),
        summaries,
        verdicts,
        tuple(_across(pairs, columns)),
        (*results.notes, *_notes(arms, verdicts)),
    )


def summary(arm: Arm, column: Column) -> Summary:
    """Returns what came of an arm, in one column."""
    values = column.of(arm.name, sorted(arm.runs))
    bad = int(np.isnan(values).sum())
    ranked = inference.worst(values, higher=column.higher)
    costs = [run.outcome.results.get("cost", math.nan) for run in arm.runs.values()]
    return Summary(
        arm.name, column.name, inference.mean_interval(ranked), len(values), bad,
        inference.wilson_interval(bad, len(values)), float(np.mean(costs)),
    )  # fmt: skip


def answered(difference: Difference, ps: Sequence[float], *, higher: bool) -> Answer:
    """Returns what may be said of a difference.

    Args:
        difference: Arm minus baseline.
        ps: Adjusted p-values, that of the difference and perhaps that of equivalence.
        higher: Whether a higher value is better.
    """
    if len(ps) > 1 and ps[1] <= SIGNIFICANCE:
        return "equivalent"
    if ps[0] <= SIGNIFICANCE:
        return "better" if (difference.estimate > 0) == higher else "worse"
    return "inconclusive"


def claims(difference: Difference) -> list[float]:
    """Returns the p-values of a difference and, with a margin, of equivalence."""
    within = difference.p_within
    return [difference.p] if within is None else [difference.p, within]


def _pairs(arms: Sequence[Arm], baseline: str) -> Iterable[tuple[Arm, Arm]]:
    """Yields each arm with the baseline of its task."""
    for task in dict.fromkeys(arm.task for arm in arms):
        mine = [arm for arm in arms if arm.task == task]
        base = find_arm(mine, baseline)
        yield from ((arm, base) for arm in mine if arm is not base)


def _difference(arm: Arm, base: Arm, column: Column) -> tuple[Difference, int]:
    """Returns by how much an arm differs, and how many seeds are paired."""
    common = sorted(arm.runs.keys() & base.runs.keys())
    seeds = (common, common)
    if paired := len(common) >= 2:
        pass
    elif min(len(arm.runs), len(base.runs)) >= 2:
        seeds = (sorted(arm.runs), sorted(base.runs))
    else:
        raise InputError(
            f"A comparison needs two runs of each arm; {arm.name} has {len(arm.runs)} "
            f"and {base.name} has {len(base.runs)}."
        )
    mine, theirs = (
        inference.worst(column.of(each.name, some), higher=column.higher)
        for each, some in zip((arm, base), seeds, strict=True)
    )
    found = inference.difference(mine, theirs, margin=column.margin, paired=paired)
    return found, len(common) if paired else 0


def _verdict(
    arm: Arm,
    base: Arm,
    column: Column,
    difference: Difference,
    paired: int,
    ps: Sequence[float],
    comparisons: int,
) -> Verdict:
    p, p_within = ps[0], ps[1] if len(ps) > 1 else None
    answer = answered(difference, ps, higher=column.higher)
    smaller = answer == "equivalent" and p <= SIGNIFICANCE
    note = "it differs, by less than the margin" if smaller else ""
    visible = difference.visible(SIGNIFICANCE / comparisons)
    return Verdict(
        arm.name, base.name, column.name, answer, difference, p, p_within, visible,
        paired, note,
    )  # fmt: skip


def _across(
    pairs: Sequence[tuple[Arm, Arm]], columns: Sequence[Column]
) -> Iterable[tuple[str, str, Interval]]:
    """Yields the interquartile mean of the differences over tasks, by schedule."""
    groups: dict[str, list[tuple[Arm, Arm]]] = {}
    for arm, base in pairs:
        experiment = next(iter(arm.runs.values())).cell.experiment
        groups.setdefault(experiment.schedule.model_dump_json(), []).append((arm, base))
    for members in groups.values():
        if len({arm.task for arm, _ in members}) < 2:
            continue
        name = " and ".join(arm.name for arm, _ in members)
        for column in columns:
            gaps = [
                column.of(arm.name, seeds) - column.of(base.name, seeds)
                for arm, base in members
                if len(seeds := sorted(arm.runs.keys() & base.runs.keys())) >= 2
            ]
            if len(gaps) > 1 and all(np.isfinite(each).all() for each in gaps):
                yield name, column.name, inference.interquartile_interval(gaps)


def _notes(arms: Sequence[Arm], verdicts: Sequence[Verdict]) -> Iterable[str]:
    """Yields what a reader of the verdicts must know."""
    few = [arm.name for arm in arms if len(arm.runs) < _FEW]
    if few:
        yield f"Of fewer than {_FEW} runs nothing can be claimed: {', '.join(few)}."
    bad = [each.arm for each in verdicts if each.difference.method == "ranks"]
    if bad:
        yield (
            "A run that diverged, or did not reach a target, counts as the worst; "
            "means are medians there, and tests are by rank: "
            f"{', '.join(dict.fromkeys(bad))}."
        )
    apart = [each.arm for each in verdicts if not each.paired]
    if apart:
        yield f"Not paired, as their seeds differ: {', '.join(dict.fromkeys(apart))}."
    if any(verdict.p_within is not None for verdict in verdicts):
        yield "A margin counts if it was stated before the runs were looked at."
    yield (
        f"p-values are adjusted for {len(verdicts)} "
        f"comparison{'s' * (len(verdicts) != 1)} (Holm)."
    )
