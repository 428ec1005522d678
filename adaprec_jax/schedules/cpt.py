"""Cyclic precision training: bits rise along a cosine and fall back, in cycles."""

import numpy as np
from jaxtyping import Int32

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
    """
    bits = cpt_bits(min_bits=min_bits, max_bits=max_bits, cycles=cycles, steps=steps)
    palette = [integers(b, gradient_bits) for b in range(min_bits, max_bits + 1)]
    return tabulated(palette, bits - min_bits)


def cpt_bits(
    *, min_bits: int, max_bits: int, cycles: int, steps: int
) -> Int32[np.ndarray, "steps"]:
    r"""Returns the bits of each step, in float64 as the paper's code computes them.

    $$ b(t) = \mathrm{rint}(b_{min} + \frac{1}{2} (b_{max} - b_{min})
       (1 + \cos(\pi (t \bmod T) / T + \pi))) $$

    with the period T = floor(steps / cycles) and ties rounded to even. Steps that are
    left over begin another cycle.

    Raises:
        ValueError: Not 1 <= min_bits <= max_bits, or not 1 <= cycles <= steps.

    >>> cpt_bits(min_bits=3, max_bits=8, cycles=2, steps=20).tolist()
    [3, 3, 3, 4, 5, 6, 6, 7, 8, 8, 3, 3, 3, 4, 5, 6, 6, 7, 8, 8]
    """
    if not (1 <= min_bits <= max_bits and 1 <= cycles <= steps):
        raise ValueError(
            "Expected 1 <= min_bits <= max_bits and 1 <= cycles <= steps, got "
            f"{min_bits=}, {max_bits=}, {cycles=}, {steps=}."
        )
    period = steps // cycles
    phase = np.pi * (np.arange(steps) % period) / period
    bits = min_bits + 0.5 * (max_bits - min_bits) * (1 + np.cos(phase + np.pi))
    return np.rint(bits).astype(np.int32)
