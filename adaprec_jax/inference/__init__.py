"""What numbers of few seeds say, and what they do not: NumPy and SciPy, no JAX.

    intervals     t, Welch, bias-corrected bootstrap, Wilson
    permutation   exact tests by signs and by shuffling
    ranks         the same for runs of which some diverged
    equivalence   "no worse than", at a margin that was stated before
    power         the smallest effect that so many seeds can see
    several       many claims at once
    difference    all of these for an arm and its baseline
    across        one number over several tasks
    best_of       the best of k runs, with its k

>>> import numpy as np
>>> gain = np.array([0.4, 0.9, 0.1, 0.6])
>>> found = difference(gain + 96.0, np.full(4, 96.0), margin=2.0)
>>> print(f"{found.estimate:.2f}, p {found.p:.3f}, equivalent p {found.p_within:.3f}")
0.50, p 0.059, equivalent p 0.001
"""

from adaprec_jax.inference.across import interquartile_interval, interquartile_mean
from adaprec_jax.inference.best_of import BestOf, best_of
from adaprec_jax.inference.difference import Difference, difference
from adaprec_jax.inference.equivalence import within_margin
from adaprec_jax.inference.intervals import (
    Interval,
    bootstrap_interval,
    mean_interval,
    t_interval,
    welch_interval,
    wilson_interval,
)
from adaprec_jax.inference.permutation import shuffle_test, sign_test
from adaprec_jax.inference.power import power, seeds_needed, smallest_visible
from adaprec_jax.inference.ranks import (
    joint_ranks,
    shift,
    signed_ranks,
    worst,
)
from adaprec_jax.inference.several import adjusted

__all__ = [
    "BestOf",
    "Difference",
    "Interval",
    "adjusted",
    "best_of",
    "bootstrap_interval",
    "difference",
    "interquartile_interval",
    "interquartile_mean",
    "joint_ranks",
    "mean_interval",
    "power",
    "seeds_needed",
    "shift",
    "shuffle_test",
    "sign_test",
    "signed_ranks",
    "smallest_visible",
    "t_interval",
    "welch_interval",
    "wilson_interval",
    "within_margin",
    "worst",
]
