"""What a step or a run costs: bit operations, counted work, energy, carbon, money."""

from adaprec_jax.bit_counts import (
    Stored,
    bitops_ratio,
    bytes_per_parameter,
    effective_gbitops,
    gbitops,
)
from adaprec_jax.cost.bitops import narrow_share, step_cost
from adaprec_jax.cost.work import Product, Work, count, kept_bytes

__all__ = [
    "Product",
    "Stored",
    "Work",
    "bitops_ratio",
    "bytes_per_parameter",
    "count",
    "effective_gbitops",
    "gbitops",
    "kept_bytes",
    "narrow_share",
    "step_cost",
]
