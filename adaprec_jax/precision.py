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


class SharedPrecision(NamedTuple):
    """Three roundings: the products share one rounded copy of each tensor."""

    activation: Format
    weight: Format
    gradient: Format


Entry: TypeAlias = Precision | SharedPrecision
Plan: TypeAlias = dict[str, Entry]


def separate(entry: Entry) -> Precision:
    """Returns the six formats of `entry`, a shared one written out.

    >>> from adaprec_jax import formats
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


def late_switch(
    low: Entry, high: Entry, *, steps: int, fraction: float, products: str
) -> tuple[int, Entry, Entry]:
    """Returns the step of a late switch, and the entries before it and from it on.

    Args:
        low: Entry before the switch.
        high: Entry after it.
        steps: Length of the run.
        fraction: Of the run, in low precision; the switch comes at the nearest step.
        products: "all" switch, or the "forward" product alone.

    Raises:
        ValueError: `products` is neither.

    >>> from adaprec_jax import formats
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
    return round(fraction * steps), low, high
