"""Number formats as data: a handful of numbers that `jit` traces and `vmap` maps.

A dtype is static inside `jit`, so a change of dtype is a new compilation. A `Format`
is not: it describes the grid of representable numbers by seven fields, and one
compiled `adaprec_jax.quantize` serves every format.

Around x the grid has the spacing

    q(x) = 2^(max(exponent(x), min_exponent) - mantissa_bits),

between `min_value` and `max_value`. A floating-point format is the general case; an
integer or a fixed-point number is a float that never leaves its subnormal range
(int8: 6 mantissa bits, min_exponent 6, hence spacing 1); float32 is the identity.

Nothing here imports JAX: what works on traced arrays does so through the operators and
methods that NumPy's and JAX's arrays share.
"""

import contextlib
import difflib
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from adaprec_jax.display import html_table, power_of_two, value_range

# What a value beyond the range becomes: the bound, infinity or NaN.
SATURATE, INFINITY, NAN = 0, 1, 2

# Encoding of a float's special codes -> what overflow becomes; see `floating`.
_ENCODINGS = {"ieee": INFINITY, "fn": NAN, "fnuz": NAN, "finite": SATURATE}

LARGEST_FLOAT32 = np.finfo(np.float32).max
WIDEST_INTEGER = 24  # whose magnitudes float32's significand holds
_WIDEST_NAMED_INTEGER = 16
_HEAD = (
    "format", "bits", "range", "smallest normal", "smallest", "spacing at 1",
    "overflow",
)  # fmt: skip
_SHOWN = 20  # lines of a table in a notebook
_OVERFLOW_NAMES = ("saturates", "infinity", "NaN")

# Name -> exponent bits, mantissa bits, bias, encoding.
_FLOATS = {
    "float32": (8, 23, 127, "ieee"),
    "tf32": (8, 10, 127, "ieee"),
    "bfloat16": (8, 7, 127, "ieee"),
    "float16": (5, 10, 15, "ieee"),
    "float8_e3m4": (3, 4, 3, "ieee"),
    "float8_e4m3": (4, 3, 7, "ieee"),
    "float8_e4m3fn": (4, 3, 7, "fn"),
    "float8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8_e4m3b11fnuz": (4, 3, 11, "fnuz"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e5m2fnuz": (5, 2, 16, "fnuz"),
    "float6_e2m3fn": (2, 3, 1, "finite"),
    "float6_e3m2fn": (3, 2, 3, "finite"),
    "float4_e2m1fn": (2, 1, 1, "finite"),
}


class Format(NamedTuple):
    """A number format; every field is traced data and broadcasts against the tensor.

    Attributes:
        mantissa_bits: Stored bits of the significand, 0 to 23.
        min_exponent: Exponent below which the spacing no longer shrinks.
        min_value: Lowest finite value (0 where the format is unsigned).
        max_value: Highest finite value.
        overflow: What a value beyond the range becomes: SATURATE, INFINITY or NAN.
        negative_zero: Whether the format has one.
        scaled: Whether a scaling recipe acts (`adaprec_jax.scaling`). False for
            float16 and the formats with float32's 8-bit exponent, whose range needs
            no scale.
    """

    mantissa_bits: Int32[Any, "..."]
    min_exponent: Int32[Any, "..."]
    min_value: Float32[Any, "..."]
    max_value: Float32[Any, "..."]
    overflow: Int32[Any, "..."]
    negative_zero: Bool[Any, "..."]
    scaled: Bool[Any, "..."]

    def _repr_html_(self) -> str | None:
        """Shows a notebook what the format is; traced fields are left as text."""
        return _as_html(self)


class PowerOfTwo(NamedTuple):
    """The format float8_e8m0fnu of block scales: 2^-127 to 2^127, or NaN.

    It has neither zero nor sign, so it does not fit the grid of a `Format`; its type
    is static and `adaprec_jax.quantize` has a rounding of its own for it (OCP
    Microscaling Formats v1.0).
    """


class Row(NamedTuple):
    """One format as the `adaprec formats` command lists it."""

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    min_value: float
    max_value: float
    smallest_normal: float
    smallest_positive: float
    spacing_at_one: float
    overflow: str


def names() -> tuple[str, ...]:
    """Returns every name that `get` knows, the floats first."""
    widths = range(1, _WIDEST_NAMED_INTEGER + 1)
    integers = (f"{kind}{width}" for kind in ("int", "uint") for width in widths)
    return (*_FLOATS, "float8_e8m0fnu", *integers)


def get(name: str) -> Format | PowerOfTwo:
    """Returns the format called `name`, its fields NumPy scalars.

    The names are those of ml_dtypes and NumPy, with tf32 and the integers of 1 to 16
    bits besides; `names` lists them.

    Raises:
        ValueError: No format has that name.

    >>> float(get("float8_e4m3fn").max_value)
    448.0
    >>> get("float8_e4m3n")
    Traceback (most recent call last):
    ValueError: Unknown format 'float8_e4m3n'; the nearest names are float8_e4m3fn,
    float8_e4m3, float8_e4m3fnuz.
    """
    if name == "float8_e8m0fnu":
        return PowerOfTwo()
    if name in _FLOATS:
        exponent_bits, mantissa_bits, bias, encoding = _FLOATS[name]
        return floating(exponent_bits, mantissa_bits, bias=bias, encoding=encoding)
    if name in names():
        width = name.removeprefix("u").removeprefix("int")
        return integer(int(width), signed=not name.startswith("u"))
    nearest = ", ".join(difflib.get_close_matches(str(name), names(), n=3, cutoff=0.0))
    raise ValueError(f"Unknown format {name!r}; the nearest names are {nearest}.")


def integer(bits: int | Int[Any, "..."], *, signed: bool = True) -> Format:
    """Returns the integer format of `bits` bits, two's complement where signed.

    Args:
        bits: Width, 1 to 24; may be a traced array, and then each field has its shape.
        signed: Whether the range is -2^(bits-1) to 2^(bits-1) - 1, or 0 to 2^bits - 1.

    Returns:
        As `fixed_point`.

    Raises:
        ValueError: A width is out of range (a traced one is not checked).

    >>> float(integer(5).min_value), float(integer(5).max_value)
    (-16.0, 15.0)
    """
    return fixed_point(bits, 0, signed=signed)


def fixed_point(
    word_bits: int | Int[Any, "..."],
    fraction_bits: int | Int[Any, "..."],
    *,
    signed: bool = True,
    scaled: bool = True,
) -> Format:
    """Returns the fixed-point format <word, fraction>: integers times 2^-fraction.

    Args:
        word_bits: Width, 1 to 24; may be traced.
        fraction_bits: Bits behind the point, -104 to 125 (-103 to 125 without a sign);
            may be traced. Both arguments have one shape, or one of them is a plain
            number.
        signed: Whether the range is -2^(word-1) to 2^(word-1) - 1 spacings, or 0 to
            2^word - 1.
        scaled: Whether a scaling recipe acts; without one the point stays where
            `fraction_bits` says.

    Returns:
        A format whose fields are int32, float32 and bool (see `Format`), NumPy's, or
        JAX's where an argument is, of the arguments' shape.

    Raises:
        ValueError: An argument is out of range (a traced one is not checked).

    >>> fmt = fixed_point(8, 4)
    >>> float(fmt.min_value), float(fmt.max_value)
    (-8.0, 7.9375)
    """
    _check_range("word_bits", word_bits, 1, WIDEST_INTEGER)
    # Float32 ends below 2^128, and the widest unsigned word has one bit more.
    lowest = -104 if signed else -103
    _check_range("fraction_bits", fraction_bits, lowest, 125)
    word, fraction, zeros = _int32s(word_bits, fraction_bits, 0)
    magnitude_bits = word - 1 if signed else word
    # One bit, sign alone: {-1, 0} is the grid 0, 1, 2, 4, ... cut to its bounds.
    mantissa_bits = magnitude_bits - 1 + (magnitude_bits == 0).astype(np.int32)
    bound = _power_of_two(magnitude_bits - fraction)
    return Format(
        mantissa_bits=mantissa_bits,
        min_exponent=mantissa_bits - fraction,
        min_value=-bound if signed else bound * 0,
        max_value=bound - _power_of_two(-fraction),
        overflow=zeros + SATURATE,
        negative_zero=zeros != zeros,
        scaled=(zeros == zeros) & scaled,
    )


def floating(
    exponent_bits: int | Int[Any, "..."],
    mantissa_bits: int | Int[Any, "..."],
    *,
    bias: int | Int[Any, "..."] | None = None,
    encoding: str = "ieee",
) -> Format:
    """Returns the floating-point format of the given widths.

    Args:
        exponent_bits: Width of the exponent, 1 to 8 (2 to 8 for "ieee" and
            "fn"); may be traced.
        mantissa_bits: Width of the stored significand, 0 to 23; may be traced.
        bias: Of the exponent; 2^(exponent_bits - 1) - 1 by default; may be traced. The
            arguments have one shape, or are plain numbers.
        encoding: Where infinity and NaN lie, in the words of ml_dtypes' names: "ieee"
            has both in the top exponent and overflows to infinity; "fn" has one NaN,
            the code of all ones, and overflows to it; "fnuz" has it in the place of
            negative zero; "finite" has neither and saturates.

    Returns:
        A format whose fields are int32, float32 and bool (see `Format`), NumPy's, or
        JAX's where an argument is, of the arguments' shape.

    Raises:
        ValueError: The encoding is unknown, a width is out of range, or float32 cannot
            hold the format exactly: its largest exponent is above 127, its smallest
            below -126, or the spacing of its subnormals above 2^104, or below 2^-125
            with a smallest exponent other than -126. (Traced arguments are not
            checked.)

    >>> floating(4, 3, encoding="fn") == get("float8_e4m3fn")
    True
    >>> float(floating(5, 6).max_value)
    65024.0
    """
    if encoding not in _ENCODINGS:
        allowed = ", ".join(_ENCODINGS)
        raise ValueError(f"encoding must be one of {allowed}, got {encoding!r}.")
    fewest = 2 if encoding in ("ieee", "fn") else 1  # one would leave no normal number
    _check_range("exponent_bits", exponent_bits, fewest, 8)
    _check_range("mantissa_bits", mantissa_bits, 0, 23)
    if bias is not None:
        _check_range("bias", bias, -(2**16), 2**16)
    ieee_bias = (1 << (exponent_bits - 1)) - 1
    exponents, mantissa_bits, offset, zeros = _int32s(
        exponent_bits, mantissa_bits, ieee_bias if bias is None else bias, 0
    )
    min_exponent = 1 - offset
    max_exponent = (1 << exponents) - (2 if encoding == "ieee" else 1) - offset
    _check_exponents(mantissa_bits, min_exponent, max_exponent)
    # The bits of float32: the power of two above the top exponent, less one spacing,
    # and less another where that code is NaN.
    unused_codes = 2 if encoding == "fn" else 1
    max_bits = ((max_exponent + 128) << 23) - (unused_codes << (23 - mantissa_bits))
    max_value = max_bits.view(np.float32)
    is_float16 = (exponents == 5) & (mantissa_bits == 10)
    return Format(
        mantissa_bits=mantissa_bits,
        min_exponent=min_exponent,
        min_value=-max_value,
        max_value=max_value,
        overflow=zeros + _ENCODINGS[encoding],
        negative_zero=(zeros != zeros) if encoding == "fnuz" else (zeros == zeros),
        scaled=(exponents < 8) & ~is_float16,
    )


def bits(fmt: Format | PowerOfTwo) -> Int32[Any, "*shape"]:
    """Returns the storage width in bits, a traced function of the fields.

    It is the logarithm to base 2, rounded up, of the number of codes: the magnitudes
    up to each bound, zero, and the infinities and negative zero where there are any.

    >>> [int(bits(get(name))) for name in ("float32", "tf32", "float4_e2m1fn", "int5")]
    [32, 19, 4, 5]
    """
    if isinstance(fmt, PowerOfTwo):
        return np.int32(8)
    infinities = 2 * (fmt.overflow == INFINITY).astype(np.uint32)
    nonzero = _magnitudes(fmt, fmt.max_value) + _magnitudes(fmt, abs(fmt.min_value))
    largest_code = nonzero + infinities + fmt.negative_zero.astype(np.uint32)
    # Without the bit below the leading one, the conversion cannot round up to the next
    # power of two, and the exponent of the result is that of the leading bit.
    leading = (largest_code & ~(largest_code >> 1)).astype(np.float32)
    return (leading.view(np.int32) >> 23) - 126


def describe(fmt: Format | PowerOfTwo) -> str:
    """Returns the name of `fmt`, or its parameters where it has none; on the host only.

    A format with an axis (per channel, per layer of a stack) gives a list.

    >>> describe(integer(5)), describe(fixed_point(8, 4)), describe(floating(5, 6))
    ('int5', 'fixed<8,4>', 'float<5,6,bias=15,ieee>')
    >>> describe(integer(np.array([4, 8])))
    '[int4, int8]'
    """
    if isinstance(fmt, PowerOfTwo):
        return "float8_e8m0fnu"
    leaves = np.broadcast_arrays(*fmt)
    if leaves[0].ndim:
        slices = zip(*leaves, strict=True)
        return f"[{', '.join(describe(Format(*fields)) for fields in slices)}]"
    fields = Format(*(leaf[()] for leaf in leaves))
    return _named().get(fields) or _describe_unnamed(fields)


def rows() -> tuple[Row, ...]:
    """Returns what there is to know about every named format, in the order of `names`.

    >>> row = rows()[names().index("float8_e5m2")]
    >>> row.max_value, row.smallest_normal, row.spacing_at_one, row.overflow
    (57344.0, 6.103515625e-05, 0.25, 'infinity')
    """
    return tuple(_row(name, get(name)) for name in names())


def cells(row: Row) -> tuple[str | int, ...]:
    """Returns what a table shows of a row: name, bits, range, powers of two, overflow.

    >>> cells(next(row for row in rows() if row.name == "int4"))
    ('int4', 4, '-8 to 7', '1', '1', '1', 'saturates')
    """
    powers = (row.smallest_normal, row.smallest_positive, row.spacing_at_one)
    between = value_range(row.min_value, row.max_value)
    return row.name, row.bits, between, *map(power_of_two, powers), row.overflow


def _row(name: str, fmt: Format | PowerOfTwo) -> Row:
    if isinstance(fmt, PowerOfTwo):
        smallest, largest = 2.0**-127, 2.0**127
        return Row(name, 8, 8, 0, smallest, largest, smallest, smallest, 1.0, "NaN")
    width = int(bits(fmt))
    sign_bits = int(fmt.min_value < 0)
    # An integer or a fixed-point number stays in its subnormal range.
    is_float = fmt.max_value >= 2.0 ** float(fmt.min_exponent + 1)
    exponent_bits = width - sign_bits - int(fmt.mantissa_bits) if is_float else 0
    spacing = 2.0 ** float(fmt.min_exponent - fmt.mantissa_bits)
    return Row(
        name=name,
        bits=width,
        exponent_bits=exponent_bits,
        mantissa_bits=width - sign_bits - exponent_bits,
        min_value=float(fmt.min_value),
        max_value=float(fmt.max_value),
        smallest_normal=2.0 ** float(fmt.min_exponent) if exponent_bits else spacing,
        smallest_positive=spacing,
        spacing_at_one=2.0 ** float(max(fmt.min_exponent, 0) - fmt.mantissa_bits),
        overflow=_OVERFLOW_NAMES[fmt.overflow],
    )


def _as_html(fmt: Format) -> str | None:
    """Returns a table with a line for each format that the fields hold.

    It is None where they are traced, or are those of no format.
    """
    leaves = [leaf for leaf in map(_concrete, fmt) if leaf is not None]
    if len(leaves) < len(fmt) or any(leaf.dtype.kind not in "biuf" for leaf in leaves):
        return None
    arrays = np.broadcast_arrays(*leaves)
    axes = arrays[0].shape
    fields = zip(*(array.ravel() for array in arrays), strict=True)
    counted = Counter(Format(*each) for each in fields)
    if not all(map(_is_format, counted)):
        return None
    lines = [
        (*cells(_row(describe(fmt), fmt)), times)
        for fmt, times in counted.most_common(_SHOWN)
    ]
    if not axes:
        return html_table(_HEAD, [line[:-1] for line in lines])
    left_out = f", {len(lines)} of {len(counted)}" * (len(counted) > _SHOWN)
    caption = f"formats over axes {axes}{left_out}"
    return html_table((*_HEAD, "times"), lines, caption=caption)


def _is_format(fmt: Format) -> bool:
    """Returns whether the fields can be those of a format."""
    return bool(
        np.isfinite([float(field) for field in fmt]).all()
        and 0 <= fmt.mantissa_bits <= 23
        and abs(fmt.min_exponent) <= 127
        and fmt.overflow in (SATURATE, INFINITY, NAN)
    )


@functools.cache
def _named() -> dict[Format | PowerOfTwo, str]:
    return {get(name): name for name in names()}


def _describe_unnamed(fmt: Format) -> str:
    """Names a format by the arguments that make it, or else by its fields."""
    word, mantissa_bits = int(bits(fmt)), int(fmt.mantissa_bits)
    fraction = mantissa_bits - int(fmt.min_exponent)
    point = f"fixed<{word},{fraction}>" if fraction else f"int{word}"
    exponent_bits, bias = word - 1 - mantissa_bits, 1 - int(fmt.min_exponent)
    makers: dict[str, Callable[[], Format]] = {
        point: lambda: fixed_point(word, fraction),
        f"u{point}": lambda: fixed_point(word, fraction, signed=False),
        f"fixed<{word},{fraction},unscaled>": lambda: fixed_point(
            word, fraction, scaled=False
        ),
    }
    for encoding in _ENCODINGS:
        name = f"float<{exponent_bits},{mantissa_bits},{bias=},{encoding}>"
        makers[name] = functools.partial(
            floating, exponent_bits, mantissa_bits, bias=bias, encoding=encoding
        )
    for name, make in makers.items():
        with contextlib.suppress(ValueError):  # those widths are out of range
            if make() == fmt:
                return name
    return f"format{tuple(field.item() for field in fmt)}"


def _int32s(*values: int | Int[Any, "..."]) -> list[Any]:
    """Returns the values as int32 of one shape."""
    narrow = [np.int32(v) if isinstance(v, int) else v.astype(np.int32) for v in values]
    zeros = sum(value * 0 for value in narrow)
    return [value + zeros for value in narrow]


def _power_of_two(exponent: Int32[Any, "*shape"]) -> Float32[Any, "*shape"]:
    """Returns 2^exponent from the bits of float32, exact for -126 to 127."""
    return ((exponent + 127) << 23).view(np.float32)


def _magnitudes(fmt: Format, bound: Float32[Any, "*shape"]) -> Any:
    """Counts the nonzero magnitudes up to `bound`, itself 0 or a normal magnitude."""
    code = bound.view(np.int32) >> (23 - fmt.mantissa_bits)
    below_normal = (126 + fmt.min_exponent) << fmt.mantissa_bits
    return ((code - below_normal) * (bound != 0).astype(np.int32)).astype(np.uint32)


def _check_range(name: str, value: int | Int[Any, "..."], low: int, high: int) -> None:
    dtype = getattr(value, "dtype", type(value))
    if dtype is not int and not np.issubdtype(dtype, np.integer):
        raise TypeError(f"{name} must be an integer or an array of them, got {value}.")
    concrete = _concrete(value)
    if concrete is not None and not np.all((low <= concrete) & (concrete <= high)):
        raise ValueError(f"{name} must lie in {low} to {high}, got {concrete}.")


def _check_exponents(mantissa_bits: Any, min_exponent: Any, max_exponent: Any) -> None:
    mantissa, lowest = _concrete(mantissa_bits), _concrete(min_exponent)
    highest = _concrete(max_exponent)
    if mantissa is None or lowest is None or highest is None:
        return
    held = (lowest == -126) | ((lowest > -126) & (lowest - mantissa >= -125))
    if not np.all(held & (highest <= 127) & (lowest - mantissa <= 104)):
        raise ValueError(
            "float32 cannot hold this format exactly: its exponents run from "
            f"{lowest} to {highest} with {mantissa} mantissa bits; they must lie in "
            "-126 to 127, and the spacing of the subnormals in 2^-125 to 2^104, or "
            "below it where the smallest exponent is -126."
        )


def _concrete(value: Any) -> np.ndarray | None:
    """Returns the value as a NumPy array, or None where it is traced."""
    try:
        return np.asarray(value)
    except TypeError:  # JAX raises it for a traced array
        return None
