"""Formats that are constant between given steps."""

from collections.abc import Sequence

import numpy as np

from adaprec_jax.precision import Entry
from adaprec_jax.schedules.schedule import Schedule
from adaprec_jax.schedules.tabulated import tabulated


def piecewise(boundaries: Sequence[int], entries: Sequence[Entry]) -> Schedule:
    """Uses `entries[0]` at first and `entries[k + 1]` from step `boundaries[k]` on.

    A list of stages with bits forward and backward, as in the ablation of FracTrain, is
    one entry for each: `[integers(3, 6), integers(4, 6), integers(6, 8), ...]`.

    Decides:
        One entry for all contractions, anew at each boundary.

    Signal:
        The step alone.

    Costs:
        A table of one integer per step up to the last boundary; no statistics.

    Source:
        Common practice. Stages of rising integer widths are an ablation of FracTrain
        (Fu et al. 2020, NeurIPS 2020).

    Against:
        Boundaries are chosen by hand, and those of one run need not fit another.

    Args:
        boundaries: Steps at which the next entry takes over, rising, at least 1.
        entries: One more than there are boundaries.

    Raises:
        ValueError: The boundaries do not rise, or the entries are not one more.

    >>> from adaprec_jax.contractions import Table
    >>> from adaprec_jax.plan import integers
    >>> stages = piecewise([2, 5], [integers(bits, 8) for bits in (3, 4, 6)])
    >>> stages.init(Table((), ())).lookup.tolist()  # the last holds on
    [0, 0, 1, 1, 1, 2]
    """
    steps = [0, *boundaries]
    if any(later <= earlier for earlier, later in zip(steps, boundaries, strict=False)):
        raise ValueError(f"Expected boundaries that rise from 1 on, got {boundaries}.")
    if len(entries) != len(steps):
        raise ValueError(
            f"Expected one entry more than boundaries, got {len(entries)} entries and "
            f"{len(boundaries)} boundaries."
        )
    index = np.searchsorted(boundaries, np.arange(steps[-1] + 1), side="right")
    return tabulated(entries, index)
