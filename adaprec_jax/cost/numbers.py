"""Kinds of numbers as hardware tells them apart; imports no JAX."""

from typing import NamedTuple

from adaprec_jax import formats
from adaprec_jax.formats import Format

_WIDE_EXPONENT = -126  # the smallest of a float with 8 bits of it


class Number(NamedTuple):
    """A kind of number.

    Attributes:
        name: "int5", "float8", "bfloat16": integers by their bits, floats by the class
            of units that computes with them.
        bits: Its storage width.
        integer: Whether it is one, or fixed-point.
        scaled: Whether a tensor of it takes a scale.
    """

    name: str
    bits: int
    integer: bool
    scaled: bool


FLOAT32 = Number("float32", 32, integer=False, scaled=False)


def number(fmt: Format) -> Number:
    """Returns the kind of number of a format; its fields are plain numbers.

    >>> number(formats.get("float8_e4m3fn")).name, number(formats.integer(5)).name
    ('float8', 'int5')
    """
    bits = int(formats.bits(fmt))
    integer = float(fmt.max_value) < 2.0 ** (int(fmt.min_exponent) + 1)
    wide = int(fmt.min_exponent) == _WIDE_EXPONENT
    name = f"int{bits}" if integer else _float_name(bits, wide=wide)
    return Number(name, bits, integer, bool(fmt.scaled))


def _float_name(bits: int, *, wide: bool) -> str:
    """Returns the class of units for a float of so many bits."""
    for width in (4, 6, 8):
        if bits <= width:
            return f"float{width}"
    if bits <= 16:
        return "bfloat16" if wide else "float16"
    return "tf32" if bits <= 19 else "float32"
