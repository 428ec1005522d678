"""The transpose of a product, in the layouts for which XLA:CPU has fast kernels.

Neither changes more than the order in which a sum is formed.

A matrix product `y = x w` has the weight gradient `g^T x` in JAX, which lies the other
way round than the weight: the optimizer then reads it against its order, and the wide
gradient is what XLA copies. `x^T g` lies as the weight does (a transformer block's
train step takes 0.8 times as long).

The gradients of a convolution are convolutions with permuted dimension numbers. At the
top level XLA brings those into the canonical layout (channels last, kernel as height,
width, in, out), inside a `scan` it does not, and there a gradient takes 13 to 17 times
as long (jax#12868). With explicit transposes it is as fast in a loop as outside.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from adaprec_jax.contractions import jax_internals as internals
from adaprec_jax.contractions.block_scaled import block_scaled_dot
from adaprec_jax.contractions.kernels import (
    Blocked,
    Kernel,
    Operand,
    accumulator,
    operand,
)

_TRANSPOSED = (jnp.dtype("int8"), jnp.dtype("bfloat16"))


def linear_transpose(
    fn: Callable[[Array], Array],
    like: Array,
    kernel: Kernel = Kernel(),
    blocked: Blocked | None = None,
) -> Callable[[Operand], Array]:
    """Returns the transpose of a linear function, float32.

    Args:
        fn: A product with one operand fixed, float32.
        like: What it takes.
        kernel: The dtypes of the cotangent and of the fixed operand in the product.
        blocked: The fixed operand, if its blocks have scales; then the transpose takes
            a cotangent that is `Blocked`, too.

    >>> double = linear_transpose(lambda x: 2 * x, jnp.ones(3))
    >>> double(jnp.ones(3))
    Array([2., 2., 2.], dtype=float32)
    """
    transposed = jax.linear_transpose(fn, like)

    def evaluate(cotangent: Operand) -> Array:
        x = cotangent.elements if isinstance(cotangent, Blocked) else cotangent
        closed, _ = internals.trace(transposed, x)
        variables = (*closed.jaxpr.constvars, *closed.jaxpr.invars)
        env: dict[Any, Any] = dict(zip(variables, (*closed.consts, x), strict=True))
        permutations = {eqn.invars[0]: eqn.params["permutation"]
                        for eqn in closed.jaxpr.eqns
                        if eqn.primitive is lax.transpose_p}  # fmt: skip
        moved = set(closed.jaxpr.invars)  # the cotangent, and what is made of it
        for eqn in closed.jaxpr.eqns:
            atoms = [None if isinstance(a, internals.Literal) else a
                     for a in eqn.invars]  # fmt: skip
            ins = [lit.val if a is None else env[a]
                   for a, lit in zip(atoms, eqn.invars, strict=True)]  # fmt: skip
            if eqn.primitive in _PRODUCTS:
                if blocked is not None:
                    ins = [cotangent if a in moved else blocked for a in atoms]
                ins = [operand(x, kernel.left if a in moved else kernel.right,
                               kernel.scales)
                       for a, x in zip(atoms, ins, strict=True)]  # fmt: skip
                params = eqn.params | {"preferred_element_type": accumulator(kernel)}
                follows = permutations.get(eqn.outvars[0])
                blocks = {"size": kernel.scales.size} if kernel.scales else {}
                outs = [_PRODUCTS[eqn.primitive](*ins, params, follows, **blocks)]
            else:
                outs = internals.bind(eqn, *ins)
            if moved.intersection(atoms):
                moved.update(eqn.outvars)
            env |= dict(zip(eqn.outvars, outs, strict=True))
        return env[closed.jaxpr.outvars[0]]

    return evaluate


def multiply(
    left: Operand,
    right: Operand,
    parameters: dict[str, Any],
    permutation: tuple[int, ...] | None,
    size: int = 0,
) -> Array:
    """Returns a `dot_general`, its right operand first if that saves a transpose.

    Args:
        left: Left operand of the primitive.
        right: Right operand.
        parameters: Of the primitive.
        permutation: Of the transpose that follows; None if none does.
        size: Elements of a block, of operands whose blocks have scales.
    """
    contracting, batch = parameters["dimension_numbers"]
    first, free = len(batch[0]), right.ndim - len(batch[0]) - len(contracting[1])
    axes = range(left.ndim + right.ndim - first - 2 * len(contracting[0]))
    back = (*axes[:first], *axes[first + free :], *axes[first : first + free])
    restored = [back[axis] for axis in permutation or ()]
    # An explicit sharding of the result names its axes in their present order.
    if restored != list(axes) or parameters["out_sharding"] is not None:
        return _formed(left, right, parameters, size)
    swapped = parameters | {
        "dimension_numbers": (contracting[::-1], batch[::-1]),
        "precision": parameters["precision"] and parameters["precision"][::-1],
    }
    return lax.transpose(_formed(right, left, swapped, size), back)


def _formed(
    left: Operand, right: Operand, parameters: dict[str, Any], size: int
) -> Array:
    if isinstance(left, Blocked) or isinstance(right, Blocked):
        return block_scaled_dot(left, right, size, parameters)  # pyright: ignore[reportArgumentType]  (both are)
    return _narrow_or_wide(left, right, parameters)


def _narrow_or_wide(left: Array, right: Array, parameters: dict[str, Any]) -> Array:
    """Returns a `dot_general`; a sum over the first axes of narrow numbers split.

    XLA:CPU has fast kernels for int8 and bfloat16 where the left operand's last axis is
    summed. It does not transpose an operand for them, except where two axes are summed:
    then int8 takes a fifth of the time, bfloat16 two thirds.
    """

    def whole(left: Array, right: Array) -> Array:
        return internals.dot_general_p.bind(left, right, **parameters)

    first = (((0,), (0,)), ((), ()))
    slow = left.dtype in _TRANSPOSED and left.ndim == right.ndim == 2
    if not slow or parameters["dimension_numbers"] != first or len(left) % 2:
        return whole(left, right)

    def split(left: Array, right: Array) -> Array:
        both = parameters | {"dimension_numbers": (((0, 1), (0, 1)), ((), ()))}
        halves = (x.reshape(2, -1, x.shape[1]) for x in (left, right))
        return internals.dot_general_p.bind(*halves, **both)

    return lax.platform_dependent(left, right, cpu=split, default=whole)


def convolve(
    left: Array,
    right: Array,
    parameters: dict[str, Any],
    permutation: tuple[int, ...] | None = None,
) -> Array:
    """Returns a `conv_general_dilated`, formed in the canonical layout.

    Args:
        left: The input, in the layout that the parameters say.
        right: The kernel.
        parameters: Of the primitive.
        permutation: Of the transpose that follows; it is of no use here.
    """
    del permutation
    spec = parameters["dimension_numbers"]
    rank = left.ndim
    last, kernel = _channels_last(rank), _kernel_last(rank)
    # A spec lists batch, feature, then space; where each of them is in the array.
    out = internals.conv_general_dilated_p.bind(
        lax.transpose(left, _order(spec.lhs_spec, last)),
        lax.transpose(right, _order(spec.rhs_spec, kernel)),
        **parameters
        | {"dimension_numbers": lax.ConvDimensionNumbers(last, kernel, last)},
    )
    return lax.transpose(out, _order(last, spec.out_spec))


def _channels_last(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


def _kernel_last(rank: int) -> tuple[int, ...]:
    return (rank - 1, rank - 2, *range(rank - 2))


def _order(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the permutation that takes one layout to another."""
    order = [0] * len(source)
    for from_axis, to_axis in zip(source, target, strict=True):
        order[to_axis] = from_axis
    return tuple(order)


_PRODUCTS: dict[Any, Callable[..., Array]] = {
    internals.dot_general_p: multiply,
    internals.conv_general_dilated_p: convolve,
}
