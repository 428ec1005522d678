"""Low precision for a while in a run of high precision: what does it leave behind?"""

from adaprec_jax import precision
from adaprec_jax.precision import Entry
from adaprec_jax.schedules.piecewise import piecewise
from adaprec_jax.schedules.schedule import Schedule


def deficit(low: Entry, high: Entry, *, length: int, start: int = 0) -> Schedule:
    """Uses `low` for `length` steps from step `start` on, and `high` at all others.

    The two protocols for critical learning periods. Initial deficit: `start` is 0, and
    the run is longer than a normal one by `length`, so that a complete one follows; let
    the learning rate fall over those last steps alone, as if the run began there. Probe
    window: runs of one length, with the same `length` at another `start` in each.

    Decides:
        One of two entries for all layers, by the step.

    Signal:
        The step alone.

    Costs:
        A table with an index for each step up to the end of the deficit; no statistics.

    Source:
        Wolfe and Kyrillidis 2024, "Better Schedules for Low Precision Training",
        arXiv:2403.02243: 3 bits against 8, gradients of 8 bits, no weight decay.

    Against:
        A measurement, not a method: it makes training worse on purpose. A longer run
        differs in its length, too; compare it with one as long without a deficit.

    Args:
        low: Entry during the deficit.
        high: Entry before and after it, of the same type.
        length: Steps of the deficit; 0 is none, the control.
        start: Its first step.

    Raises:
        ValueError: `start` or `length` is negative, or the entries are of both types.

    >>> from adaprec_jax.contractions import Table
    >>> from adaprec_jax.plan import integers
    >>> probe = deficit(integers(3, 8), integers(8, 8), start=2, length=3)
    >>> state = probe.init(Table((), ()))
    >>> state.lookup.tolist()  # the last holds on
    [0, 0, 1, 1, 1, 2]
    """
    pieces = precision.deficit(low, high, start=start, length=length)
    _, *boundaries = pieces
    return piecewise(boundaries, [*pieces.values()])
