"""What a study can see at all: effects, seeds and the chance to find them."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import nctdtr, stdtrit

from adaprec_jax.inference.intervals import FEWEST, check

_HALVINGS, _MOST = 60, 100_000


def power(
    effect: float, error: float, freedom: int | float, significance: float = 0.05
) -> float:
    """Returns the chance that a two-sided t-test finds an effect.

    Args:
        effect: The true difference.
        error: Standard error of the measured one, above zero.
        freedom: Degrees of freedom of that error: for n paired runs n - 1.
        significance: Chance that it finds one where there is none.

    >>> print(f"{power(1.0, 1 / 8**0.5, 7):.3f}")  # 8 pairs that spread by 1
    0.681
    """
    far = float(stdtrit(freedom, 1 - significance / 2))
    shift = abs(effect) / error
    above = 1 - float(nctdtr(freedom, shift, far))
    return above + float(nctdtr(freedom, shift, -far))


def smallest_visible(
    error: float, freedom: int | float, significance: float = 0.05, chance: float = 0.8
) -> float:
    """Returns the smallest effect that a study finds with some chance.

    What stands beside "inconclusive": a smaller effect may well be there.

    Args:
        error: Standard error of the difference.
        freedom: Its degrees of freedom.
        significance: As of `power`; with many claims, the share of one.
        chance: To find the effect.

    >>> print(f"{smallest_visible(1 / 8**0.5, 7):.3f}")
    1.156
    """
    if not error:
        return 0.0
    missed = lambda effect: power(effect, error, freedom, significance) < chance
    high = error
    while missed(high):
        high *= 2
    return _smallest(lambda effect: not missed(effect), high)


def seeds_needed(
    pilot: Float[np.ndarray, " seeds"],
    margin: float,
    significance: float = 0.05,
    chance: float = 0.8,
) -> int:
    """Returns how many paired seeds see half the margin, at least ten.

    The spread is that of a pilot, whose seeds must not be used again in the study, but
    whose settings must be those of the study: at another learning rate seeds may differ
    several times as much. From ten pairs on tests are by permutation, whose p-value is
    at least 2^(1 - n): with many comparisons that may ask for more seeds than this.
    That half is ours: an effect of the size of the margin is then seen nearly surely.

    Args:
        pilot: Differences of paired runs, at least two.
        margin: The difference that would matter, above zero.
        significance: As of `power`.
        chance: To find an effect of half the margin.

    Raises:
        ValueError: The margin is not above zero, the pilot has fewer than two values,
            or 100,000 seeds do not suffice.

    >>> pilot = np.array([-0.5, 0.1, 0.4])
    >>> seeds_needed(pilot, margin=1.0), seeds_needed(pilot, margin=0.5)
    (10, 29)
    """
    if not margin > 0:
        raise ValueError(f"A margin must be above zero, got {margin}.")
    check(pilot)
    spread = float(np.std(pilot, ddof=1))

    def enough(seeds: int) -> bool:
        error = spread / seeds**0.5
        return smallest_visible(error, seeds - 1, significance, chance) <= margin / 2

    low, high = FEWEST, FEWEST
    while not enough(high):
        low, high = high, 2 * high
        if high > _MOST:
            raise ValueError(
                f"A margin of {margin} needs more than {_MOST} seeds: runs of the "
                f"pilot differ by {spread:.3g}."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _smallest(fits: Callable[[float], bool], high: float) -> float:
    """Returns the smallest number up to `high` from which on all fit."""
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
