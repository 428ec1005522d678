"""What the multiplications of a run cost, counted in bit operations.

A product of a-bit and b-bit numbers counts as a * b bit operations, and training runs
three products per contraction (forward, dgrad, wgrad). Everything here is relative to
float32, whose products count 32^2.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from adaprec_jax.contractions.table import Table, forward_macs
from adaprec_jax.formats import bits
from adaprec_jax.plan import concatenate
from adaprec_jax.precision import Plan, separate

# Of each step, or one number for all.
Bits: TypeAlias = int | Sequence[int] | Int[np.ndarray, "steps"]

_PRODUCTS = 3
_FLOAT32 = 32**2


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
    return float(np.mean(products) / (_PRODUCTS * _FLOAT32))


def step_cost(table: Table, plan: Plan) -> Float32[Array, ""]:
    """Returns the bit operations of one step under `plan`, relative to float32.

    Each contraction counts by the multiply-accumulates of all its executions, each
    layer along its plan axes equally, each product by the bits of its two operands. A
    traced function of the plan. Uniform integers give `bitops_ratio`; the published
    metric likewise counts dgrad for the first layer, where it need not run.

    Raises:
        ValueError: The table holds no multiplication, or one inside a `while` loop,
            which runs an unknown number of times.
    """
    total = forward_macs(table)
    if not total:
        raise ValueError(
            "The table holds no multiplication whose cost could be counted."
        )
    contractions = table.contractions
    entries = [separate(plan[contraction.name]) for contraction in contractions]
    layers = concatenate(entries, [contraction.axes for contraction in contractions])
    operations = sum(bits(a) * bits(b) for a, b in layers)
    shares = [
        np.full(
            c.axes, c.macs * (c.executions or 0) / total / math.prod(c.axes)
        ).ravel()
        for c in contractions
    ]
    weights = np.concatenate(shares) / (_PRODUCTS * _FLOAT32)
    return jnp.sum(jnp.asarray(weights, jnp.float32) * operations.astype(jnp.float32))
