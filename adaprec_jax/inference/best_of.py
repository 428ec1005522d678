"""The best of several runs, which says of how many."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class BestOf(NamedTuple):
    """The mean of the best of k runs; it prints with its k.

    >>> BestOf(0.97, 3, 10)
    0.97 (best of 3, expected from 10 runs)
    """

    value: float
    k: int
    runs: int

    def __repr__(self) -> str:
        """Returns the value and of how many it is the best."""
        return f"{self.value:.4g} (best of {self.k}, expected from {self.runs} runs)"


def best_of(
    values: Float[np.ndarray, " seeds"], k: int, *, higher: bool = True
) -> BestOf:
    """Returns what the best of k runs reaches on average.

    The mean over all choices of k of the runs, which is without bias where the best of
    the first k is one draw. It grows with k whatever was done, so that it compares
    nothing unless k is the same.

    Args:
        values: At least k; infinitely bad where a run diverged.
        k: How many runs the best is chosen from.
        higher: Whether a higher value is better.

    Raises:
        ValueError: There are fewer than k values, or k is below one.

    >>> best_of(np.array([1.0, 2.0, 3.0]), 2)
    2.667 (best of 2, expected from 3 runs)
    """
    size = len(values)
    if not 1 <= k <= size:
        raise ValueError(
            f"The best of k runs needs k from 1 to the {size} runs there are, got {k}."
        )
    ordered = np.sort(values) if higher else -np.sort(-values)
    # In how many choices of k each run is the best of them.
    ways = [math.comb(i, k - 1) / math.comb(size, k) for i in range(size)]
    chosen = [(way, value) for way, value in zip(ways, ordered.tolist(), strict=True)]
    return BestOf(float(sum(way * value for way, value in chosen if way)), k, size)
