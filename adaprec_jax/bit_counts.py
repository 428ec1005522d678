"""Bits over the steps of a run, and what they cost; NumPy alone, so known before JAX.

`adaprec_jax.schedules` and `adaprec_jax.cost` have these functions, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float64, Int, Int32

from adaprec_jax import formats
from adaprec_jax.formats import Format

# Of each step, or one number for all.
Bits: TypeAlias = int | Sequence[int] | Int[np.ndarray, "steps"]

# Profile, arrangement, and how the fall is mirrored; see `cyclic_bits`.
CYCLIC = ("CPT", "CR", "CT", "LR", "LT", "ER", "ETH", "ETV", "RR", "RTH", "RTV")
PRODUCTS = 3  # forward, dgrad, wgrad
FLOAT32 = 32**2
_NUMBER = 32  # bits of a scale, an exponent, a centre


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
        name: One of `CYCLIC`, in capitals or not.
        min_bits: The fewest.
        max_bits: The most.
        cycles: In the run; even for a triangular schedule, which ends low otherwise.
        steps: Length of the run.

    Raises:
        ValueError: The name is unknown, not 1 <= min_bits <= max_bits, not
            1 <= cycles <= steps, or cycles are odd where they must not be.

    >>> from adaprec_jax import schedules
    >>> schedules.bits("CPT", min_bits=3, max_bits=8, cycles=1, steps=10).tolist()
    [3, 3, 3, 4, 5, 6, 6, 7, 8, 8]
    """
    shape = name.upper()
    if shape not in CYCLIC:
        raise ValueError(f"name must be one of {', '.join(CYCLIC)}, got {name!r}.")
    if not (1 <= min_bits <= max_bits and 1 <= cycles <= steps):
        raise ValueError(
            "Expected 1 <= min_bits <= max_bits and 1 <= cycles <= steps, got "
            f"{min_bits=}, {max_bits=}, {cycles=}, {steps=}."
        )
    profile, arrangement, *flip = "CR" if shape == "CPT" else shape
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


def bitops_ratio(
    forward_bits: Bits, backward_bits: Bits, weight_bits: Bits | None = None
) -> float:
    r"""Returns the bit operations of a run relative to float32, mean over its steps.

    $$ \frac{1}{steps} \sum_t \frac{b_a b_w + b_g b_w + b_a b_g}{3 \cdot 32^2} $$

    with the bits $b_a$ of activations, $b_w$ of weights, $b_g$ of gradients: one term
    each for forward, dgrad and wgrad. CPT (arXiv:2101.09868) and "Better Schedules"
    (arXiv:2403.02243) count it with $b_a = b_w$. With weights of their own bits it is
    what FracTrain (NeurIPS 2020) counts of a layer as compute relative to float32.

    Args:
        forward_bits: Bits of activations, and of weights unless those are given.
        backward_bits: Bits of gradients.
        weight_bits: Bits of weights, if they are others than those of activations.

    >>> bitops_ratio([8, 8], 8)
    0.0625
    """
    forward = np.asarray(forward_bits, np.float64)
    backward = np.asarray(backward_bits, np.float64)
    weight = forward if weight_bits is None else np.asarray(weight_bits, np.float64)
    products = forward * weight + backward * weight + forward * backward
    return float(np.mean(products) / (PRODUCTS * FLOAT32))


def effective_gbitops(
    macs: int, forward_bits: Bits, backward_bits: Bits, *, steps: int | None = None
) -> float:
    r"""Returns the bit operations of a run in units of $10^9$, counted from its model.

    $$ 10^{-9} \, M \sum_t b_{fw}^2 + 2\, b_{fw}\, b_{bw} $$

    with the multiply-accumulates M of the forward products of one step
    (`adaprec_jax.contractions.table.forward_macs` of the whole batch); each product of
    an a-bit and a b-bit number counts a * b.

    CPT (arXiv:2101.09868) and "Better Schedules" (arXiv:2403.02243) report such a sum.
    Their code takes M from a FLOP counter, which need not count the same layers, so
    compare ratios of these numbers rather than the numbers.

    Args:
        macs: Multiply-accumulates of the forward products of one step.
        forward_bits: Bits of activations and weights, of each step or one number.
        backward_bits: Bits of gradients, likewise.
        steps: Length of the run; needed where both bits are one number.

    Raises:
        ValueError: `macs` is negative, or the length unknown or not that of the bits.

    >>> effective_gbitops(1_000_000, [8, 8], 8)
    0.384
    """
    shapes = np.broadcast_shapes(np.shape(forward_bits), np.shape(backward_bits))
    length = shapes[0] if shapes else steps
    if macs < 0 or length is None or steps not in (None, length):
        raise ValueError(
            "Expected macs of at least 0, and bits for each step or the number of "
            f"steps, got {macs=}, bits of shape {shapes}, {steps=}."
        )
    return gbitops(bitops_ratio(forward_bits, backward_bits), macs * length)


def gbitops(ratio: float, macs: int) -> float:
    """Returns bit operations in units of 1e9, from their ratio to float32.

    Args:
        ratio: As `bitops_ratio` returns it, or the `cost` of a run.
        macs: Multiply-accumulates of all forward products that were executed.

    >>> gbitops(0.0625, 1_000_000)
    0.192
    """
    return ratio * PRODUCTS * FLOAT32 * macs / 1e9


class Stored(NamedTuple):
    """How something is kept for each parameter.

    Attributes:
        fmt: Its format.
        group: Neighbours that share a scale; None is the whole tensor.
        expand: Whether a group has an exponent and a centre beside its scale, as
            COAT's (arXiv:2410.19313) have.
    """

    fmt: Format
    group: int | None = None
    expand: bool = False


def bytes_per_parameter(**kept: int | float | Format | Mapping[str, Any]) -> float:
    """Returns the bytes that training keeps of each parameter.

    The metric of FP8-LM (arXiv:2310.18313), which has 6 where 16 are usual. Each
    keyword names something that is kept. A format takes its bits, and each group of a
    `Stored` its numbers: a float32 scale, and where the range is expanded two more, for
    exponent and centre. What is kept once per tensor, such as a scale, is left out.

    Args:
        kept: Weights, gradient, master copy, moments, ...: each a number of bits, a
            format, or, as `adaprec_jax.transforms.narrow_moments` takes it, a mapping
            from names to how each is stored: a `Stored`, or a `Moment` of those
            transformations.

    Raises:
        ValueError: One of them is negative, or none of these.

    >>> from adaprec_jax import transforms
    >>> bytes_per_parameter(weight=16, gradient=16, moments=32 + 32, master=32)
    16.0
    >>> fp8, half = formats.get("float8_e4m3fn"), formats.get("float16")
    >>> bytes_per_parameter(gradient=fp8, master=half, moments=transforms.fp8_lm())
    6.0
    """
    return sum((_bits_kept(name, each) for name, each in kept.items()), 0.0) / 8


def _bits_kept(name: str, kept: Any) -> float:
    match kept:
        case Format():
            return float(formats.bits(kept))
        case Mapping():
            return sum((_bits_stored(name, each) for each in kept.values()), 0.0)
        case int() | float() if kept >= 0:
            return float(kept)
    raise ValueError(
        "Expected bits of at least 0, a format, or a mapping to how each is stored, "
        f"got {kept!r} for {name!r}."
    )


def _bits_stored(name: str, stored: Any) -> float:
    if not isinstance(getattr(stored, "fmt", None), Format):
        raise ValueError(
            f"Expected a Stored or a Moment in the mapping {name!r}, got {stored!r}."
        )
    bits = float(formats.bits(stored.fmt))
    if stored.group is None:
        return bits
    return bits + (3 if stored.expand else 1) * _NUMBER / stored.group
