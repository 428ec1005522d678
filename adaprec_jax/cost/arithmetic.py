"""The energy of one operation by process node, from published tables."""

import csv
import functools
import math
from typing import Literal, NamedTuple, TypeAlias

from adaprec_jax.cost.devices import DATA
from adaprec_jax.cost.numbers import Number

Node: TypeAlias = Literal["45nm", "7nm"]


class Energy(NamedTuple):
    """Picojoules of one operation, and the band of the table's entry."""

    value: float
    low: float
    high: float

    def plus(self, other: "Energy") -> "Energy":
        """Returns the sum of both."""
        return Energy(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Energy":
        """Returns the energy of `factor` operations."""
        return Energy(*(factor * each for each in self))


def mac(node: Node, first: Number, second: Number) -> Energy | None:
    r"""Returns the energy of one multiply-accumulate; None if a table lacks it.

    $$ E = \frac{mul(f_1) + mul(f_2)}{2} + add(accumulator) $$

    Integers are accumulated in int32, all else in float32. Integers between the entries
    follow the square of their bits below 8 (ours), and a straight line between the
    logarithms above.

    Source: Horowitz 2014 (ISSCC) for 45 nm, Jouppi et al. 2021 (ISCA) for 7 nm; what
    both lack is derived, as the `status` of a row says.

    >>> from adaprec_jax import formats
    >>> from adaprec_jax.cost.numbers import FLOAT32, number
    >>> int8 = number(formats.integer(8))
    >>> round(mac("45nm", FLOAT32, FLOAT32).value, 3)
    4.6
    >>> round(mac("7nm", int8, int8).value, 3)
    0.1
    """
    products = multiply(node, first), multiply(node, second)
    if products[0] is None or products[1] is None:
        return None
    accumulator = "int32" if first.integer and second.integer else "float32"
    return (
        products[0]
        .plus(products[1])
        .times(0.5)
        .plus(_table()[node, "add", accumulator])
    )


def multiply(node: Node, number: Number) -> Energy | None:
    """Returns the energy of one multiplication of a kind, None if unknown."""
    table = _table()
    if (found := table.get((node, "mul", number.name))) is not None:
        return found
    if number.name == "float6":  # between its neighbours
        four, eight = (table[node, "mul", name] for name in ("float4", "float8"))
        return Energy(*(math.sqrt(a * b) for a, b in zip(four, eight, strict=True)))
    if not number.integer:
        return None
    eight, wide = table[node, "mul", "int8"], table[node, "mul", "int32"]
    if number.bits < 8:
        return eight.times((number.bits / 8) ** 2)
    share = math.log2(number.bits / 8) / 2
    return Energy(*(a * (b / a) ** share for a, b in zip(eight, wide, strict=True)))


def elementwise(node: Node) -> Energy:
    """Returns the energy of one float32 operation that is no product.

    Between an addition and a multiplication; the value is their mean, which is ours.
    """
    table = _table()
    add, mul = (table[node, op, "float32"].value for op in ("add", "mul"))
    return Energy((add + mul) / 2, add, mul)


def memory(node: Node) -> Energy:
    """Returns the energy of one bit from or to the memory of the accelerator.

    For 7 nm HBM2, 4 to 7 pJ; the value of 5 is ours. For 45 nm DRAM of its time.

    >>> memory("7nm")
    Energy(value=5.0, low=4.0, high=7.0)
    """
    if node == "7nm":
        return Energy(5.0, 4.0, 7.0)
    return _table()["45nm", "dram", "64b"].times(1 / 64)


def rechecked(node: Node, number: Number) -> bool:
    """Returns whether the entry of a kind of number was checked against its source."""
    return "recalled" not in _statuses().get((node, "mul", number.name), "")


@functools.cache
def _table() -> dict[tuple[str, str, str], Energy]:
    return {
        (row["process_node"], row["op"], row["dtype"]): _band(row["pJ"])
        for row in _rows()
    }


@functools.cache
def _statuses() -> dict[tuple[str, str, str], str]:
    return {
        (row["process_node"], row["op"], row["dtype"]): row["status"] for row in _rows()
    }


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    with (DATA / "op_energy.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def _band(text: str) -> Energy:
    low, _, high = text.partition("-")
    ends = float(low), float(high or low)
    return Energy(sum(ends) / 2, *ends)
