"""A number that says what it is: with unit, band, source, and how it was come by."""

import dataclasses
from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["measured", "tdp_estimate", "modelled"]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number of one unit and one kind.

    What is not known is None in the place of a quantity, never zero.

    Attributes:
        value: The number.
        unit: Its unit, such as "J".
        low: The lowest value that its source allows.
        high: The highest.
        kind: "measured" by a meter, a "tdp_estimate" (a time at a chip's rated power),
            or "modelled" from tables.
        source: Where the number comes from.

    Raises:
        ValueError: The kind is unknown, or not low <= value <= high.

    >>> Quantity(2.0, "J", 1.0, 3.0, "modelled", "a table").times(10).high
    30.0
    """

    value: float
    unit: str
    low: float
    high: float
    kind: Kind
    source: str

    def __post_init__(self) -> None:
        if self.kind not in (kinds := get_args(Kind)):
            raise ValueError(f"kind must be one of {', '.join(kinds)}: {self.kind!r}.")
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"A quantity needs low <= value <= high, got {self.low}, {self.value} "
                f"and {self.high} {self.unit}."
            )

    def __add__(self, other: "Quantity") -> "Quantity":
        """Adds two quantities of one unit and kind.

        Raises:
            ValueError: The units or the kinds differ.
        """
        self.check_alike(other)
        sources = (self.source, other.source)
        return Quantity(
            self.value + other.value,
            self.unit,
            self.low + other.low,
            self.high + other.high,
            self.kind,
            "; ".join(dict.fromkeys(sources)),
        )

    def times(self, factor: int | float, unit: str | None = None) -> "Quantity":
        """Returns the quantity times a number of at least 0, in another unit if given.

        Raises:
            ValueError: The factor is negative.
        """
        if not factor >= 0:
            raise ValueError(f"A quantity is multiplied by 0 or more, got {factor}.")
        scaled = (each * factor for each in (self.value, self.low, self.high))
        value, low, high = scaled
        unit = self.unit if unit is None else unit
        return dataclasses.replace(self, value=value, low=low, high=high, unit=unit)

    def check_alike(self, other: "Quantity") -> None:
        """Refuses a quantity that cannot be added to this one, or set beside it.

        Raises:
            ValueError: The units or the kinds differ.
        """
        if self.unit != other.unit:
            raise ValueError(f"{self.unit} and {other.unit} cannot be added.")
        if self.kind != other.kind:
            raise ValueError(
                f"A number that is {self.kind} and one that is {other.kind} cannot be "
                "added or compared."
            )


@dataclasses.dataclass(frozen=True)
class Saving:
    """Which share of a baseline is saved, with its band; negative if it costs more."""

    value: float
    low: float
    high: float


def total(quantities: Iterable[Quantity | None]) -> Quantity | None:
    """Returns the sum; None if there is none, or one of them is not known.

    Raises:
        ValueError: Units or kinds differ.

    >>> total([Quantity(1.0, "J", 1.0, 1.0, "measured", "a meter"), None]) is None
    True
    """
    found: Quantity | None = None
    for each in quantities:
        if each is None:
            return None
        found = each if found is None else found + each
    return found


def saving(base: Quantity | None, other: Quantity | None) -> Saving | None:
    """Returns the share of `base` that `other` saves, None if either is not known.

    Both come from one table, whose constants err for both alike: the band is that of
    the savings at its low end, its value and its high end.

    Raises:
        ValueError: Units or kinds differ.

    >>> base = Quantity(4.0, "J", 2.0, 8.0, "modelled", "t")
    >>> saving(base, Quantity(2.0, "J", 1.5, 3.0, "modelled", "t"))
    Saving(value=0.5, low=0.25, high=0.625)
    """
    if base is None or other is None:
        return None
    base.check_alike(other)
    ends = ((base.low, other.low), (base.value, other.value), (base.high, other.high))
    if any(b <= 0 for b, _ in ends):
        return None
    shares = [1 - o / b for b, o in ends]
    return Saving(shares[1], min(shares), max(shares))
