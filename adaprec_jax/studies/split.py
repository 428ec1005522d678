"""What a schedule gains over static formats of equal cost, and what that is due to."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaprec_jax import inference
from adaprec_jax.inference import Difference
from adaprec_jax.runs import identity
from adaprec_jax.runs.config import Constant, Float32
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import Column
from adaprec_jax.studies.compare import SIGNIFICANCE, Answer, answered, claims
from adaprec_jax.studies.controls import Control, roles
from adaprec_jax.studies.results import Arm, Result, Results, find_arm

HEADLINE = "at equal cost"

# What each part is: the first minus the second, "" being the schedule itself.
_PARTS: tuple[tuple[str, Control | None, Control], ...] = (
    ("timing", None, "permuted"),
    ("not rising", None, "rising"),
    ("not falling", None, "falling"),
    ("regularisation", "permuted", "mixture"),
    ("structure", None, "noise"),
    ("loop alone", None, "replayed"),
    ("adaptivity", None, "exchanged"),
    ("regularisation", "exchanged", "mixture"),
)


class Part(NamedTuple):
    """A part of what a schedule gains.

    Attributes:
        name: Of the part.
        of: Which arm is subtracted from which, in words.
        difference: The first minus the second.
        p: Adjusted for all parts of all schedules.
        answer: As of `adaprec_jax.studies.compare.Verdict`.
        visible: The smallest effect that would have been seen; none if it is unknown.
    """

    name: str
    of: str
    difference: Difference
    p: float
    answer: Answer
    visible: float | None


class Split(NamedTuple):
    """What a schedule gains.

    Attributes:
        arm: Its name.
        column: By what.
        cost: Its bit operations relative to float32, mean over runs.
        parts: Those that the study has the controls for; the first is the headline,
            its difference from static formats at equal cost.
        missing: Why there is no headline, "" if there is one.
    """

    arm: str
    column: str
    cost: float
    parts: tuple[Part, ...]
    missing: str


def split(results: Results, baseline: str, columns: Sequence[Column]) -> list[Split]:
    """Returns the gain of each schedule of a study that changes its formats.

    - at equal cost, the headline: the schedule minus the static formats of the study,
      interpolated for each seed between the two whose costs enclose that of its run.
    - bits: those static formats minus the baseline, which is what so few bits do.
    - timing: the schedule minus the same formats in random order.
    - regularisation: formats that change in random order minus a static mixture of
      equal cost, which is what changing does by itself.
    - structure: the schedule minus the same formats with noise of the same size in the
      place of rounding, which is what rounding does beside adding noise.
    - regularisation by noise: that noise minus the static formats at equal cost. With
      the structure it sums up to the headline.
    - adaptivity: a closed loop minus the decisions that it took with another seed.
    - loop alone: a closed loop minus its own decisions replayed; not zero only if it
      does something beside deciding.

    Static formats must have the schedule's other settings; its controls may have been
    given a learning rate of their own.

    Args:
        results: Of the study, with its controls; see `studies.controls`.
        baseline: The arm that the bits are compared with.
        columns: By what.

    Raises:
        InputError: No schedule of the study changes its formats.
    """
    arms = [arm for arm in results.arms if arm.runs]
    tagged = {arm.name: roles(_one(arm).cell.experiment.tags) for arm in arms}
    moving = [arm for arm in arms if not _is_static(arm) and not tagged[arm.name]]
    if not moving:
        raise InputError(
            f"No schedule of the study {results.study} changes its formats, so that "
            "there is nothing to split."
        )
    found = []
    for column in columns:
        for arm in moving:
            of = _one(arm).cell.experiment.name
            same = [
                each
                for each in arms
                if _is_like(each, arm)
                or (
                    (kinds := {r.control for r in tagged[each.name] if r.of == of})
                    and _is_like(
                        each, arm, but=("learning_rate",), noisy="noise" in kinds
                    )
                )
            ]
            base = find_arm([each for each in arms if each.task == arm.task], baseline)
            mine: dict[Control, Arm] = {
                own.control: each
                for each in same
                for own in tagged[each.name]
                if own.of == of
            }
            static = [each for each in same if _is_static(each)]
            gaps, missing = _against_static(
                arm, static, base, mine.get("noise"), column
            )
            gaps += _gaps(arm, mine, column)
            found.append((arm, column, gaps, missing))
    return _adjusted(found)


_Gap = tuple[str, str, Difference]


def _adjusted(
    found: Sequence[tuple[Arm, Column, list[_Gap], str]],
) -> list[Split]:
    """Returns the splits, with p-values adjusted for all their parts."""
    flat = [claims(gap) for _, _, gaps, _ in found for *_, gap in gaps]
    adjusted = iter(inference.adjusted(flat))
    splits = []
    for arm, column, gaps, missing in found:
        parts = []
        for name, of, gap in gaps:
            ps = next(adjusted)
            answer = answered(gap, ps, higher=column.higher)
            visible = gap.visible(SIGNIFICANCE / len(flat))
            parts.append(Part(name, of, gap, ps[0], answer, visible))
        cost = float(np.mean([*_costs(arm).values()]))
        splits.append(Split(arm.name, column.name, cost, tuple(parts), missing))
    return splits


def _against_static(
    arm: Arm, static: Sequence[Arm], base: Arm, noise: Arm | None, column: Column
) -> tuple[list[_Gap], str]:
    """Returns the headline and what the bits do, or why neither is known."""
    static = sorted(static, key=lambda each: np.mean([*_costs(each).values()]))
    costs = _costs(arm)
    prices = [float(np.mean([*_costs(each).values()])) for each in static]
    if len(static) < 2 or not costs:
        return [], "the study has no two static formats to set beside it"
    if np.diff(prices).min() <= 0:
        return [], "the study has several static arms of one cost"
    low, high = min(costs.values()), max(costs.values())
    if low < prices[0] * (1 - 1e-9) or high > prices[-1] * (1 + 1e-9):
        return [], (
            f"it costs {low:.4g} to {high:.4g}, and the static formats "
            f"{prices[0]:.4g} to {prices[-1]:.4g}: nothing is extrapolated"
        )
    # Those between which something is interpolated; the others may have holes.
    first = max(int(np.searchsorted(prices, low, side="right")) - 1, 0)
    last = min(int(np.searchsorted(prices, high, side="left")), len(static) - 1)
    static, prices = static[first : last + 1], prices[first : last + 1]
    seeds = sorted(set.intersection(*(set(each.runs) for each in (arm, base, *static))))
    if len(seeds) < 2:
        return [], "fewer than two seeds are in it and in the static formats"
    values = np.array([column.of(each.name, seeds) for each in static])
    equal = np.array(
        [np.interp(costs[seed], prices, values[:, k]) for k, seed in enumerate(seeds)]
    )
    names = " and ".join(each.name for each in static)
    headline = _difference(column.of(arm.name, seeds), equal, column)
    bits = _difference(equal, column.of(base.name, seeds), column)
    gaps = [
        (HEADLINE, f"{arm.name} - {names}", headline),
        ("bits", f"{names} - {base.name}", bits),
    ]
    both = [k for k, seed in enumerate(seeds) if noise and seed in noise.runs]
    if noise and len(both) > 1:
        noisy = column.of(noise.name, [seeds[k] for k in both])
        gap = _difference(noisy, equal[both], column)
        gaps.append(("regularisation by noise", f"noise - {names}", gap))
    return gaps, ""


def _gaps(arm: Arm, mine: Mapping[Control, Arm], column: Column) -> Iterable[_Gap]:
    """Yields each part that there are controls for."""
    for name, first, second in _PARTS:
        left, right = (arm if first is None else mine.get(first)), mine.get(second)
        if left is None or right is None:
            continue
        seeds = sorted(left.runs.keys() & right.runs.keys())
        if len(seeds) < 2:
            continue
        a, b = (column.of(each.name, seeds) for each in (left, right))
        said = f"{first or arm.name} - {second}"
        yield name, said, _difference(a, b, column)


def _difference(values: np.ndarray, base: np.ndarray, column: Column) -> Difference:
    worst = [inference.worst(each, higher=column.higher) for each in (values, base)]
    return inference.difference(*worst, margin=column.margin)


def _one(arm: Arm) -> Result:
    return next(iter(arm.runs.values()))


def _is_static(arm: Arm) -> bool:
    return isinstance(_one(arm).cell.experiment.schedule, Constant | Float32)


def _costs(arm: Arm) -> dict[int, float]:
    """Returns the cost of each run, by seed."""
    return {
        seed: run.outcome.results["cost"]
        for seed, run in arm.runs.items()
        if "cost" in run.outcome.results
    }


def _is_like(
    arm: Arm, other: Arm, but: Sequence[str] = (), *, noisy: bool = False
) -> bool:
    """Returns whether arms differ in schedule, seed and some of the optimizer alone.

    Args:
        arm: One of them.
        other: The other.
        but: Settings of the optimizer that may differ, too.
        noisy: Whether scaling may.
    """
    exclude: dict[str, Any] = dict.fromkeys(
        ("name", "tags", "sinks", "keep_checkpoints", "seed", "schedule"), True
    )
    exclude["optimizer"] = set(but)
    if noisy or isinstance(_one(arm).cell.experiment.schedule, Float32):
        exclude["scaling"] = True  # of what is not rounded
    mine, others = (
        _one(each).cell.experiment.model_dump(mode="json", exclude=exclude)
        for each in (arm, other)
    )
    return identity.canonical(mine) == identity.canonical(others)
