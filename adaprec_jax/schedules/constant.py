"""The same formats from the first step to the last."""

import numpy as np

from adaprec_jax.precision import Entry
from adaprec_jax.schedules.schedule import Schedule
from adaprec_jax.schedules.tabulated import tabulated


def constant(entry: Entry) -> Schedule:
    """Uses `entry` at every step; with a float32 entry, the baseline.

    Decides:
        One entry for all contractions, once.

    Signal:
        None.

    Costs:
        A table of one integer; no statistics.

    Source:
        Common practice. It is the arm that every other schedule is compared with.

    Against:
        The width that is enough differs between layers, models and phases of training,
        so one for all of them is too narrow for some and too wide for others.

    Args:
        entry: The formats of all operands.

    >>> from adaprec_jax import formats, precision
    >>> schedule = constant(precision.SharedPrecision(*[formats.get("float32")] * 3))
    """
    return tabulated([entry], np.zeros(1, np.int32))
