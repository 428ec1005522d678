"""One number over several tasks that a single one cannot decide."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from adaprec_jax.inference.intervals import Interval, bootstrap_interval


def interquartile_mean(*tasks: np.ndarray, axis: int = -1) -> Any:
    """Returns the mean of the middle half of all runs of all tasks.

    A quarter of the values is left out at each end, rounded down: one task that went
    wrong moves it little, and it uses more runs than the median does.
    Source: Agarwal et al. 2021, arXiv:2108.13264.

    Args:
        tasks: The runs of each, floats on one scale, such as differences to the
            baseline; leading axes must agree.
        axis: Along which runs are.

    >>> interquartile_mean(np.array([1.0, 2.0, 3.0, 100.0]))
    array(2.5)
    """
    ordered = np.sort(np.concatenate(tasks, axis=axis), axis=axis)
    size = ordered.shape[axis]
    middle = np.arange(size // 4, size - size // 4)
    return np.asarray(np.take(ordered, middle, axis=axis).mean(axis=axis))


def interquartile_interval(
    tasks: Sequence[Float[np.ndarray, " seeds"]], level: float = 0.95
) -> Interval:
    """Returns the interquartile mean over tasks with a bootstrap interval.

    Seeds are drawn within each task, so that the tasks themselves are not a sample: the
    interval tells of these tasks, not of others.

    Args:
        tasks: The runs of each, at least two a task.
        level: As of `inference.intervals.t_interval`.

    >>> rng = np.random.default_rng(0)
    >>> tasks = [rng.normal(size=10) + task for task in range(3)]
    >>> found = interquartile_interval(tasks)
    >>> found.low < found.estimate < found.high
    True
    """
    return bootstrap_interval(*tasks, statistic=interquartile_mean, level=level)
