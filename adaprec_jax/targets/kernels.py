"""The operand dtypes in which a target forms a product of two formats."""

import numpy as np

from adaprec_jax.contractions.kernels import Kernel
from adaprec_jax.formats import Format
from adaprec_jax.targets.containers import holds
from adaprec_jax.targets.target import Pair, Target


def pairs_of(target: Target, primitive: str) -> tuple[Pair, ...]:
    """Returns the pairs of dtypes that a target multiplies in a JAX primitive.

    >>> from adaprec_jax import targets
    >>> pairs_of(targets.get("h100"), "conv_general_dilated")
    (('float16', 'float16'), ('bfloat16', 'bfloat16'))
    >>> pairs_of(targets.get("h100"), "ragged_dot_general")
    ()
    """
    return {
        "dot_general": target.matrix_products,
        "conv_general_dilated": target.convolutions,
    }.get(primitive, ())


def kernel(pairs: tuple[Pair, ...], left: Format, right: Format) -> Kernel:
    """Returns the first pair of dtypes that holds both formats; none is emulation.

    Args:
        pairs: What can be multiplied, the fastest first.
        left: Formats of the left operand, not traced; all of them are to be held.
        right: Of the right one.

    >>> from adaprec_jax import formats, targets
    >>> e4m3, e5m2, int4 = map(
    ...     formats.get, ("float8_e4m3fn", "float8_e5m2", "int4")
    ... )
    >>> h100 = targets.get("h100").matrix_products
    >>> tuple(kernel(h100, e5m2, e4m3)), tuple(kernel(h100, int4, int4))
    (('float8_e5m2', 'float8_e4m3fn'), ('int8', 'int8'))
    >>> tuple(kernel(h100, e5m2, e5m2))  # no unit for it
    ('float16', 'float16')
    """
    for pair in pairs:
        if all(
            np.all(holds(dtype, fmt))
            for dtype, fmt in zip(pair, (left, right), strict=True)
        ):
            return Kernel(*pair)
    return Kernel()
