"""A rotation before rounding, which spreads an outlier over its neighbours."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import Format
from adaprec_jax.scaling.blocks import Blocks
from adaprec_jax.scaling.recipe import InBlocks, Parts, Recipe, Use

# The signs of Transformer Engine's NVFP4 recipe.
SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def hadamard(signs: tuple[int, ...] = SIGNS) -> np.ndarray:
    """Returns the orthogonal matrix diag(signs) H / sqrt(n), float32, (n, n).

    H is Sylvester's Hadamard matrix, whose entries are 1 and -1. A row vector is
    multiplied from the left: its elements change sign, then they are mixed.

    Args:
        signs: 1 or -1 for each element; their number is a power of two.

    Raises:
        ValueError: It is not, or one of them is neither.

    >>> hadamard((1, -1, 1, 1)) * 2
    array([[ 1.,  1.,  1.,  1.],
           [-1.,  1., -1.,  1.],
           [ 1.,  1., -1., -1.],
           [ 1., -1., -1.,  1.]], dtype=float32)
    """
    n = len(signs)
    if n < 1 or n & (n - 1) or {*signs} - {1, -1}:
        raise ValueError(
            f"signs must be 1 and -1, in a number that is a power of two, got {signs}."
        )
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rotation = np.asarray(signs, np.float32)[:, None] * matrix
    return rotation / np.sqrt(np.float32(n))


@functools.cache
def rotated(
    recipe: Recipe,
    products: tuple[str, ...] = ("wgrad",),
    signs: tuple[int, ...] = SIGNS,
) -> Recipe:
    """Returns a recipe that rotates a tensor, rounds it, and rotates it back.

    Parts of `len(signs)` neighbours along the axes that the product sums over are
    multiplied by `hadamard(signs)`, which mixes an outlier with its neighbours before
    the recipe finds its scales. Since (A H)(B H)^T = A B^T, hardware multiplies the
    rotated operands; here each is rotated back before the product, which is the same
    number and lets the operands be rotated independently of each other: also those of
    a convolution, whose sum over places has no such common rotation. Elements at the
    end that fill no part are not rotated.

    Formats that are not scaled are rounded without a rotation.

    Source: NVFP4 pre-training, arXiv:2509.25149, which rotates the operands of the
    weight's gradient alone.

    Args:
        recipe: Rounds for each product.
        products: Those it is rotated for.
        signs: As in `hadamard`.

    Raises:
        ValueError: The recipe does not round for each product, a product is unknown,
            or as in `hadamard`.

    >>> from adaprec_jax import formats
    >>> from adaprec_jax.scaling import blockwise
    >>> recipe, x = rotated(blockwise(16)), jnp.zeros(16).at[3].set(100.0)
    >>> def scale(product):
    ...     return recipe.round(
    ...         x, formats.integer(4), (), axes=(0,), key=None, use=Use(product, (0,))
    ...     )[1]
    >>> float(scale("forward").max()), float(scale("wgrad").max())
    (16.0, 4.0)
    """
    if not recipe.per_product:
        raise ValueError("Only a recipe that rounds for each product can be rotated.")
    if unknown := {*products} - {"forward", "dgrad", "wgrad"}:
        raise ValueError(
            f"products must be of forward, dgrad and wgrad, got {sorted(unknown)}."
        )
    matrix = hadamard(signs)

    def round_rotated(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
        use: Use,
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        inner = functools.partial(
            recipe.round, axes=axes, key=key, axis_names=axis_names, use=use
        )
        if use.product not in products:
            return inner(x, fmt, state)
        parts = Blocks(x.shape, use, len(signs))
        x = x.astype(jnp.float32)
        there = jnp.where(fmt.scaled, _turn(x, parts, matrix), x)
        rounded, scale = inner(there, fmt, state)
        # One scale for a part, the largest, so that the tensor keeps a unit.
        scale = jnp.broadcast_to(scale, x.shape)
        unit = parts.spread(parts.common(scale))
        share = jnp.where(unit > 0, scale / unit, 0.0)
        back = _turn(rounded * share, parts, matrix.T)
        back = jnp.where(fmt.scaled, back, rounded)
        return back, jnp.where(jnp.isnan(scale), scale, unit)

    inner = recipe.in_blocks
    in_blocks = None if inner is None else _in_blocks(inner, products, signs)
    return recipe._replace(round=round_rotated, in_blocks=in_blocks)


def _in_blocks(
    inner: InBlocks, products: tuple[str, ...], signs: tuple[int, ...]
) -> InBlocks:
    """Returns the rounding whose elements stay rotated, as hardware multiplies them."""
    matrix = hadamard(signs)

    def in_parts(
        x: Float[Array, "..."], fmt: Format, *, use: Use, **settings: Any
    ) -> Parts:
        if use.product in products:
            x = x.astype(jnp.float32)
            turned = _turn(x, Blocks(x.shape, use, len(signs)), matrix)
            x = jnp.where(fmt.scaled, turned, x)
        return inner.round(x, fmt, use=use, **settings)

    rotations = (*((product, signs) for product in products), *inner.rotations)
    return inner._replace(round=in_parts, rotations=rotations)


def _turn(
    x: Float32[Array, "..."], parts: Blocks, matrix: np.ndarray
) -> Float32[Array, "..."]:
    """Returns the tensor with each whole part multiplied by the matrix."""
    if math.prod(x.shape[axis] for axis in parts.use.summed) < len(matrix):
        return x
    cut = parts.cut(x)
    turned = jnp.einsum(
        "aisjbk,jm->aismbk", cut, matrix, precision=lax.Precision.HIGHEST
    )
    summed = math.prod(x.shape[axis] for axis in parts.use.summed)
    if summed % len(matrix):
        whole = np.arange(cut.shape[2]) < summed // len(matrix)
        turned = jnp.where(whole[:, None, None, None], turned, cut)
    return parts.join(turned)
