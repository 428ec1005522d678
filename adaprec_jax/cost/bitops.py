"""What the multiplications of a run cost, counted in bit operations.

A product of a-bit and b-bit numbers counts as a * b bit operations, and training runs
three products per contraction (forward, dgrad, wgrad). Everything here is relative to
float32, whose products count 32^2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from adaprec_jax.bit_counts import FLOAT32, PRODUCTS
from adaprec_jax.contractions.table import Table, macs_shares
from adaprec_jax.formats import bits
from adaprec_jax.precision import Plan, Precision, separate


def step_cost(table: Table, plan: Plan) -> Float32[Array, ""]:
    """Returns the bit operations of one step under `plan`, relative to float32.

    Each contraction counts by the multiply-accumulates of all its executions, each
    layer along its plan axes equally, each product by the bits of its two operands. A
    traced function of the plan. Uniform integers give `bitops_ratio`; the published
    metric likewise counts dgrad for the first layer, where it need not run.

    Raises:
        ValueError: The table holds no multiplication, or one inside a `while` loop,
            which runs an unknown number of times.

    >>> from adaprec_jax.contractions import contraction_table
    >>> from adaprec_jax.plan import integers, uniform
    >>> layer = lambda params, x: x @ params["kernel"]
    >>> table = contraction_table(layer, {"kernel": jnp.eye(2)}, jnp.eye(2))
    >>> float(step_cost(table, uniform(table, integers(8, 8))))
    0.0625
    """
    weights = macs_shares(table).astype(np.float32)
    products = [bits(a) * bits(b) for a, b in _all_layers(table, plan)]
    operations = jnp.stack(products).sum(0).astype(jnp.float32)
    return jnp.sum(weights * operations) / (PRODUCTS * FLOAT32)


def narrow_share(table: Table, plan: Plan, max_bits: int) -> Float32[Array, ""]:
    r"""Returns the share of the multiplications whose operands are both narrow.

    $$ \frac{1}{3} \sum_l w_l \sum_p [\max(b_{lp}, b'_{lp}) \le b_{max}] $$

    over layers l with their share $w_l$ of the multiply-accumulates, and the products
    p: forward, dgrad and wgrad. With 4 bits it is the share of FP4 FLOPs that SNIP
    (arXiv:2602.01410) bounds from below, with 8 the share that 8-bit units can carry
    out; an integer counts like a float of its width. A traced function of the plan.

    Args:
        table: What is multiplied.
        plan: In which precision.
        max_bits: The most that either operand may have.

    Raises:
        ValueError: As `step_cost`.

    >>> from adaprec_jax.contractions import contraction_table
    >>> from adaprec_jax.plan import integers, uniform
    >>> layer = lambda params, x: x @ params["kernel"]
    >>> table = contraction_table(layer, {"kernel": jnp.eye(2)}, jnp.eye(2))
    >>> plan = uniform(table, integers(4, 8))  # the forward product alone has 4 by 4
    >>> [round(float(narrow_share(table, plan, b)), 4) for b in (4, 8)]
    [0.3333, 1.0]
    """
    weights = macs_shares(table).astype(np.float32)
    narrow = [
        (bits(a) <= max_bits) & (bits(b) <= max_bits)
        for a, b in _all_layers(table, plan)
    ]
    products = jnp.stack(narrow).astype(jnp.float32).sum(0)
    return jnp.sum(weights * products) / PRODUCTS


def _all_layers(table: Table, plan: Plan) -> Precision:
    """Returns one entry with an axis over the layers of all contractions.

    Counting its bits once compiles faster than counting those of each contraction.
    """
    shapes = [c.axes for c in table.contractions]
    entries = [separate(plan[c.name]) for c in table.contractions]

    def lay_end_to_end(*fields: ArrayLike) -> Array:
        pairs = zip(fields, shapes, strict=True)
        return jnp.concatenate([jnp.broadcast_to(x, s).ravel() for x, s in pairs])

    return jax.tree.map(lay_end_to_end, *entries)
