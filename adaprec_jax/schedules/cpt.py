"""Cyclic precision training: bits rise along a cosine and fall back, in cycles."""

from adaprec_jax.schedules.cyclic import cyclic
from adaprec_jax.schedules.schedule import Schedule


def cpt(
    *, min_bits: int, max_bits: int, cycles: int, steps: int, gradient_bits: int
) -> Schedule:
    """Cycles the integer bits of activations and weights; gradients keep theirs.

    `bits` gives the formula. The paper uses 32 cycles and the bits of the static
    baseline for `max_bits` and `gradient_bits`.

    Decides:
        One width for the activations and weights of all layers, anew at each step.

    Signal:
        The step alone.

    Costs:
        A table of one integer per step, made before the run; no statistics.

    Source:
        Fu et al. 2021, "CPT: Efficient Deep Neural Network Training via Cyclic
        Precision", ICLR 2021, arXiv:2101.09868.

    Against:
        The paper finds `min_bits` by a range test whose threshold and window it does
        not give, and its scripts report the best of many evaluations at the precision
        of the moment, not the last one. Whether the cycle matters or the mean of the
        bits alone, `shuffled` tells.

    Args:
        min_bits: Where each cycle begins.
        max_bits: Where each cycle ends.
        cycles: Number of cycles in the run.
        steps: Length of the run.
        gradient_bits: Bits of the gradients, constant.

    Raises:
        ValueError: Bits or cycles are out of range.

    >>> schedule = cpt(min_bits=3, max_bits=8, cycles=8, steps=4000, gradient_bits=8)
    """
    return cyclic(
        "CPT",
        min_bits=min_bits,
        max_bits=max_bits,
        cycles=cycles,
        steps=steps,
        gradient_bits=gradient_bits,
    )
