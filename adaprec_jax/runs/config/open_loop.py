"""Schedules that depend on the step alone."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import (
    Count,
    Seed,
    Settings,
)
from adaprec_jax.runs.config.bounds import (
    IntegerBits,
    Loop,
    check_alike,
)
from adaprec_jax.runs.config.formats import (
    BFLOAT16,
    INT3,
    INT4,
    INT6,
    INT8,
    Formats,
    SharedFormats,
)

Steps: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]


class Float32(Settings):
    """No rounding at all.

    Source: common practice.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["float32"] = "float32"


class Constant(Settings):
    """The same formats at every step.

    Source: common practice.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["constant"] = "constant"
    precision: Formats = Field(
        default=SharedFormats(), description="formats by operand", examples=[INT8]
    )


class Piecewise(Settings):
    """One precision up to each boundary, and one after the last.

    Source: common practice.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["piecewise"] = "piecewise"
    boundaries: tuple[Count, ...] = Field(
        min_length=1,
        description="steps at which the next precision begins",
        examples=[(200, 400)],
    )
    precisions: tuple[Formats, ...] = Field(
        description="one more than boundaries", examples=[(INT4, INT6, INT8)]
    )

    @model_validator(mode="after")
    def _one_precision_per_piece(self) -> "Piecewise":
        if any(left >= right for left, right in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must rise, got {list(self.boundaries)}.")
        if len(self.precisions) != len(self.boundaries) + 1:
            raise ValueError(
                "precisions must be one more than boundaries, got "
                f"{len(self.precisions)} and {len(self.boundaries)}."
            )
        check_alike(*self.precisions)
        return self


class Warmup(Settings):
    """A high precision at first, then a low one.

    Source: common practice.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["warmup"] = "warmup"
    warmup_steps: Count = Field(
        description="steps in the high precision", examples=[100]
    )
    high: Formats = Field(default=BFLOAT16, description="formats of the warm-up")
    low: Formats = Field(
        default=SharedFormats(), description="formats after it", examples=[INT8]
    )

    @model_validator(mode="after")
    def _alike(self) -> "Warmup":
        check_alike(self.high, self.low)
        return self


class LateSwitch(Settings):
    """A low precision, then a high one to the end.

    Source: NVIDIA 2025, arXiv:2509.25149.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["late_switch"] = "late_switch"
    at: Literal["fraction", "decay"] = Field(
        default="fraction",
        description="or where the learning rate begins to fall",
    )
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.82, description="of the run, in the low precision; unless at decay"
    )
    products: Literal["forward", "all"] = Field(
        default="all", description="which products switch", examples=["all", "forward"]
    )
    low: Formats = Field(
        default=SharedFormats(),
        description="formats before the switch",
        examples=[INT4],
    )
    high: Formats = Field(default=BFLOAT16, description="formats after it")

    @model_validator(mode="after")
    def _alike(self) -> "LateSwitch":
        if self.products == "all":
            check_alike(self.low, self.high)
        return self


class Deficit(Settings):
    """A low precision for a while, a high one before and after it.

    Source: Wolfe and Kyrillidis 2024, arXiv:2403.02243.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["deficit"] = "deficit"
    start: Steps = Field(
        default=0, description="first step of the low precision", examples=[0, 200]
    )
    length: Steps = Field(
        description="steps in the low precision; 0 is the control", examples=[200]
    )
    low: Formats = Field(default=INT3, description="formats of the deficit")
    high: Formats = Field(default=INT8, description="formats before and after it")

    @model_validator(mode="after")
    def _alike(self) -> "Deficit":
        check_alike(self.low, self.high)
        return self


class CPT(IntegerBits):
    """Cyclic precision training: bits along a cosine.

    Source: Fu et al. 2021, arXiv:2101.09868.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["cpt"] = "cpt"
    cycles: Count = Field(default=8, description="rises from min_bits to max_bits")


class Cyclic(IntegerBits):
    """Bits that rise and fall in cycles of a named shape.

    Source: Wolfe and Kyrillidis 2024, arXiv:2403.02243.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["cyclic"] = "cyclic"
    shape: Literal["CR", "CT", "LR", "LT", "ER", "ETH", "ETV", "RR", "RTH", "RTV"] = (
        Field(
            description="profile, then R: repeated, or T: triangular",
            examples=["CR", "CT", "LR", "LT", "ER", "ETH", "ETV", "RR", "RTH", "RTV"],
        )
    )
    cycles: Count = Field(default=8, description="even for a triangular one")

    @model_validator(mode="after")
    def _even(self) -> "Cyclic":
        if self.shape[1] == "T" and self.cycles % 2:
            raise ValueError(f"cycles ({self.cycles}) must be even for {self.shape}.")
        return self


class ShuffledCPT(IntegerBits):
    """The bits of `cpt` in random order: the same cost, without the cycle.

    Source: ours, a control for arXiv:2101.09868.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["shuffled_cpt"] = "shuffled_cpt"
    cycles: Count = Field(default=8, description="in the bits before the shuffle")
    shuffle_seed: Seed = Field(default=0, description="of the order")
