"""The same formats from the first step to the last."""

import numpy as np

from adaprec_jax.precision import Entry
from adaprec_jax.schedules.schedule import Schedule
from adaprec_jax.schedules.tabulated import tabulated


def constant(entry: Entry) -> Schedule:
    """Uses `entry` at every step; with a float32 entry, the baseline.

    >>> from adaprec_jax import formats, precision
    >>> schedule = constant(precision.SharedPrecision(*[formats.get("float32")] * 3))
    """
    return tabulated([entry], np.zeros(1, np.int32))
