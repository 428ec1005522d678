"""Bits over the steps of a run, and what they cost; NumPy alone, so known before JAX.

`adaprec_jax.schedules` and `adaprec_jax.cost` have these functions, too.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, Int32

# Of each step, or one number for all.
Bits: TypeAlias = int | Sequence[int] | Int[np.ndarray, "steps"]

PRODUCTS = 3  # forward, dgrad, wgrad
FLOAT32 = 32**2


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


def bitops_ratio(forward_bits: Bits, backward_bits: Bits) -> float:
    r"""Returns the bit operations of a run relative to float32, mean over its steps.

    $$ \frac{1}{steps} \sum_t \frac{b_{fw}^2 + 2\, b_{fw}\, b_{bw}}{3 \cdot 32^2} $$

    as CPT (arXiv:2101.09868), FracTrain (NeurIPS 2020) and "Better Schedules"
    (arXiv:2403.02243) count it: activations and weights have the forward bits in all
    three products, gradients the backward bits.

    Args:
        forward_bits: Bits of activations and weights.
        backward_bits: Bits of gradients.

    >>> bitops_ratio([8, 8], 8)
    0.0625
    """
    forward = np.asarray(forward_bits, np.float64)
    backward = np.asarray(backward_bits, np.float64)
    products = forward**2 + 2 * forward * backward
    return float(np.mean(products) / (PRODUCTS * FLOAT32))
