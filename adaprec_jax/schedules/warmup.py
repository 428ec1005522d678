"""High precision for the first steps, then low."""

from adaprec_jax.precision import Entry
from adaprec_jax.schedules.piecewise import piecewise
from adaprec_jax.schedules.schedule import Schedule


def warmup(high: Entry, low: Entry, *, steps: int) -> Schedule:
    """Uses `high` for the first `steps` steps, then `low`.

    To warm up into another schedule, `join` it to a `constant`.

    Decides:
        One entry for all contractions, changed once.

    Signal:
        The step alone.

    Costs:
        A table of one integer per step of the warm-up; no statistics.

    Source:
        Common practice; quantisation-aware training with HiF8, for one, warms up for
        500 steps in bfloat16.

    Against:
        The length is chosen by hand; nothing tells when low precision begins to be
        harmless.

    Args:
        high: Entry of the first steps.
        low: Entry of all later ones, of the same type.
        steps: Length of the warm-up, at least 1.

    Raises:
        ValueError: `steps` is below 1, or the entries are of both types.

    >>> from adaprec_jax.contractions import Table
    >>> from adaprec_jax.plan import integers
    >>> schedule = warmup(integers(8, 8), integers(4, 8), steps=3)
    >>> schedule.init(Table((), ())).lookup.tolist()
    [0, 0, 0, 1]
    """
    return piecewise([steps], [high, low])
