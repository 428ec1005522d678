"""How few bits still learn: the test that gives a cyclic schedule its fewest bits.

NumPy alone; it makes no schedule but one number that a schedule begins with.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64


class RangeTest(NamedTuple):
    """What a precision range test found.

    Attributes:
        min_bits: The fewest bits that learn; None if none of those tried does.
        gains: Of each width tried, in rising order, the largest gain from one window to
            the next; None if no two windows that follow each other are finite.
    """

    min_bits: int | None
    gains: dict[int, float | None]


def range_test(
    metrics: Mapping[int, Sequence[float] | Float[np.ndarray, "steps"]],
    *,
    threshold: float = 0.01,
    window: int = 100,
) -> RangeTest:
    r"""Finds the fewest bits under which training makes progress.

    Training begins with the fewest bits and goes on with one more until, at b bits,

    $$ \max_k \; \bar m_b(k + 1) - \bar m_b(k) > \text{threshold} $$

    where $\bar m_b(k)$ is the mean of the training metric over the k-th window of steps
    at b bits. The first such b is `min_bits`; widths above it do not count. Windows do
    not overlap and do not reach over a change of width; steps at the end that fill no
    window are left out.

    The mean of a window must be so sure that chance stays below the threshold.

    Source: the precision range test of CPT (Fu et al., ICLR 2021, arXiv:2101.09868).
    The paper gives neither threshold nor window nor the steps to spend on a width: all
    defaults are ours.

    Args:
        metrics: By bits, the training metric of each step at that width; larger is
            better, as accuracy is, so turn the sign of a loss.
        threshold: Gain that counts as progress, in units of the metric, at least 0.
        window: Steps over which the metric is averaged, at least 1.

    Raises:
        ValueError: No width was tried, a width has fewer than two windows, `window` is
            below 1 or `threshold` is negative or not finite.

    >>> stuck, learns = [0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.4]
    >>> range_test({2: stuck, 3: learns}, threshold=0.01, window=2).min_bits
    3
    """
    if window < 1 or not 0 <= threshold < np.inf:
        raise ValueError(
            "Expected a window of at least 1 step and a finite threshold of at least "
            f"0, got {window=}, {threshold=}."
        )
    if not metrics:
        raise ValueError("Expected the metric of at least one width, got none.")
    gains: dict[int, float | None] = {}
    for bits in sorted(metrics):
        values = np.asarray(metrics[bits], np.float64)
        if len(values) < 2 * window:
            raise ValueError(
                f"Expected at least two windows of {window} steps for each width, got "
                f"{len(values)} steps at {bits} bits."
            )
        gain = gains[bits] = _largest_gain(values, window)
        if gain is not None and gain > threshold:
            return RangeTest(bits, gains)
    return RangeTest(None, gains)


def _largest_gain(values: Float64[np.ndarray, "steps"], window: int) -> float | None:
    """Returns the largest gain between finite windows; None if there is none."""
    whole = len(values) // window
    with np.errstate(over="ignore", invalid="ignore"):
        means = values[: whole * window].reshape(whole, window).mean(axis=1)
        gains = np.diff(means)
    known = gains[np.isfinite(gains)]
    return float(known.max()) if known.size else None
