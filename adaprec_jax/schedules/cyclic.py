"""Bits that rise and fall in cycles: ten published shapes, known in advance."""

from adaprec_jax.bit_counts import cyclic_bits
from adaprec_jax.plan import integers
from adaprec_jax.schedules.schedule import Schedule
from adaprec_jax.schedules.tabulated import tabulated


def cyclic(
    shape: str,
    *,
    min_bits: int,
    max_bits: int,
    cycles: int,
    steps: int,
    gradient_bits: int,
) -> Schedule:
    """Cycles the integer bits of activations and weights; gradients keep theirs.

    `cyclic_bits` gives the formulas. The paper mostly uses 8 cycles, and the bits of
    the static baseline for `max_bits` and `gradient_bits`.

    Decides:
        One width for the activations and weights of all layers, anew at each step.

    Signal:
        The step alone.

    Costs:
        A table of one integer per step, made before the run; no statistics.

    Source:
        Wolfe and Kyrillidis 2024, "Better Schedules for Low Precision Training",
        arXiv:2403.02243.

    Against:
        Quality follows cost in the paper: the cheapest shapes, RR and RTH, lose on
        hard tasks, and the dearest, ER and ETH, are the most accurate. It also finds
        that low bits early in training do damage that later steps do not repair.

    Args:
        shape: CR, CT, LR, LT, ER, ETH, ETV, RR, RTH or RTV.
        min_bits: The fewest.
        max_bits: The most.
        cycles: Number of cycles in the run, even for the triangular ones.
        steps: Length of the run.
        gradient_bits: Bits of the gradients, constant.

    Raises:
        ValueError: The shape is unknown, or bits or cycles are out of range.

    >>> schedule = cyclic(
    ...     "RR", min_bits=3, max_bits=8, cycles=8, steps=4000, gradient_bits=8
    ... )
    """
    bits = cyclic_bits(
        shape, min_bits=min_bits, max_bits=max_bits, cycles=cycles, steps=steps
    )
    palette = [integers(b, gradient_bits) for b in range(min_bits, max_bits + 1)]
    return tabulated(palette, bits - min_bits)
