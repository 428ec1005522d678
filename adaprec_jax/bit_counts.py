"""Bits over the steps of a run, and what they cost; NumPy alone, so known before JAX.

`adaprec_jax.schedules` and `adaprec_jax.cost` have these functions, too.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int, Int32

# Of each step, or one number for all.
Bits: TypeAlias = int | Sequence[int] | Int[np.ndarray, "steps"]

# Profile, arrangement, and how the fall is mirrored; see `cyclic_bits`.
CYCLIC = ("CPT", "CR", "CT", "LR", "LT", "ER", "ETH", "ETV", "RR", "RTH", "RTV")
PRODUCTS = 3  # forward, dgrad, wgrad
FLOAT32 = 32**2


def cyclic_bits(
    name: str, *, min_bits: int, max_bits: int, cycles: int, steps: int
) -> Int32[np.ndarray, "steps"]:
    r"""Returns the bits of each step of a cyclic schedule, computed in float64.

    $$ b(t) = \mathrm{rint}(b_{min} + (b_{max} - b_{min}) \, s(z)), \quad
       z = (t \bmod T) / T $$

    with the period T = floor(steps / cycles) and ties rounded to even; steps that are
    left over begin another cycle. Growth has the profile

    - C, cosine: $s(z) = \frac{1}{2} (1 - \cos \pi z)$
    - L, linear: $s(z) = z$
    - E, exponential: $s(z) = 1 - e^{-4 z}$
    - R, REX: $s(z) = 1 - r / (0.1 + 0.9 r)$ with $r = 1 - z$

    The second letter R (repeated) grows in each cycle anew. T (triangular) falls in
    every other cycle, the first one included: V by $1 - s(z)$, H by $s(1 - z)$, which
    are one for C and L.

    Source: Wolfe and Kyrillidis 2024, "Better Schedules for Low Precision Training",
    arXiv:2403.02243. CR is CPT (Fu et al., ICLR 2021, arXiv:2101.09868).

    Args:
        name: One of `CYCLIC`.
        min_bits: The fewest.
        max_bits: The most.
        cycles: In the run; even for a triangular schedule, which ends low otherwise.
        steps: Length of the run.

    Raises:
        ValueError: The name is unknown, not 1 <= min_bits <= max_bits, not
            1 <= cycles <= steps, or cycles are odd where they must not be.

    >>> cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=1, steps=10).tolist()
    [3, 3, 3, 4, 5, 6, 6, 7, 8, 8]
    """
    if name not in CYCLIC:
        raise ValueError(f"name must be one of {', '.join(CYCLIC)}, got {name!r}.")
    if not (1 <= min_bits <= max_bits and 1 <= cycles <= steps):
        raise ValueError(
            "Expected 1 <= min_bits <= max_bits and 1 <= cycles <= steps, got "
            f"{min_bits=}, {max_bits=}, {cycles=}, {steps=}."
        )
    profile, arrangement, *flip = "CR" if name == "CPT" else name
    if arrangement == "T" and cycles % 2:
        raise ValueError(f"{name} needs an even number of cycles, got {cycles}.")
    period = steps // cycles
    cycle, place = np.divmod(np.arange(steps), period)
    z = place / period
    share = _grown(profile, z)
    if arrangement == "T":
        fallen = _grown(profile, 1 - z) if flip == ["H"] else 1 - share
        share = np.where(cycle % 2 == 0, fallen, share)
    return np.rint(min_bits + (max_bits - min_bits) * share).astype(np.int32)


def _grown(
    profile: str, z: Float64[np.ndarray, "steps"]
) -> Float64[np.ndarray, "steps"]:
    """Returns the share of the way up, at the share `z` of a cycle."""
    match profile:
        case "C":
            return 0.5 * (1 + np.cos(np.pi * z + np.pi))
        case "L":
            return z
        case "E":
            return 1 - np.exp(-4 * z)
    return 1 - (1 - z) / (0.1 + 0.9 * (1 - z))


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
