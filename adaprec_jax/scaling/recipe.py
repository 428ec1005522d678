"""What a scaling recipe is: three pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import Format

Quantizer: TypeAlias = Callable[
    [Float32[Array, "..."], Format, ArrayLike | None], Float32[Array, "..."]
]
"""`(x, fmt, key) -> rounded`, float32, in the format's own units; `key` may be None."""


class Use(NamedTuple):
    """What a tensor is rounded for; static.

    Attributes:
        product: "forward", "dgrad" or "wgrad".
        summed: The axes of the tensor over which the product sums. Of a convolution
            those are the channels, or for the weight's gradient examples and places.
        sliced: The axes that tell its slices apart, the same in each product: the
            examples of an activation or a gradient, the outputs of a weight.
    """

    product: str
    summed: tuple[int, ...]
    sliced: tuple[int, ...] = ()


class Parts(NamedTuple):
    """A tensor rounded in blocks: x ~= elements * of_block * of_tensor.

    Attributes:
        elements: Numbers of the format.
        of_block: The scale of its block for each element.
        of_tensor: One number.
    """

    elements: Float32[Array, "..."]
    of_block: Float32[Array, "..."]
    of_tensor: Float32[Array, ""]


class InBlocks(NamedTuple):
    """How a recipe rounds for hardware that multiplies blocks with scales of their own.

    A format that is not scaled is rounded as it is, and its scales are 1.

    Attributes:
        size: Elements of a block, neighbours along the axes that the product sums over,
            merged in the order of `Use.summed`.
        scale: The dtype that holds the scales of the blocks.
        round: `round(x, fmt, *, axes, key, axis_names=(), use) -> Parts`: what `round`
            of the recipe returns, in its parts. The fields of `fmt` are scalars.
        rotations: Products, each with the signs of a rotation that the elements are
            left in: two operands can be multiplied if theirs are equal.
    """

    size: int
    scale: str
    round: Callable[..., Parts]
    rotations: tuple[tuple[str, tuple[int, ...]], ...] = ()


class Recipe(NamedTuple):
    """How a tensor is scaled and rounded; static, only what it does is traced.

    Attributes:
        init: `init(shape) -> state`: the first state of tensors with that shape of
            scales, `()` for one tensor; `()` for a recipe without state.
        round: `round(x, fmt, state, *, axes, key, axis_names=()) -> (rounded, scale)`:
            both float32; `scale` has the shape of `x` with size 1 at `axes`, over
            which one scale is shared, and the mesh axes `axis_names` (inside
            `shard_map`) share it too. The fields of `fmt` are scalars or have the rank
            of `x`. `key` is for stochastic rounding, else None.
        update: `update(state, amax) -> state` after a step in which the largest
            magnitude was `amax`, of the shape of the state's scales.
        per_product: Whether a tensor is rounded for each of its products by itself. The
            keyword `use` of `round` then says which one, and the scale may differ along
            any axis: it broadcasts against `x`.
        on_grid: Whether what `round` returns are numbers of the format, so that a dtype
            that holds the format holds them.
        in_blocks: The same rounding in parts, for a recipe `per_product` that scales
            blocks by numbers of a narrow dtype; else None.
    """

    init: Callable[[tuple[int, ...]], Any]
    round: Callable[..., tuple[Float32[Array, "..."], Float32[Array, "..."]]]
    update: Callable[[Any, Float32[Array, "..."]], Any]
    per_product: bool = False
    on_grid: bool = False
    in_blocks: InBlocks | None = None


class Recipes(NamedTuple):
    """The recipes of one contraction's tensors, by role."""

    activation: Recipe
    weight: Recipe
    gradient: Recipe


def check_role(role: str) -> None:
    """Raises a ValueError if no tensor of a contraction has that role.

    >>> check_role("bias")
    Traceback (most recent call last):
    ValueError: role must be one of activation, weight, gradient, got 'bias'.
    """
    if role not in Recipes._fields:
        allowed = ", ".join(Recipes._fields)
        raise ValueError(f"role must be one of {allowed}, got {role!r}.")


def no_state(shape: tuple[int, ...]) -> tuple[()]:
    """Returns the state of a recipe that has none.

    >>> no_state((3,))
    ()
    """
    del shape
    return ()


def keep_state(state: tuple[()], amax: Array) -> tuple[()]:
    """Returns the state of a recipe that has none.

    >>> import jax.numpy as jnp
    >>> keep_state((), jnp.ones(()))
    ()
    """
    del amax
    return state


def shape_of_scale(x: Float[Array, "..."], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of one scale for all of `axes`.

    >>> import jax.numpy as jnp
    >>> shape_of_scale(jnp.zeros((2, 3)), (1,))
    (2, 1)
    """
    return tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
