"""The dtype of everything between contractions, by a table that names primitives.

Results of contractions (and of look-ups in a parameter) are in the low dtype. From
there on every primitive is in one of three classes: `float32` (reductions, exponentials
and what else loses its meaning in few bits), `widest`, the widest dtype among its
inputs, where parameters and constants adopt the dtype of what they meet, or `as is`. A
primitive in no class is an error that names it: nothing is cast on a guess.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

FLOAT32 = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "complex", "cos", "cosh", "cumlogsumexp", "cummax", "cummin",
    "cumprod", "cumsum", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "igamma", "igamma_grad_a", "igammac", "integer_pow", "lgamma", "log", "log1p",
    "logistic", "polygamma", "pow", "psum", "psum_invariant", "random_gamma_grad",
    "reduce_max", "reduce_min", "reduce_prod", "reduce_scatter", "reduce_sum",
    "reduce_window_sum", "regularized_incomplete_beta", "rsqrt", "scatter-add",
    "scatter-mul", "scatter-sub", "select_and_gather_add", "select_and_scatter_add",
    "sin", "sinh", "sqrt", "square", "tan", "tanh", "zeta",
})  # fmt: skip
WIDEST = frozenset({
    "abs", "add", "add_any", "broadcast_in_dim", "broadcast_to", "ceil", "clamp",
    "concatenate", "conv_general_dilated", "copy", "div", "dot_general",
    "dynamic_slice", "dynamic_update_slice", "eq", "floor", "ge", "gt", "is_finite",
    "le", "lt", "max", "min", "mul", "name", "ne", "neg", "nextafter", "pad",
    "ragged_dot_general", "reduce_precision", "reduce_window_max", "reduce_window_min",
    "rem", "reshape", "rev", "round", "scatter", "scatter-max", "scatter-min",
    "select_n", "sharding_constraint", "sign", "slice", "split", "squeeze", "stack",
    "stop_gradient", "sub", "tile", "transpose", "unstack",
})  # fmt: skip
# Their inputs are no numbers to be cast, or are independent of one another.
AS_IS = frozenset({
    "addupdate", "after_all", "all_gather", "all_gather_invariant", "all_to_all", "and",
    "argmax", "argmin", "axis_index", "bitcast_convert_type", "clz", "conj",
    "convert_element_type", "create_token", "debug_callback", "debug_print",
    "device_put", "dimension_size", "empty", "get", "imag", "iota", "iota_2x32_shape",
    "layout_constraint", "mulhi", "multiple_of", "not", "num_programs",
    "optimization_barrier", "or", "pbroadcast", "platform_index", "pmax", "pmin",
    "population_count", "ppermute", "program_id", "pvary", "ragged_all_to_all",
    "random_bits", "random_clone", "random_fold_in", "random_gamma", "random_seed",
    "random_split", "random_unwrap", "random_wrap", "real", "reduce_and", "reduce_or",
    "reduce_xor", "reshard", "rng_bit_generator", "rng_uniform", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sort", "swap", "threefry2x32",
    "top_k", "xor",
})  # fmt: skip
# A look-up in a parameter gives the low dtype: it is a product with one-hot rows.
LOOK_UP = frozenset({"gather"})
KNOWN = FLOAT32 | WIDEST | AS_IS | LOOK_UP


class Compute(NamedTuple):
    """The low dtype, and classes for primitives that the table does not name.

    Attributes:
        dtype: bfloat16 or float16 (or float32, which changes nothing).
        extra: Class by primitive name: "float32", "widest", "as is" or "look-up".
    """

    dtype: jnp.dtype
    extra: Mapping[str, str] = {}


class Value(NamedTuple):
    """A value of the program.

    Attributes:
        array: The value.
        adopts: Whether it adopts the dtype of what it meets, as parameters do.
        copied: Mesh axes along which every device holds a copy of it, although it is
            marked as varying over them, to meet what does.
    """

    array: Any
    adopts: bool
    copied: frozenset[str] = frozenset()


def class_of(primitive: str, compute: Compute) -> str:
    """Returns the class of a primitive.

    Raises:
        ValueError: The table does not name it, or `extra` gives it an unknown class.

    >>> class_of("exp", Compute(jnp.dtype("bfloat16")))
    'float32'
    """
    classes = {"float32": FLOAT32, "widest": WIDEST, "as is": AS_IS, "look-up": LOOK_UP}
    if primitive in compute.extra:
        if (chosen := compute.extra[primitive]) not in classes:
            raise ValueError(
                f"Compute.extra has {primitive!r} in the class {chosen!r}; the classes "
                f"are {list(classes)}."
            )
        return chosen
    for name, members in classes.items():
        if primitive in members:
            return name
    raise ValueError(
        f"compute_dtype does not know the primitive {primitive!r}; give its class with "
        f"Compute(dtype, extra={{{primitive!r}: 'float32'}}), one of {list(classes)}."
    )


def prepare(
    compute: Compute | None, primitive: str, values: Sequence[Value]
) -> tuple[list[Any], bool]:
    """Returns a primitive's inputs in the dtype that its class asks for.

    Also returns whether the result adopts: it does where every float among the inputs
    does, so that masks, positions and whole numbers made into floats widen nothing.

    >>> x = Value(jnp.zeros(2, jnp.bfloat16), False)
    >>> (x, scale), _ = prepare(
    ...     Compute(jnp.dtype("bfloat16")), "mul", [x, Value(jnp.ones(2), True)])
    >>> scale.dtype
    dtype(bfloat16)
    """
    arrays = [value.array for value in values]
    if compute is None:
        return arrays, False
    adopts = all(value.adopts for value in values if is_float(value.array))
    if not any(map(is_float, arrays)):
        return arrays, adopts
    kind = class_of(primitive, compute)
    if kind == "as is":
        return arrays, adopts
    if kind == "float32":
        dtype = jnp.dtype("float32")
    else:
        looked_up = kind == "look-up" and values[0].adopts
        dtype = compute.dtype if looked_up else widest(values)
    return [cast(x, dtype) for x in arrays], adopts and kind != "look-up"


def widest(values: Sequence[Value]) -> jnp.dtype:
    """Returns the widest float dtype; what adopts counts only if nothing else does.

    >>> low = jnp.zeros(1, jnp.bfloat16)
    >>> widest([Value(jnp.zeros(1), True), Value(low, False)])
    dtype(bfloat16)
    """
    floats = [value for value in values if is_float(value.array)]
    firm = [value for value in floats if not value.adopts] or floats
    dtypes = [jnp.dtype(jnp.result_type(value.array)) for value in firm]
    return max(dtypes, key=_width, default=jnp.dtype("float32"))


def _width(dtype: jnp.dtype) -> int:
    return jnp.finfo(dtype).bits + jnp.finfo(dtype).nmant


def cast(x: Any, dtype: Any) -> Any:
    """Returns `x` in `dtype` if both are floats; anything else unchanged."""
    floats = is_float(x) and jnp.issubdtype(dtype, jnp.floating)
    return lax.convert_element_type(x, dtype) if floats else x


def is_float(x: Any) -> bool:
    """Returns whether `x` is a float array (PRNG keys and tokens are not)."""
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))
