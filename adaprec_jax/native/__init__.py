"""Training on real operands: dtypes by plan, one executable for each set of dtypes."""

from adaprec_jax.native.choose import Choice, choose, kernels_of
from adaprec_jax.native.dispatch import Native, make_native_dispatch
from adaprec_jax.native.foresee import foresee, learns

__all__ = [
    "Choice",
    "Native",
    "choose",
    "foresee",
    "kernels_of",
    "learns",
    "make_native_dispatch",
]
