"""Which format each operand of a contraction's three products is rounded to.

A contraction `y = x w` runs three products in training: `forward` (y from
activation and weight), `dgrad` (the activation's gradient, from the output's
gradient and the weight) and `wgrad` (the weight's gradient, from the output's
gradient and the activation). Each operand of each product has a format of its own,
because the best documented changes of precision during a run touch one product
alone (NVFP4 pre-training, arXiv:2509.25149, raises the forward product only).

The formats are data; which of the two types an entry has is static.
"""

from typing import NamedTuple, TypeAlias

import numpy as np

from adaprec_jax import formats
from adaprec_jax.display import html_table
from adaprec_jax.formats import Format


class Forward(NamedTuple):
    """Formats of the operands of `y = activation * weight`."""

    activation: Format
    weight: Format


class Dgrad(NamedTuple):
    """Formats of the operands of the activation's gradient."""

    gradient: Format
    weight: Format


class Wgrad(NamedTuple):
    """Formats of the operands of the weight's gradient."""

    gradient: Format
    activation: Format


class Precision(NamedTuple):
    """Six roundings: every operand of every product separately."""

    forward: Forward
    dgrad: Dgrad
    wgrad: Wgrad

    def _repr_html_(self) -> str:
        """Shows a notebook the name of each format."""
        return html_table(("operand", "format"), format_names(self).items())


class SharedPrecision(NamedTuple):
    """Three roundings: the products share one rounded copy of each tensor."""

    activation: Format
    weight: Format
    gradient: Format

    def _repr_html_(self) -> str:
        """Shows a notebook the name of each format."""
        return html_table(("operand", "format"), format_names(self).items())


Entry: TypeAlias = Precision | SharedPrecision
Plan: TypeAlias = dict[str, Entry]


def separate(entry: Entry) -> Precision:
    """Returns the six formats of `entry`, a shared one written out.

    >>> int8 = formats.get("int8")
    >>> bfloat16 = formats.get("bfloat16")
    >>> full = separate(SharedPrecision(int8, int8, bfloat16))
    >>> formats.describe(full.wgrad.gradient), formats.describe(full.wgrad.activation)
    ('bfloat16', 'int8')
    """
    if isinstance(entry, Precision):
        return entry
    activation, weight, gradient = entry
    return Precision(
        Forward(activation, weight),
        Dgrad(gradient, weight),
        Wgrad(gradient, activation),
    )


def format_names(entry: Entry) -> dict[str, str]:
    """Returns the name of each operand's format; "traced" where it has no value.

    Formats of layers are listed if they differ.

    >>> int4, int8 = formats.integer(4), formats.integer(8)
    >>> format_names(SharedPrecision(int4, int4, int8))
    {'activation': 'int4', 'weight': 'int4', 'gradient': 'int8'}
    """
    if isinstance(entry, SharedPrecision):
        return {operand: _name(fmt) for operand, fmt in entry._asdict().items()}
    return {
        f"{product}.{operand}": _name(fmt)
        for product, pair in entry._asdict().items()
        for operand, fmt in pair._asdict().items()
    }


def late_switch(
    low: Entry,
    high: Entry,
    *,
    steps: int,
    fraction: float,
    products: str,
    at: int | None = None,
) -> tuple[int, Entry, Entry]:
    """Returns the step of a late switch, and the entries before it and from it on.

    Args:
        low: Entry before the switch.
        high: Entry after it.
        steps: Length of the run.
        fraction: Of the run, in low precision; the switch comes at the nearest step.
        products: "all" switch, or the "forward" product alone.
        at: The step of the switch, in the place of `fraction`.

    Raises:
        ValueError: `products` is neither.

    >>> int4, int8 = (SharedPrecision(*[formats.integer(bits)] * 3) for bits in (4, 8))
    >>> step, before, after = late_switch(
    ...     int4, int8, steps=1000, fraction=0.82, products="forward"
    ... )
    >>> step, formats.describe(after.forward.weight), after.wgrad == before.wgrad
    (820, 'int8', True)
    """
    if products not in ("all", "forward"):
        raise ValueError(f"products must be 'all' or 'forward', got {products!r}.")
    if products == "forward":
        low = separate(low)
        high = low._replace(forward=separate(high).forward)
    return round(fraction * steps) if at is None else at, low, high


def deficit(low: Entry, high: Entry, *, start: int, length: int) -> dict[int, Entry]:
    """Returns the entries of a deficit by the step at which each begins.

    Args:
        low: Entry during the deficit.
        high: Entry before and after it.
        start: Its first step.
        length: Its steps; 0 is none.

    Raises:
        ValueError: `start` or `length` is negative.

    >>> int3, int8 = (SharedPrecision(*[formats.integer(bits)] * 3) for bits in (3, 8))
    >>> [*deficit(int3, int8, start=2, length=3)]
    [0, 2, 5]
    """
    if start < 0 or length < 0:
        raise ValueError(
            f"Expected start and length of at least 0, got {start=}, {length=}."
        )
    return {0: high} | ({start: low, start + length: high} if length else {})


def _name(fmt: Format) -> str:
    try:
        leaves = [np.asarray(leaf) for leaf in fmt]
    except TypeError:  # JAX raises it for a traced array.
        return "traced"
    first = Format(*(leaf.flat[0] for leaf in leaves))
    same = all(np.all(leaf == one) for leaf, one in zip(leaves, first, strict=True))
    return formats.describe(first if same else fmt)
