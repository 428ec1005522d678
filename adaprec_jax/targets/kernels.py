"""The operand dtypes in which a target forms a product of two formats."""

import numpy as np

from adaprec_jax import formats
from adaprec_jax.formats import Format
from adaprec_jax.targets.containers import holds
from adaprec_jax.targets.target import BlockPair, Pair, Target

EMULATED: Pair = ("float32", "float32")


def pairs_of(target: Target, primitive: str) -> tuple[Pair, ...]:
    """Returns the pairs of dtypes that a target multiplies in a JAX primitive.

    >>> from adaprec_jax import targets
    >>> pairs_of(targets.get("tpu-v5e"), "conv_general_dilated")
    (('int8', 'int8'), ('float8_e5m2', 'float8_e5m2'), ('bfloat16', 'bfloat16'))
    >>> pairs_of(targets.get("tpu-v5e"), "ragged_dot_general")
    ()
    """
    return {
        "dot_general": target.matrix_products,
        "conv_general_dilated": target.convolutions,
    }.get(primitive, ())


def kernel(pairs: tuple[Pair, ...], left: Format, right: Format) -> Pair:
    """Returns the first pair of dtypes that holds both formats; `EMULATED` if none.

    Args:
        pairs: What can be multiplied, the fastest first.
        left: Formats of the left operand, not traced; all of them are to be held.
        right: Of the right one.

    >>> from adaprec_jax import formats, targets
    >>> e4m3, e5m2, int4 = map(
    ...     formats.get, ("float8_e4m3fn", "float8_e5m2", "int4")
    ... )
    >>> h100 = targets.get("h100").matrix_products
    >>> kernel(h100, e5m2, e4m3), kernel(h100, int4, int4)
    (('float8_e5m2', 'float8_e4m3fn'), ('int8', 'int8'))
    >>> kernel(h100, e5m2, e5m2)  # no unit for it
    ('float16', 'float16')
    """
    for pair in pairs:
        if all(
            np.all(holds(dtype, fmt))
            for dtype, fmt in zip(pair, (left, right), strict=True)
        ):
            return pair
    return EMULATED


def block_kernel(
    target: Target, left: Format, right: Format, sizes: tuple[int, int], scale: str
) -> BlockPair | None:
    """Returns the first pair of block-scaled dtypes that holds both formats, if any.

    A block of a recipe may be several of the device, which then have one scale.

    Args:
        target: What multiplies them.
        left: Formats of the left operand, not traced; all of them are to be held.
        right: Of the right one.
        sizes: Elements of the recipe's blocks of the left and the right operand.
        scale: The dtype that holds the scales of both.

    >>> from adaprec_jax import formats, targets
    >>> e2m3, b200 = formats.get("float6_e2m3fn"), targets.get("b200")
    >>> block_kernel(b200, e2m3, e2m3, (32, 32), "float8_e8m0fnu")[:3]
    ('float8_e4m3fn', 'float8_e4m3fn', 32)
    >>> block_kernel(targets.get("h100"), e2m3, e2m3, (32, 32), "float8_e8m0fnu")
    """
    for pair in target.block_products:
        fits = pair.scale == scale and not any(size % pair.size for size in sizes)
        if fits and kernel((pair[:2],), left, right) != EMULATED:
            return pair
    return None


def support(target: Target) -> dict[str, tuple[Pair, Pair]]:
    """Returns for each named format the pairs that multiply two operands of it.

    The first is that of matrix products, the second that of convolutions.

    >>> from adaprec_jax import targets
    >>> support(targets.get("tpu7x"))["int4"]
    (('float8_e4m3fn', 'float8_e4m3fn'), ('float8_e4m3fn', 'float8_e4m3fn'))
    """
    grids = {name: formats.get(name) for name in formats.names()}
    return {
        name: (
            kernel(target.matrix_products, grid, grid),
            kernel(target.convolutions, grid, grid),
        )
        for name, grid in grids.items()
        if isinstance(grid, Format)
    }
