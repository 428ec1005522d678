"""What a meter is: it reads counters of energy, and says what they cover."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from adaprec_jax.cost.quantity import Kind

Reading: TypeAlias = Mapping[str, float] | None
"""Joules since some start by counter; None where there is nothing to read."""


class Meter(NamedTuple):
    """Something that reads energy.

    Attributes:
        name: Of the meter.
        boundary: What its counters cover, in words.
        read: Returns joules by counter, which never fall but where one wraps around.
        wraps: Joules after which a counter begins anew, by counter.
        tick: Seconds between two updates of the counters; a shorter window tells
            nothing.
        kind: What its joules are: "measured" by counters, or a "tdp_estimate" of a
            tool that found none. A meter has one kind, as kinds are never added.
    """

    name: str
    boundary: str
    read: Callable[[], Reading]
    wraps: Mapping[str, float] = {}
    tick: float = 0.0
    kind: Kind = "measured"


def none() -> Meter:
    """Returns the meter of a machine without one: nothing is known.

    >>> between(none(), None, None) is None
    True
    """
    return Meter("none", "nothing", lambda: None)


def fake(watts: float, clock: Callable[[], float], *, tick: float = 0.0) -> Meter:
    """Returns a meter that shows a constant power, for tests.

    Args:
        watts: The power.
        clock: Returns seconds.
        tick: Seconds between two updates.

    >>> seconds = iter([0.0, 10.0])
    >>> meter = fake(5.0, lambda: next(seconds))
    >>> between(meter, meter.read(), meter.read())
    50.0
    """
    return Meter("fake", "nothing real", lambda: {"fake": watts * clock()}, tick=tick)


def between(meter: Meter, before: Reading, after: Reading) -> float | None:
    """Returns the joules between two readings of a meter, None if one is missing.

    A counter that fell has wrapped around once; without a known range nothing is known.
    """
    if before is None or after is None or set(before) != set(after) or not after:
        return None
    total = 0.0
    for counter, end in after.items():
        moved = end - before[counter]
        if moved < 0:
            if counter not in meter.wraps:
                return None
            moved += meter.wraps[counter]
        total += moved
    return total
