"""Dtypes in which the numbers of a format are exact.

A product of int4 numbers is the same whether int8 or bfloat16 operands carry them, so a
format runs on the units of any dtype that holds its grid. Only a dtype is static: which
of the formats it holds is in force may change from step to step without another
compilation.
"""

from typing import Any

from jaxtyping import Bool

from adaprec_jax import formats
from adaprec_jax.formats import INFINITY, Format

CONTAINERS = (
    "int4",
    "float4_e2m1fn",
    "int8",
    "float8_e4m3fn",
    "float8_e5m2",
    "float16",
    "bfloat16",
    "float32",
)
"""The dtypes that hold other formats, narrow ones first."""


_GRIDS = {
    name: grid for name in CONTAINERS if isinstance(grid := formats.get(name), Format)
}


def holds(dtype: str, fmt: Format) -> Bool[Any, "..."]:
    r"""Returns whether every number of a format is one of the dtype, elementwise.

    A grid with m mantissa bits from $2^e$ on lies within one with M and E if
    $m \le M$, $e - m \ge E - M$, and its bounds are not beyond the other's. Infinity
    and the negative zero must be there, too, where the format has them. NaN need not:
    integers and float4_e2m1fn have none.

    Args:
        dtype: One of `CONTAINERS`.
        fmt: Its fields may be traced or arrays.

    Raises:
        ValueError: The dtype is none of them.

    >>> int4, e5m2 = formats.integer(4), formats.get("float8_e5m2")
    >>> [name for name in CONTAINERS if holds(name, int4)][:3]
    ['int4', 'int8', 'float8_e4m3fn']
    >>> [name for name in CONTAINERS if holds(name, e5m2)]
    ['float8_e5m2', 'float16', 'bfloat16', 'float32']
    """
    if dtype not in CONTAINERS:
        raise ValueError(f"{dtype!r} is none of {', '.join(CONTAINERS)}.")
    wide = _GRIDS[dtype]
    finest = fmt.min_exponent - fmt.mantissa_bits
    within = (fmt.min_value >= wide.min_value) & (fmt.max_value <= wide.max_value)
    if dtype.startswith("int"):  # all of its numbers have one spacing
        return (
            within & (finest >= 0) & (fmt.overflow != INFINITY) & (~fmt.negative_zero)
        )
    fine = (fmt.mantissa_bits <= wide.mantissa_bits) & (
        finest >= wide.min_exponent - wide.mantissa_bits
    )
    infinite = (fmt.overflow != INFINITY) | bool(wide.overflow == INFINITY)
    return within & fine & infinite
