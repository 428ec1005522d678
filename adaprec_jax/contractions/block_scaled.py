"""A matrix product of operands whose blocks have scales of their own.

NVIDIA's Blackwell multiplies such blocks: XLA hands them to cuDNN, element dtypes and
scale dtypes as they are. Elsewhere the blocks are decoded, which is exact, and
multiplied in float32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from adaprec_jax.contractions import jax_internals as internals
from adaprec_jax.contractions.kernels import Blocked

_Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], Any]


def block_scaled_dot(
    left: Blocked, right: Blocked, size: int, parameters: dict[str, Any]
) -> Float32[Array, "..."]:
    """Returns the sum over products of elements and of the scales of their blocks.

    Args:
        left: Elements and scales of blocks in their dtypes; the scale of the tensor is
            not applied.
        right: Of the right operand.
        size: Elements of a block, neighbours along the contracted axes, merged in the
            order of the dimension numbers.
        parameters: Of a `dot_general` of two float32 operands.

    >>> ones = jnp.ones((1, 32), jnp.float8_e4m3fn)
    >>> x = Blocked(ones, (2 * ones).astype(jnp.float8_e8m0fnu), jnp.float32(1))
    >>> dimensions = {"dimension_numbers": (((1,), (1,)), ((), ())),
    ...               "precision": None, "preferred_element_type": jnp.dtype("float32"),
    ...               "out_sharding": None}
    >>> block_scaled_dot(x, x, 32, dimensions)
    Array([[128.]], dtype=float32)
    """

    def decoded(left: Blocked, right: Blocked) -> Array:
        pair = (
            x.elements.astype(jnp.float32) * x.of_block.astype(jnp.float32)
            for x in (left, right)
        )
        return internals.dot_general_p.bind(*pair, **parameters)

    def in_blocks(left: Blocked, right: Blocked) -> Array:
        return _multiply(left, right, size, parameters["dimension_numbers"])

    return lax.platform_dependent(left, right, cuda=in_blocks, default=decoded)


def _multiply(
    left: Blocked, right: Blocked, size: int, dimensions: _Dimensions
) -> Float[Array, "..."]:
    """Returns the product by the library's kernel, whose operands have three axes."""
    contracting, batch = dimensions
    sides = [
        _rows(x, size, *axes)
        for x, *axes in zip((left, right), contracting, batch, strict=True)
    ]
    (x, x_scale, before, x_free), (y, y_scale, _, y_free) = sides
    out = jax.nn.scaled_matmul(x, y, x_scale, y_scale, jnp.dtype("float32"))
    return out.reshape((*before, *x_free, *y_free))


def _rows(
    x: Blocked, size: int, contracting: tuple[int, ...], batch: tuple[int, ...]
) -> tuple[Array, Array, tuple[int, ...], tuple[int, ...]]:
    """Returns elements (batch, rows, contracted) in whole blocks, and their scales.

    And the sizes of the axes of the batch and of the rows.
    """
    shape = x.elements.shape
    kept = tuple(
        axis for axis in range(len(shape)) if axis not in (*contracting, *batch)
    )
    sizes = [tuple(shape[axis] for axis in axes) for axes in (batch, kept, contracting)]
    rows = [math.prod(part) for part in sizes]
    elements, scales = (
        lax.transpose(part, (*batch, *kept, *contracting)).reshape(rows)
        for part in (x.elements, x.of_block)
    )
    fill = -rows[2] % size
    if fill:
        zero = jnp.zeros((), elements.dtype)
        elements = lax.pad(elements, zero, ((0, 0, 0), (0, 0, 0), (0, fill, 0)))
    return elements, scales[:, :, ::size], sizes[0], sizes[1]
