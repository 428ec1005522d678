"""Cyclic precision training: bits rise along a cosine and fall back, in cycles."""

from adaprec_jax.schedules.cyclic import cyclic
from adaprec_jax.schedules.schedule import Schedule


def cpt(
    *, min_bits: int, max_bits: int, cycles: int, steps: int, gradient_bits: int
) -> Schedule:
    """Cycles the integer bits of activations and weights; gradients keep theirs.

    Cyclic Precision Training (Fu et al., ICLR 2021, arXiv:2101.09868); `bits` gives
    the formula. The paper uses 32 cycles and the bits of the static baseline for
    `max_bits` and `gradient_bits`.

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
