"""The dtype of everything between contractions, by a table that names primitives.

Results of contractions (and of look-ups in a parameter) are in the low dtype. From
there on every primitive is in one of two classes: `float32` (reductions, exponentials
and what else loses its meaning in few bits) or `widest`, the widest dtype among its
inputs, where parameters and constants adopt the dtype of what they meet. A primitive in
no class is an error that names it: nothing is cast on a guess.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from adaprec_jax.contractions.jax_internals import Eqn

FLOAT32 = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "cos", "cosh", "cumlogsumexp", "cummax", "cummin", "cumprod",
    "cumsum", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "igamma",
    "igammac", "integer_pow", "lgamma", "log", "log1p", "logistic", "pow", "reduce_max",
    "reduce_min", "reduce_precision", "reduce_prod", "reduce_sum", "reduce_window_sum",
    "regularized_incomplete_beta", "rsqrt", "scatter-add", "scatter_add", "sin", "sinh",
    "sqrt", "square", "tan", "tanh", "zeta",
})  # fmt: skip
WIDEST = frozenset({
    "abs", "add", "add_any", "broadcast_in_dim", "ceil", "clamp", "concatenate",
    "copy", "copy_p", "div", "dynamic_slice", "dynamic_update_slice", "eq", "expand_dims",
    "floor", "ge", "gt", "is_finite", "le", "lt", "max", "min", "mul", "ne", "neg",
    "nextafter", "optimization_barrier", "pad", "pcast", "pbroadcast", "psum",
    "psum_invariant", "pmax", "pmin", "pvary", "ppermute", "all_gather", "all_to_all",
    "reduce_scatter", "rem", "reshape", "rev", "reduce_window_max", "round", "scatter",
    "select_and_gather_add", "select_and_scatter_add", "select_n", "sharding_constraint",
    "sign", "slice", "split", "squeeze", "stop_gradient", "sub", "transpose",
})  # fmt: skip
# Their inputs are no numbers to be cast, or are independent of one another.
AS_IS = frozenset({
    "and", "argmax", "argmin", "axis_index", "bitcast_convert_type", "clz",
    "convert_element_type", "debug_callback", "debug_print", "dot_general", "iota", "not",
    "or", "population_count", "random_bits", "random_fold_in", "random_seed",
    "random_split", "random_unwrap", "random_wrap", "reduce_and", "reduce_or",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sort",
    "threefry2x32", "top_k", "xor",
})  # fmt: skip
# Look-ups give the low dtype: an embedding is a contraction with one-hot rows.
LOW = frozenset({"gather", "take"})


class Compute(NamedTuple):
    """The low dtype, and classes for primitives that the table does not name.

    Attributes:
        dtype: bfloat16 or float16 (or float32, which changes nothing).
        extra: Class by primitive name: "low", "float32", "widest" or "as is".
    """

    dtype: jnp.dtype
    extra: Mapping[str, str] = {}


def class_of(primitive: str, compute: Compute) -> str:
    """Returns the class of a primitive.

    Raises:
        ValueError: The table does not name it.

    >>> class_of("exp", Compute(jnp.dtype("bfloat16")))
    'float32'
    """
    if primitive in compute.extra:
        return compute.extra[primitive]
    classes = {"float32": FLOAT32, "widest": WIDEST, "as is": AS_IS, "low": LOW}
    for name, members in classes.items():
        if primitive in members:
            return name
    raise ValueError(
        f"compute_dtype does not know the primitive {primitive!r}; give its class with "
        f"Compute(dtype, extra={{{primitive!r}: 'float32'}}), one of {list(classes)}."
    )


def compute_inputs(
    compute: Compute, eqn: Eqn, arrays: Sequence[Any], adopts: Sequence[bool]
) -> list[Any]:
    """Returns the inputs of an equation in the dtype that its class asks for."""
    if not any(_is_float(x) for x in arrays):
        return list(arrays)
    kind = class_of(eqn.primitive.name, compute)
    if kind == "as is":
        return list(arrays)
    if kind == "low":
        dtype = compute.dtype
    elif kind == "float32":
        dtype = jnp.dtype("float32")
    else:
        dtype = widest(arrays, adopts)
    return [lax.convert_element_type(x, dtype) if _is_float(x) else x for x in arrays]


def widest(arrays: Sequence[Any], adopts: Sequence[bool]) -> jnp.dtype:
    """Returns the widest float dtype; what adopts counts only if nothing else does.

    >>> widest([jnp.zeros(1), jnp.zeros(1, jnp.bfloat16)], [True, False])
    dtype(bfloat16)
    """
    floats = [(x, a) for x, a in zip(arrays, adopts, strict=True) if _is_float(x)]
    firm = [x for x, a in floats if not a] or [x for x, _ in floats]
    return max(
        (jnp.dtype(jnp.result_type(x)) for x in firm),
        key=lambda dtype: jnp.finfo(dtype).nmant + jnp.finfo(dtype).bits,
        default=jnp.dtype("float32"),
    )


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))
