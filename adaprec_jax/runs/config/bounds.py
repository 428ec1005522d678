"""What schedules share: bits between bounds, formats that go together."""

from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax import formats
from adaprec_jax.runs import format_names
from adaprec_jax.runs.config.base import Bits, Settings
from adaprec_jax.runs.config.formats import INT4, INT8, Formats

# Whether a schedule depends on the step alone, or on what is measured in training;
# "either": its parts or its target decide.
Loop: TypeAlias = Literal["open", "closed", "either"]


class IntegerBits(Settings):
    """Integers between two bounds, and gradients of constant bits."""

    min_bits: Bits = Field(default=3, description="fewest, of activations and weights")
    max_bits: Bits = Field(default=8, description="most, of activations and weights")
    gradient_bits: Bits = Field(default=8, description="of gradients, constant")

    @model_validator(mode="after")
    def _min_to_max(self) -> "IntegerBits":
        check_bounds(self.min_bits, self.max_bits)
        return self


class HighLow(Settings):
    """Two precisions, of which each layer has one."""

    high: Formats = Field(default=INT8, description="formats of the one")
    low: Formats = Field(default=INT4, description="formats of the other")

    @model_validator(mode="after")
    def _alike(self) -> "HighLow":
        check_alike(self.high, self.low)
        return self


def check_bounds(min_bits: int, max_bits: int) -> None:
    """Refuses bounds that leave nothing between them."""
    if min_bits > max_bits:
        raise ValueError(
            f"min_bits ({min_bits}) must not be above max_bits ({max_bits})."
        )


def check_start(min_bits: int, start_bits: int, max_bits: int) -> None:
    """Refuses to begin with bits that are out of the bounds."""
    if not min_bits <= start_bits <= max_bits:
        raise ValueError(
            f"start_bits ({start_bits}) must lie in min_bits to max_bits "
            f"({min_bits} to {max_bits})."
        )


def check_thresholds(low: float, high: float) -> None:
    """Refuses thresholds that no signal lies between."""
    if low >= high:
        raise ValueError(f"low ({low}) must be below high ({high}).")


def check_not_wider(low: str, high: str, role: str = "") -> None:
    """Refuses a low format of more bits, which nobody can want where it errs less."""
    bits = [int(formats.bits(format_names.parse(name))) for name in (low, high)]
    if bits[0] > bits[1]:
        of = f".{role}" if role else ""
        raise ValueError(
            f"low{of} ({low}) must not have more bits than high{of} ({high})."
        )


def check_alike(*formats: Formats) -> None:
    """Refuses formats of both kinds, which no one schedule can choose between."""
    kinds = [choice.kind for choice in formats]
    if len(set(kinds)) > 1:
        raise ValueError(f"kind must be the same in all precisions, got {kinds}.")
