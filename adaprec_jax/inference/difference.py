"""An arm and its baseline: the difference, and all that is claimed from it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr

from adaprec_jax.inference.equivalence import within_margin
from adaprec_jax.inference.intervals import (
    Interval,
    bootstrap_interval,
    t_interval,
    welch,
    welch_interval,
)
from adaprec_jax.inference.method import Method, method_of
from adaprec_jax.inference.permutation import shuffle_test, sign_test
from adaprec_jax.inference.power import smallest_visible
from adaprec_jax.inference.ranks import joint_ranks, shift, signed_ranks, subtract


class Difference(NamedTuple):
    """What two arms differ by.

    Attributes:
        estimate: Mean of the arm minus that of the baseline; a median where a run
            diverged.
        low: End of the 95 % interval.
        high: The other end.
        p: Chance of such a difference if there were none.
        p_within: Chance of it if the true one were as large as the margin; none if no
            margin was stated.
        method: "t", "permutation" with a bootstrap interval, or "ranks"; see
            `inference.method.method_of`.
        correlation: Of the two arms over the seeds; none if they are not paired or one
            of them does not vary.
        error: Standard error; none where a run diverged.
        freedom: Its degrees of freedom.
    """

    estimate: float
    low: float
    high: float
    p: float
    p_within: float | None
    method: Method
    correlation: float | None
    error: float | None
    freedom: float | None

    def visible(self, significance: float = 0.05) -> float | None:
        """Returns the smallest effect that is found in 80 of 100 such studies.

        None where a run diverged, by an unknown amount, and where nothing varies.

        Args:
            significance: Of one test; 0.05 over the number of comparisons.
        """
        if not self.error or self.freedom is None:
            return None
        return smallest_visible(self.error, self.freedom, significance)


def difference(
    values: Float[np.ndarray, " seeds"],
    base: Float[np.ndarray, " others"],
    *,
    margin: float | None = None,
    paired: bool = True,
) -> Difference:
    """Returns by how much an arm differs from its baseline.

    Args:
        values: Of at least two runs; infinitely bad for one that diverged, see
            `inference.ranks.worst`.
        base: Of the baseline; if they are paired, of the same seeds in the same order.
        margin: The difference that would not matter, stated before the runs.
        paired: Whether both arms have the same seeds. What they share, such as the data
            order and the first weights, then cancels.

    Raises:
        ValueError: There are fewer than two runs of an arm, or paired arms have
            different numbers of them.

    >>> low = np.array([0.91, 0.93, 0.92, 0.94])
    >>> found = difference(low + np.array([0.01, 0.02, 0.01, 0.02]), low)
    >>> print(f"{found.estimate:.3f} {found.p:.3f} {found.visible():.3f}")
    0.015 0.014 0.012
    """
    if min(len(values), len(base)) < 2:
        raise ValueError(
            "A difference needs at least two runs of each arm, got "
            f"{len(values)} and {len(base)}."
        )
    if paired and len(values) != len(base):
        raise ValueError(
            f"Paired arms need the same seeds, got {len(values)} and {len(base)} runs."
        )
    finite = np.isfinite(values).all() and np.isfinite(base).all()
    method: Method = "ranks"
    if finite:
        method = method_of(values - base) if paired else method_of(values, base)
    interval, p = (_paired if paired else _apart)(values, base, method)
    error = freedom = None
    if finite:
        error, freedom = _error(values, base, paired=paired)
    p_within = None
    if margin is not None:
        tested = subtract(values, base) if paired else values
        p_within = within_margin(tested, margin, None if paired else base)
    return Difference(
        *interval, p, p_within, method,
        _correlation(values, base) if paired and finite else None,
        error, freedom,
    )  # fmt: skip


def _paired(
    values: np.ndarray, base: np.ndarray, method: Method
) -> tuple[Interval, float]:
    """Returns the interval and the p-value of arms that share their seeds."""
    gaps = subtract(values, base)
    match method:
        case "ranks":
            return shift(gaps), sign_test(signed_ranks(gaps))
        case "permutation":
            return bootstrap_interval(gaps), sign_test(gaps)
        case "t":
            error, freedom = _error(values, base, paired=True)
            return t_interval(gaps), _p(float(gaps.mean()), error, freedom)


def _apart(
    values: np.ndarray, base: np.ndarray, method: Method
) -> tuple[Interval, float]:
    """Returns the interval and the p-value of arms that do not."""
    match method:
        case "ranks":
            return shift(values, base), shuffle_test(*joint_ranks(values, base))
        case "permutation":
            gap = lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis)
            found = bootstrap_interval(values, base, statistic=gap)
            return found, shuffle_test(values, base)
        case "t":
            mean = float(values.mean() - base.mean())
            return welch_interval(values, base), _p(mean, *welch(values, base))


def _p(mean: float, error: float, freedom: int | float) -> float:
    return float(2 * stdtr(freedom, -abs(mean) / error))


def _error(
    values: np.ndarray, base: np.ndarray, *, paired: bool
) -> tuple[float, float]:
    if not paired:
        return welch(values, base)
    gaps = values - base
    return float(np.std(gaps, ddof=1) / len(gaps) ** 0.5), float(len(gaps) - 1)


def _correlation(values: np.ndarray, base: np.ndarray) -> float | None:
    if not np.ptp(values) or not np.ptp(base):
        return None
    return float(np.corrcoef(values, base)[0, 1])
