"""Name scopes that say which work of a step belongs to which contraction.

They are written while a function is traced and read again by whoever walks the jaxpr of
the whole step, where a product of the backward pass is otherwise like any other.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

PRODUCTS = ("forward", "dgrad", "wgrad")
PARTS = (*PRODUCTS, "rounding", "statistics", "schedule", "optimizer")

_PART = re.compile(rf"\{{part ({'|'.join(PARTS)})\}}")
_NAME = re.compile(r"\{contraction ([01]) ([^{}]*)\}")


class Place(NamedTuple):
    """Whose work an equation is.

    Attributes:
        contraction: Its name, "" outside of all.
        weight_side: Which operand of the forward product is in the weight slot.
        part: One of `PARTS`, "" where nothing is said.
    """

    contraction: str
    weight_side: int
    part: str


@contextlib.contextmanager
def contraction(name: str, weight_side: int) -> Iterator[None]:
    """Marks what is traced inside as the work of one contraction."""
    with jax.named_scope(f"{{contraction {weight_side} {name}}}"):
        yield


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Marks what is traced inside as one of `PARTS`."""
    with jax.named_scope(f"{{part {name}}}"):
        yield


def place(stack: str) -> Place:
    """Returns what the innermost marks of a name stack say.

    >>> place("jvp(MLP)/{contraction 1 Dense_0}/{part rounding}")
    Place(contraction='Dense_0', weight_side=1, part='rounding')
    >>> place("MLP").part
    ''
    """
    named, parts = _NAME.findall(stack), _PART.findall(stack)
    side, name = named[-1] if named else ("1", "")
    return Place(name, int(side), parts[-1] if parts else "")
