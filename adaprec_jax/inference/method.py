"""Which test suits some runs: by means and spread, by permutations, or by ranks."""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from adaprec_jax.inference.intervals import FEWEST

Method: TypeAlias = Literal["t", "permutation", "ranks"]

_NEARLY = 1e-9  # relative


def method_of(*samples: Float[np.ndarray, " _"]) -> Method:
    """Returns how some samples are tested.

    Ranks if a run diverged; permutations from ten runs on, and where there is no
    spread, as when each seed has one test example more right: t would be without end,
    however few the seeds.

    Args:
        samples: The differences of paired runs, or the runs of two arms.

    >>> method_of(np.array([0.1, 0.2, 0.3])), method_of(np.array([0.1, 0.1, 0.1]))
    ('t', 'permutation')
    """
    if not all(np.isfinite(each).all() for each in samples):
        return "ranks"
    spread = any(np.ptp(each) > _NEARLY * np.abs(each).max() for each in samples)
    few = min(map(len, samples)) < FEWEST
    return "t" if few and spread else "permutation"
