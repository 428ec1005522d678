"""Cyclic precision training: bits rise along a cosine and fall back, in cycles."""

from adaprec_jax.bit_counts import cpt_bits
from adaprec_jax.plan import integers
from adaprec_jax.schedules.schedule import Schedule
from adaprec_jax.schedules.tabulated import tabulated


def cpt(
    *, min_bits: int, max_bits: int, cycles: int, steps: int, gradient_bits: int
) -> Schedule:
    """Cycles the integer bits of activations and weights; gradients keep theirs.

    Cyclic Precision Training (Fu et al., ICLR 2021, arXiv:2101.09868); `cpt_bits` gives
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
    bits = cpt_bits(min_bits=min_bits, max_bits=max_bits, cycles=cycles, steps=steps)
    palette = [integers(b, gradient_bits) for b in range(min_bits, max_bits + 1)]
    return tabulated(palette, bits - min_bits)
