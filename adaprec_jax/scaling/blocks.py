"""Scales for parts of a tensor: channels, and blocks along what a product sums over.

A product sums over its operands' `use.summed` axes, so that a scale that is constant
along them could multiply the result, and one that is not has to be applied to each
block before the blocks are summed. Here both are applied to the operand. For another
product the tensor is cut along other axes, from its unrounded values.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import Format
from adaprec_jax.scaling.per_tensor import largest_magnitude, scaled_rounding
from adaprec_jax.scaling.recipe import (
    InBlocks,
    Parts,
    Quantizer,
    Recipe,
    Use,
    keep_state,
    no_state,
)

E8M0 = "float8_e8m0fnu"  # powers of two


@functools.cache
def per_channel(
    *,
    power_of_two: bool = True,
    rounding: str = "nearest_even",
    quantizer: Quantizer | None = None,
) -> Recipe:
    """Returns current scaling with a scale for each channel (or row).

    All elements that the product sums share one scale: the weights of an output channel
    in the forward product, the features of an example in the activations.

    Source: common practice.

    Args:
        power_of_two: As in `current`.
        rounding: As in `adaprec_jax.quantize`.
        quantizer: In place of its rounding.

    >>> from adaprec_jax import formats
    >>> x, use = jnp.array([[3.0, 4.0], [300.0, 400.0]]), Use("forward", (1,))
    >>> int4 = formats.integer(4)
    >>> per_channel().round(x, int4, (), axes=(0, 1), key=None, use=use)[1]
    Array([[ 1.],
           [64.]], dtype=float32)
    """
    scaled = scaled_rounding(power_of_two, rounding, quantizer)

    def round_by_channel(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
        use: Use,
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del state, axes
        return scaled(largest_magnitude(x, use.summed, axis_names), x, fmt, key)

    return Recipe(no_state, round_by_channel, keep_state, per_product=True)


@functools.cache
def blockwise(
    size: int = 128,
    *,
    square: bool = False,
    power_of_two: bool = True,
    rounding: str = "nearest_even",
    quantizer: Quantizer | None = None,
) -> Recipe:
    """Returns current scaling with a scale for each block.

    The blocks are `size` neighbours along the axes that the product sums over, in
    their order. `square` cuts the other axes, in theirs, into parts of `size` as well:
    a block is then the same one in every product. The last blocks may be smaller.

    Source: DeepSeek-V3, arXiv:2412.19437, with blocks of 1 x 128 for activations and
    gradients and of 128 x 128 for weights.

    Args:
        size: Elements along a side of a block.
        square: Whether blocks have two sides.
        power_of_two: As in `current`.
        rounding: As in `adaprec_jax.quantize`.
        quantizer: In place of its rounding.

    Raises:
        ValueError: `size` is less than 1.

    >>> from adaprec_jax import formats
    >>> x, use = jnp.array([3.0, 4.0, 300.0, 400.0]), Use("forward", (0,))
    >>> int4 = formats.integer(4)
    >>> blockwise(2).round(x, int4, (), axes=(0,), key=None, use=use)[1]
    Array([ 1.,  1., 64., 64.], dtype=float32)
    """
    return by_block(
        size, square, scaled_rounding(power_of_two, rounding, quantizer),
        E8M0 if power_of_two and quantizer is None else "",
    )  # fmt: skip


def by_block(
    size: int,
    square: bool,  # noqa: FBT001 (as the settings of the recipes)
    scaled: Callable[..., tuple[Float32[Array, "..."], Float32[Array, "..."]]],
    scale: str = "",
) -> Recipe:
    """Returns the recipe that rounds each block by its largest magnitude.

    Args:
        size: As in `blockwise`.
        square: As in `blockwise`.
        scaled: `scaled(amax, x, fmt, key) -> (rounded, scale)`.
        scale: The dtype that holds the scales, if one does and `rounded` are numbers of
            the format.

    Raises:
        ValueError: `size` is less than 1.

    >>> recipe = by_block(32, False, scaled_rounding(True, "nearest_even", None))
    >>> recipe.per_product
    True
    """
    check_size(size)

    def round_by_block(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
        use: Use,
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        # A block lies on one device, or would if its axis were cut into whole blocks.
        del state, axes, axis_names
        blocks = Blocks(x.shape, use, size, square)
        amax = blocks.spread(blocks.amax(x))
        return scaled(amax, x, fmt, key)

    def in_parts(x: Float[Array, "..."], fmt: Format, **settings: Any) -> Parts:
        rounded, of_block = round_by_block(x, fmt, (), **settings)
        of_block = jnp.broadcast_to(of_block, x.shape)
        return Parts(rounded, of_block, jnp.ones((), jnp.float32))

    in_blocks = InBlocks(size, scale, in_parts) if scale else None
    return Recipe(
        no_state, round_by_block, keep_state, per_product=True, in_blocks=in_blocks
    )


def check_size(size: int) -> None:
    """Raises a ValueError if a block of this size has no element.

    >>> check_size(0)
    Traceback (most recent call last):
    ValueError: size must be at least 1, got 0.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")


# The axes of `Blocks.cut` that lie within a block.
WITHIN = (1, 3, 5)


class Blocks(NamedTuple):
    """How a tensor is cut into blocks; static.

    The tensor is seen as (before, summed, after): the axes that the product sums over
    are merged into one, and so are those before and after them. Where they are not
    neighbours, or a block has a side on both ends, they are moved to the end.

    Attributes:
        shape: Of the tensor.
        use: What it is rounded for.
        size: Elements along a side of a block.
        square: Whether a block has a second side, along the other axes.
    """

    shape: tuple[int, ...]
    use: Use
    size: int
    square: bool = False

    def cut(self, x: Float[Array, "..."]) -> Float[Array, "a in_a s in_s b in_b"]:
        """Returns the tensor in blocks, the last ones filled up with zeros.

        >>> blocks = Blocks((2, 3), Use("forward", (1,)), 2)
        >>> blocks.cut(jnp.ones((2, 3))).shape
        (2, 1, 2, 2, 1, 1)
        """
        order, ends = self._view()
        x = jnp.transpose(x, order).reshape(ends)
        sides = self._sides(ends)
        short = [(0, -n % side) for n, side in zip(ends, sides, strict=True)]
        if any(last for _, last in short):
            x = jnp.pad(x, short)
        parts = zip(x.shape, sides, strict=True)
        return x.reshape([k for n, side in parts for k in (n // side, side)])

    def join(self, blocks: Float[Array, "a in_a s in_s b in_b"]) -> Float[Array, "..."]:
        """Undoes `cut`.

        >>> x, use = jnp.arange(12.0).reshape(2, 3, 2), Use("wgrad", (0, 2))
        >>> blocks = Blocks(x.shape, use, 3)
        >>> bool((blocks.join(blocks.cut(x)) == x).all())
        True
        """
        order, ends = self._view()
        whole = [
            blocks.shape[i] * blocks.shape[i + 1] for i in range(0, blocks.ndim, 2)
        ]
        x = blocks.reshape(whole)[tuple(slice(n) for n in ends)]
        x = x.reshape([self.shape[axis] for axis in order])
        return jnp.transpose(x, sorted(range(len(order)), key=lambda i: order[i]))

    def spread(self, numbers: Float[Array, "a 1 s 1 b 1"]) -> Float[Array, "..."]:
        """Returns a number of each block for each of its elements.

        >>> blocks = Blocks((5,), Use("forward", (0,)), 2)
        >>> x = blocks.cut(jnp.arange(5.0))
        >>> blocks.spread(x.max(WITHIN, keepdims=True))
        Array([1., 1., 3., 3., 4.], dtype=float32)
        """
        sides = self._sides(self._view()[1])
        shape = [
            n if i % 2 == 0 else sides[i // 2] for i, n in enumerate(numbers.shape)
        ]
        return self.join(jnp.broadcast_to(numbers, shape))

    def amax(self, x: Float[Array, "..."]) -> Float32[Array, "a 1 s 1 b 1"]:
        """Returns the largest |x| of each block.

        >>> blocks = Blocks((5,), Use("forward", (0,)), 2)
        >>> blocks.amax(jnp.arange(-4.0, 1.0)).reshape(-1)
        Array([4., 2., 0.], dtype=float32)
        """
        cut = self.cut(x)
        # Without axes of size 1, which make XLA:CPU copy the tensor before it reduces.
        long = [axis for axis, size in enumerate(cut.shape) if size != 1]
        within = tuple(i for i, axis in enumerate(long) if axis in WITHIN)
        amax = largest_magnitude(cut.reshape([cut.shape[i] for i in long]), within)
        return amax.reshape(
            [1 if axis in WITHIN else size for axis, size in enumerate(cut.shape)]
        )

    def common(self, numbers: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the largest number of each block, or the one of all.

        Args:
            numbers: One, or for each element, broadcast against the tensor.

        >>> blocks = Blocks((4,), Use("forward", (0,)), 2)
        >>> blocks.common(jnp.array([1.0, 2.0, 4.0, 3.0])).reshape(-1)
        Array([2., 4.], dtype=float32)
        """
        if numbers.ndim == 0:
            return numbers
        whole = self.cut(jnp.broadcast_to(numbers, self.shape))
        return jnp.max(whole, WITHIN, keepdims=True)

    def _view(self) -> tuple[tuple[int, ...], tuple[int, int, int]]:
        """Returns the order of the axes, and the sizes before, summed and after."""
        summed, axes = self.use.summed, range(len(self.shape))
        others = tuple(axis for axis in axes if axis not in summed)
        start = summed[0] if summed else len(self.shape)
        before = tuple(axis for axis in others if axis < start)
        neighbours = summed == tuple(range(start, start + len(summed)))
        if not neighbours or (self.square and 0 < len(before) < len(others)):
            before = others
        order = (*before, *summed, *(a for a in others if a not in before))
        after = others[len(before) :]
        a, s, b = (
            math.prod(self.shape[i] for i in part) for part in (before, summed, after)
        )
        return order, (a, s, b)

    def _sides(self, ends: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the sides of a block, none longer than the tensor."""
        square = self.square, True, self.square
        before, summed, after = (
            max(min(self.size, n), 1) if cut else 1
            for n, cut in zip(ends, square, strict=True)
        )
        return before, summed, after
