"""Convolutions in the layout for which XLA:CPU has a fast kernel inside loops.

The gradients of a convolution are convolutions with permuted dimension numbers. At the
top level XLA brings those into the canonical layout (channels last, kernel as height,
width, in, out), inside a `scan` it does not, and there a gradient takes 13 to 17 times
as long (jax#12868). Written out with explicit transposes the result is the same, to the
bit, and as fast in a loop as outside.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from adaprec_jax.contractions import jax_internals as internals


def convolve(left: Array, right: Array, parameters: dict[str, Any]) -> Array:
    """Returns a `conv_general_dilated`, formed in the canonical layout.

    Args:
        left: The input, in the layout that the parameters say.
        right: The kernel.
        parameters: Of the primitive.
    """
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


def linear_transpose(fn: Callable[[Array], Array], like: Array) -> Callable[..., Array]:
    """Returns the transpose of a linear function, its convolutions canonical.

    >>> import jax.numpy as jnp
    >>> double = linear_transpose(lambda x: 2 * x, jnp.ones(3))
    >>> double(jnp.ones(3))
    Array([2., 2., 2.], dtype=float32)
    """
    transposed = jax.linear_transpose(fn, like)

    def evaluate(x: Array) -> Array:
        closed, _ = internals.trace(transposed, x)
        variables = (*closed.jaxpr.constvars, *closed.jaxpr.invars)
        env: dict[Any, Any] = dict(zip(variables, (*closed.consts, x), strict=True))
        for eqn in closed.jaxpr.eqns:
            ins = [a.val if isinstance(a, internals.Literal) else env[a]
                   for a in eqn.invars]  # fmt: skip
            if eqn.primitive is internals.conv_general_dilated_p:
                outs = [convolve(*ins, eqn.params)]
            else:
                outs = internals.bind(eqn, *ins)
            env |= dict(zip(eqn.outvars, outs, strict=True))
        return env[closed.jaxpr.outvars[0]]

    return evaluate
