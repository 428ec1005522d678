"""Tests without a distribution: what chance alone would give, counted.

All assignments are counted where there are at most 40,000, else 10,000 are drawn,
always the same ones; the assignment that was observed is then counted among them, so
that no p-value is zero.
"""

import itertools
import math
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

# Which difference counts against chance.
Side: TypeAlias = Literal["two-sided", "above", "below"]

_MOST, _DRAWN, _SEED = 40_000, 10_000, 0
_NEARLY = 1e-10  # relative: sums in another order are equal


def sign_test(
    differences: Float[np.ndarray, " seeds"], side: Side = "two-sided"
) -> float:
    """Returns the chance of such a mean difference if signs were arbitrary.

    For arms that are paired by seed: without an effect, each difference might as well
    have had the other sign. Source: Fisher 1935.

    Args:
        differences: At least one, finite.
        side: "above" asks for a mean above zero alone.

    >>> sign_test(np.array([0.1, 0.2, 0.3, 0.4]))
    0.125
    """
    size = len(differences)
    exact = 2**size <= _MOST
    if exact:
        chosen = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
    else:
        chosen = np.random.default_rng(_SEED).integers(0, 2, (_DRAWN, size), np.int8)
    sums = (1 - 2 * chosen) @ differences
    return _share(sums, float(differences.sum()), side, exact=exact)


def shuffle_test(
    values: Float[np.ndarray, " seeds"],
    base: Float[np.ndarray, " others"],
    side: Side = "two-sided",
) -> float:
    """Returns the chance of such a difference of means if labels were arbitrary.

    For arms that are not paired. Source: Fisher 1935.

    Args:
        values: At least one, finite.
        base: Those of the other arm.
        side: As of `sign_test`.

    >>> shuffle_test(np.array([3.0, 4.0, 5.0]), np.array([0.0, 1.0, 2.0]))
    0.1
    """
    both = np.concatenate([values, base])
    mine, exact = _groups(len(values), len(both))
    sums = mine @ both
    share = len(values) / len(both)
    centre = share * float(both.sum())  # of the sums; a difference is linear in them
    return _share(sums - centre, float(values.sum()) - centre, side, exact=exact)


def _groups(size: int, whole: int) -> tuple[Bool[np.ndarray, "ways whole"], bool]:
    """Returns which members are in the first group, and whether all ways are there."""
    if math.comb(whole, size) <= _MOST:
        ways = np.array([*itertools.combinations(range(whole), size)])
        mine = np.zeros((len(ways), whole), bool)
        np.put_along_axis(mine, ways, True, axis=1)
        return mine, True
    keys = np.random.default_rng(_SEED).random((_DRAWN, whole))
    return keys.argsort(axis=1) < size, False


def _share(
    sums: Float[np.ndarray, " ways"], seen: float, side: Side, *, exact: bool
) -> float:
    """Returns the share of sums that are at least as far out as the one seen."""
    near = _NEARLY * float(np.abs(sums).max(initial=abs(seen)))
    match side:
        case "two-sided":
            beyond = np.abs(sums) >= abs(seen) - near
        case "above":
            beyond = sums >= seen - near
        case "below":
            beyond = sums <= seen + near
    count = int(beyond.sum())
    return count / len(sums) if exact else (count + 1) / (len(sums) + 1)
