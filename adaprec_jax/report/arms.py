"""Arms of an experiment side by side: what each reached, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from adaprec_jax import inference
from adaprec_jax.report.chart import chart


class Arm(NamedTuple):
    """What came of one arm; numbers are over its seeds.

    Attributes:
        metric: The accuracy, or another metric of the task, on the test set, at the
            highest precision of the schedule.
        cost: Bit operations relative to float32, mean over the run.
        changes: Steps with another precision than the step before.
        bits: Of activations and weights by layer, over seeds and steps.
    """

    metric: Float[np.ndarray, " seeds"]
    cost: Float[np.ndarray, " seeds"]
    changes: Int[np.ndarray, " seeds"]
    bits: Mapping[str, Int[np.ndarray, "seeds steps"]]


class Pack(NamedTuple):
    """Arms that were trained together, in so many compilations."""

    arms: Mapping[str, Arm]
    compilations: int


class Interval(NamedTuple):
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float


def t_interval(values: Float[np.ndarray, " seeds"]) -> Interval:
    """Returns mean and 95 % t-interval of at least two values.

    >>> mean, half = t_interval(np.array([1.0, 3.0]))
    >>> print(f"{mean} {half:.2f}")
    2.0 12.71
    """
    mean, low, _ = inference.t_interval(values)
    return Interval(mean, mean - low)


def as_json(packs: Sequence[Pack], baseline: str) -> dict[str, Any]:
    """Returns the table as JSON values; `minus_baseline` is paired by seed."""
    arms = {name: arm for pack in packs for name, arm in pack.arms.items()}
    base = arms[baseline].metric
    table = {
        name: {
            "accuracy": t_interval(arm.metric)._asdict(),
            "minus_baseline": t_interval(arm.metric - base)._asdict(),
            "cost": float(arm.cost.mean()),
            "changes": arm.changes.tolist(),
            "accuracies": arm.metric.tolist(),
        }
        for name, arm in arms.items()
    }
    counts = [{"compilations": p.compilations, "runs": _runs(p)} for p in packs]
    return {"baseline": baseline, "arms": table, "packs": counts}


def as_text(packs: Sequence[Pack], baseline: str) -> list[str]:
    """Returns the table, the bits over time, and the counts, as lines."""
    table = as_json(packs, baseline)["arms"]
    pad = max(map(len, table))
    lines = [f"{'':{pad}}  accuracy      minus {baseline}  cost"]
    for name, row in table.items():
        accuracy, difference = _percent(row["accuracy"]), ""
        if name != baseline:
            difference = _percent(row["minus_baseline"])
        lines.append(f"{name:{pad}}  {accuracy:14}{difference:13}  {row['cost']:.4f}")
    moving = {
        label: bits
        for pack in packs
        for name, arm in pack.arms.items()
        if arm.changes.any()
        for label, bits in _labelled(name, arm).items()
    }
    if moving:
        lines += ["", "bits of activations and weights, first seed", *chart(moving)]
    return [*lines, "", *map(_counts, packs)]


def _labelled(name: str, arm: Arm) -> dict[str, Int[np.ndarray, " steps"]]:
    """Returns the bits of an arm's layers in its first seed, once if all are equal."""
    first, *others = (bits[0] for bits in arm.bits.values())
    if all(np.array_equal(first, other) for other in others):
        return {name: first}
    return {f"{name}, {layer}": bits[0] for layer, bits in arm.bits.items()}


def _percent(interval: Mapping[str, float]) -> str:
    mean = round(100 * interval["mean"], 1) + 0.0  # no negative zero
    return f"{mean:5.1f} ± {100 * interval['half']:3.1f} %"


def _runs(pack: Pack) -> int:
    return sum(len(arm.metric) for arm in pack.arms.values())


def _counts(pack: Pack) -> str:
    changes = np.concatenate([arm.changes for arm in pack.arms.values()])
    low, high = changes.min(), changes.max()
    times = f"{low}" if low == high else f"{low} to {high}"
    compiled = f"{pack.compilations} compilation{'s' * (pack.compilations != 1)}"
    return f"{compiled}, {_runs(pack)} runs, {times} precision changes each"
