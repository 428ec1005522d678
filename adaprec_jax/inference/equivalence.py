"""Equivalence: that a difference is smaller than a margin, not that none was found."""

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr

from adaprec_jax.inference.intervals import welch
from adaprec_jax.inference.method import method_of
from adaprec_jax.inference.permutation import shuffle_test, sign_test
from adaprec_jax.inference.ranks import joint_ranks, signed_ranks


def within_margin(
    values: Float[np.ndarray, " seeds"],
    margin: float,
    base: Float[np.ndarray, " others"] | None = None,
) -> float:
    """Returns the chance of such differences if the true one were as large as a margin.

    Two one-sided tests: the mean must be above minus the margin and below the margin,
    and the larger of their two p-values counts (Schuirmann 1987). They are t-tests
    below ten runs, permutation tests from ten on and where runs do not vary, and tests
    by rank where one diverged.

    The margin must have been stated before the runs were looked at: one that is chosen
    afterwards can always be met.

    Args:
        values: The differences of paired runs, if `base` is none.
        margin: Above zero, in units of the values.
        base: The runs of the other arm, which are not paired.

    Raises:
        ValueError: The margin is not above zero.

    >>> near = np.array([0.1, -0.2, 0.0, 0.2, -0.1])
    >>> print(f"{within_margin(near, 0.5):.4f} {within_margin(near, 0.1):.4f}")
    0.0011 0.1151
    """
    if not margin > 0:
        raise ValueError(f"A margin must be above zero, got {margin}.")
    if base is None:
        return max(_above(values + margin), _above(margin - values))
    return max(_above(values + margin, base), _above(base + margin, values))


def _above(values: np.ndarray, base: np.ndarray | None = None) -> float:
    """Returns the p-value of the test that the values are above zero, or the others."""
    if base is None:
        match method_of(values):
            case "ranks":
                return sign_test(signed_ranks(values), "above")
            case "permutation":
                return sign_test(values, "above")
            case "t":
                error = float(np.std(values, ddof=1) / len(values) ** 0.5)
                return _t_above(float(values.mean()), error, len(values) - 1)
    match method_of(values, base):
        case "ranks":
            return shuffle_test(*joint_ranks(values, base), "above")
        case "permutation":
            return shuffle_test(values, base, "above")
        case "t":
            return _t_above(float(values.mean() - base.mean()), *welch(values, base))


def _t_above(mean: float, error: float, freedom: int | float) -> float:
    return float(stdtr(freedom, -mean / error))
