"""Arms of which some runs diverged: the worst rank, never a missing value.

A run that diverged is worse than any other, by an unknown amount. So it is infinitely
bad, means give way to ranks, and the estimate is a median of differences.
"""

import numpy as np
from jaxtyping import Float

from adaprec_jax.inference.intervals import Interval


def worst(
    values: Float[np.ndarray, " seeds"], *, higher: bool
) -> Float[np.ndarray, " seeds"]:
    """Returns the values with the worst there is for each run that diverged.

    Args:
        values: NaN where a run diverged.
        higher: Whether a higher value is better.

    >>> worst(np.array([0.9, np.nan]), higher=True)
    array([ 0.9, -inf])
    """
    return np.where(np.isnan(values), -np.inf if higher else np.inf, values)


def subtract(
    values: Float[np.ndarray, "..."], base: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Returns the differences; two that are infinite alike are a tie.

    >>> subtract(np.array([-np.inf, -np.inf, 1.0]), np.array([-np.inf, 2.0, 0.5]))
    array([ 0. , -inf,  0.5])
    """
    tie = values == base
    return np.where(tie, 0.0, values - np.where(tie, 0.0, base))


def signed_ranks(
    differences: Float[np.ndarray, " seeds"],
) -> Float[np.ndarray, " seeds"]:
    """Returns the rank of each magnitude with the sign of the difference.

    Equal ones share their mean rank, a zero counts as none. The sign test of them is
    the signed-rank test. Source: Wilcoxon 1945; ties and zeros after Pratt 1959.

    Args:
        differences: None is NaN; they may be infinite.

    >>> signed_ranks(np.array([0.0, -2.0, 5.0, np.inf])).tolist()
    [0.0, -2.0, 3.0, 4.0]
    """
    return np.sign(differences) * _ranks(np.abs(differences))


def joint_ranks(
    values: Float[np.ndarray, " seeds"], base: Float[np.ndarray, " others"]
) -> tuple[Float[np.ndarray, " seeds"], Float[np.ndarray, " others"]]:
    """Returns the ranks of two arms among the runs of both.

    The shuffle test of them is the rank-sum test. Source: Mann and Whitney 1947.

    >>> joint_ranks(np.array([5.0, -np.inf]), np.array([1.0]))
    (array([3., 1.]), array([2.]))
    """
    ranks = _ranks(np.concatenate([values, base]))
    return ranks[: len(values)], ranks[len(values) :]


def shift(
    values: Float[np.ndarray, " seeds"],
    base: Float[np.ndarray, " others"] | None = None,
    level: float = 0.95,
) -> Interval:
    """Returns by how much an arm is better or worse, in the middle, with an interval.

    The median of the means of all pairs of differences; of arms that are not paired,
    the median of the differences of all pairs. The interval ends at those of them that
    the exact test by ranks just does not refuse; with few runs it is without end.
    Source: Hodges and Lehmann 1963.

    Args:
        values: The differences, if `base` is none; they may be infinite.
        base: The runs of the other arm, which are not paired.
        level: As of `inference.intervals.t_interval`.

    >>> shift(np.array([-np.inf, 1.0, 2.0, 3.0, 4.0, 5.0]))
    Interval(estimate=2.5, low=-inf, high=5.0)
    """
    if base is None:
        i, j = np.triu_indices(len(values))
        cancel = np.isinf(values[i]) & (values[i] == -values[j])
        halves = values / 2
        pairs = np.where(cancel, 0.0, halves[i] + np.where(cancel, 0.0, halves[j]))
        chances = _sums_of_signs(len(values))
    else:
        pairs = subtract(values[:, None], base[None, :]).ravel()
        chances = _sums_of_groups(len(values), len(base))
    ordered = np.sort(pairs)
    tail = np.cumsum(chances) <= (1 - level) / 2 + 1e-12
    left_out = int(tail.sum())  # at each end
    if not left_out:
        return Interval(_median(ordered), -np.inf, np.inf)
    low, high = ordered[left_out - 1], ordered[len(ordered) - left_out]
    return Interval(_median(ordered), float(low), float(high))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks from 1 on; equal values share their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _median(ordered: np.ndarray) -> float:
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if low == -high:
        return 0.0
    return float(low) if low == high else float(low / 2 + high / 2)


def _sums_of_signs(size: int) -> np.ndarray:
    """Returns the chance of each sum of the ranks 1 to `size` with a positive sign."""
    chances = np.ones(1)
    for rank in range(1, size + 1):
        none = np.concatenate([chances, np.zeros(rank)])
        chances = (none + np.concatenate([np.zeros(rank), chances])) / 2
    return chances


def _sums_of_groups(size: int, others: int) -> np.ndarray:
    """Returns the chance of each number of pairs in which the first is the larger.

    Counted by whether the largest of all runs is of the first group or of the second.
    """
    counts = {(0, m): np.ones(1) for m in range(others + 1)}
    for n in range(1, size + 1):
        counts[n, 0] = np.ones(1)
        for m in range(1, others + 1):
            ways = np.zeros(n * m + 1)
            ways[m : m + len(counts[n - 1, m])] += counts[n - 1, m]
            ways[: len(counts[n, m - 1])] += counts[n, m - 1]
            counts[n, m] = ways
    ways = counts[size, others]
    return ways / ways.sum()
