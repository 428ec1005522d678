"""What an accelerator multiplies natively, and which of its dtypes hold a format."""

from adaprec_jax.targets.containers import CONTAINERS, holds
from adaprec_jax.targets.kernels import (
    EMULATED,
    block_kernel,
    kernel,
    pairs_of,
    support,
)
from adaprec_jax.targets.target import BlockPair, Pair, Target, get, names

__all__ = [
    "CONTAINERS",
    "EMULATED",
    "BlockPair",
    "Pair",
    "Target",
    "block_kernel",
    "get",
    "holds",
    "kernel",
    "names",
    "pairs_of",
    "support",
]
