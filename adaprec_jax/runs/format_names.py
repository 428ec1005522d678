"""Formats by the names that a config may use; imports no JAX."""

import re

from adaprec_jax import formats
from adaprec_jax.formats import Format

_FIXED = re.compile(r"(u?)fixed<(\d+),(-?\d+)(,unscaled)?>")
_FLOAT = re.compile(r"float<(\d+),(\d+)(?:,bias=(-?\d+))?(?:,(ieee|fn|fnuz|finite))?>")


def parse(name: str) -> Format:
    """Returns the format that a config calls `name`.

    The names are those of `adaprec_jax.formats.get`, and besides what
    `adaprec_jax.formats.describe` prints for the others: `fixed<word,fraction>`,
    `ufixed<word,fraction>` and `float<exponent,mantissa,bias=b,encoding>` of bits,
    where bias and encoding may be left out; `fixed<word,fraction,unscaled>` is a format
    that no scaling recipe acts on.

    Raises:
        ValueError: No format has that name, or it is no format of operands.

    >>> formats.describe(parse("fixed<8,4>")), formats.describe(parse("float<4,3,fn>"))
    ('fixed<8,4>', 'float8_e4m3fn')
    >>> formats.describe(parse("fixed<8,4,unscaled>"))
    'fixed<8,4,unscaled>'
    """
    if match := _FIXED.fullmatch(name):
        unsigned, word, fraction, unscaled = match.groups()
        return formats.fixed_point(
            int(word), int(fraction), signed=not unsigned, scaled=not unscaled
        )
    if match := _FLOAT.fullmatch(name):
        exponent, mantissa, bias, encoding = match.groups()
        return formats.floating(
            int(exponent),
            int(mantissa),
            bias=None if bias is None else int(bias),
            encoding=encoding or "ieee",
        )
    found = formats.get(name)
    if not isinstance(found, Format):
        raise ValueError(f"{name} is a format of block scales, not of operands.")
    return found
