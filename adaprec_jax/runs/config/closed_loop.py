"""Schedules that depend on what is measured in training."""

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import (
    Bits,
    Count,
    Decay,
    FormatName,
    Fraction,
    NotNegative,
    Positive,
    Role,
    Seed,
    Settings,
)
from adaprec_jax.runs.config.bounds import (
    HighLow,
    IntegerBits,
    Loop,
    check_bounds,
    check_not_wider,
    check_start,
    check_thresholds,
)
from adaprec_jax.runs.config.formats import (
    BFLOAT16,
    FLOAT4,
    FLOAT8,
    SharedFormats,
)

WordBits: TypeAlias = Annotated[int, Field(ge=1, le=24)]


class TwoThreshold(IntegerBits):
    """A controller per layer that keeps a signal between two thresholds.

    Source: ours, after the rule of Huang et al. 2020, arXiv:2012.12775.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["two_threshold"] = "two_threshold"
    start_bits: Bits = Field(default=8, description="before the first decision")
    low: Fraction = Field(default=0.01, description="signal that takes a bit")
    high: Fraction = Field(default=0.05, description="signal that adds a bit")
    patience: Count = Field(default=1, description="checks in a row that must agree")
    every: Count = Field(default=10, description="steps between checks")
    signal: Literal["underflow_fraction", "saturation_fraction"] = Field(
        default="underflow_fraction", description="what is kept between them"
    )
    roles: tuple[Role, ...] = Field(
        default=("activation", "weight"),
        min_length=1,
        description="tensors whose largest signal counts",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "TwoThreshold":
        check_start(self.min_bits, self.start_bits, self.max_bits)
        check_thresholds(self.low, self.high)
        if (self.low, self.high) == (0, 1):
            raise ValueError(
                "low (0) and high (1) are the ends of a share, so that no signal is "
                "below the one or above the other."
            )
        return self


class MoR(Settings):
    """A low format for each tensor that it errs little in, a high one for the others.

    Source: NVIDIA 2025, arXiv:2512.22804.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["mor"] = "mor"
    low: SharedFormats = Field(default=FLOAT8, description="where it errs little")
    high: SharedFormats = Field(default=BFLOAT16, description="elsewhere")
    threshold: Positive = Field(
        default=0.03, description="largest relative error in the low format"
    )
    every: Count = Field(default=10, description="steps between looks")

    @model_validator(mode="after")
    def _low_is_not_wider(self) -> "MoR":
        for role in ("activation", "weight", "gradient"):
            check_not_wider(getattr(self.low, role), getattr(self.high, role), role)
        return self


class Snip(Settings):
    """A share of all products in a low format: those that lose the least by it.

    Source: SNIP, 2026, arXiv:2602.01410.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["snip"] = "snip"
    low: FormatName = Field(default="float4_e2m1fn", description="of the share")
    high: FormatName = Field(default="float8_e4m3fn", description="of the rest")
    share: Fraction = Field(
        default=0.75, description="of the multiply-accumulates, at least, in low"
    )
    every: Count = Field(default=100, description="steps between solutions")

    @model_validator(mode="after")
    def _low_is_not_wider(self) -> "Snip":
        check_not_wider(self.low, self.high)
        return self


class AMPA(IntegerBits):
    """Bits under a budget, to the layers that rounding hurts most, from the others.

    Source: Ding et al. 2024, "AMPA", ICML 2024.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["ampa"] = "ampa"
    start_bits: Bits = Field(default=5, description="before the first decision")
    mean_bits: Annotated[float, Field(ge=2, le=16)] = Field(
        default=5.0, description="the budget: mean weighted by multiply-accumulates"
    )
    moves: Count = Field(default=1, description="layers raised, and lowered, at once")
    every: Count = Field(default=100, description="steps between decisions")

    @model_validator(mode="after")
    def _in_order(self) -> "AMPA":
        check_bounds(self.min_bits, self.max_bits)
        if not self.min_bits <= self.start_bits <= self.mean_bits <= self.max_bits:
            raise ValueError(
                f"start_bits ({self.start_bits}) and mean_bits ({self.mean_bits}) must "
                f"rise from min_bits to max_bits ({self.min_bits} to {self.max_bits})."
            )
        return self


class Sqrt3(Settings):
    """A higher backward precision once the gradient sinks into its rounding noise.

    Source: Chmiel et al. 2025, "FP4 All the Way", arXiv:2505.19115.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["sqrt3"] = "sqrt3"
    low: SharedFormats = Field(
        default=FLOAT4, description="before the switch, and of forward after it"
    )
    high: SharedFormats = Field(
        default=BFLOAT16, description="of the backward products after the switch"
    )
    per: Literal["run", "layer"] = Field(
        default="run", description="what switches as one"
    )
    multiple: Positive = Field(
        default=math.sqrt(3), description="of the noise, that the gradient stays above"
    )
    decay: Decay = Field(default=0.9, description="of the moving averages")
    patience: Count = Field(default=3, description="checks in a row that must agree")
    every: Count = Field(default=10, description="steps between checks")


class AdaptKummer(Settings):
    """Fixed-point words per layer, short by the weights, longer by the gradients.

    Source: Kummer et al. 2021, "AdaPT", arXiv:2107.13490.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["adapt_kummer"] = "adapt_kummer"
    start_word: WordBits = Field(default=16, description="before the first decision")
    start_fraction: Annotated[int, Field(ge=0, le=24)] = Field(
        default=8, description="bits of the first words behind the point"
    )
    max_bits: WordBits = Field(default=24, description="most, of a word")
    buffer_bits: Annotated[int, Field(ge=0, le=23)] = Field(
        default=8, description="before the fraction, after a decision"
    )
    gradient_bits: Bits = Field(default=8, description="of output gradients, constant")
    min_lookback: Count = Field(default=25, description="fewest steps of a decision")
    max_lookback: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=100, description="most steps of a decision"
    )
    lookback_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share of a new lookback in the one in force"
    )
    min_resolution: Count = Field(default=50, description="fewest bins of a histogram")
    max_resolution: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=150, description="most bins, and at first"
    )
    divergence: NotNegative = Field(
        default=0.01, description="of histograms, that a shorter word may cause"
    )
    most_weights: Count = Field(
        default=16_384, description="of a layer, in a histogram; evenly spaced"
    )
    seed: Seed = Field(default=0, description="of the noise of stochastic rounding")
    quirks: bool = Field(default=False, description="as the published code decides")

    @model_validator(mode="after")
    def _in_order(self) -> "AdaptKummer":
        if not self.start_fraction <= self.start_word <= self.max_bits:
            raise ValueError(
                f"start_fraction ({self.start_fraction}), start_word "
                f"({self.start_word}) and max_bits ({self.max_bits}) must rise."
            )
        if self.buffer_bits >= self.max_bits:
            raise ValueError(
                f"buffer_bits ({self.buffer_bits}) must be below max_bits "
                f"({self.max_bits})."
            )
        for name in ("lookback", "resolution"):
            low, high = (getattr(self, f"{end}_{name}") for end in ("min", "max"))
            if low > high:
                raise ValueError(
                    f"min_{name} ({low}) must not be above max_{name} ({high})."
                )
        return self


class LDP(IntegerBits):
    """Bits of each layer that are learned by gradient descent, under a cost.

    Source: LDP, 2022, arXiv:2203.07713.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["ldp"] = "ldp"
    start_bits: Bits = Field(default=8, description="before the first look")
    target_bits: Annotated[float, Field(ge=2, le=16)] = Field(
        default=5.0, description="mean that the penalty draws to"
    )
    penalty: NotNegative = Field(
        default=1.0, description="strength of it, in units of the loss per square bit"
    )
    rate: Positive = Field(default=1.0, description="learning rate of the bits")
    largest_move: Positive = Field(default=0.25, description="bits in one look")
    every: Count = Field(default=10, description="steps between looks")

    @model_validator(mode="after")
    def _in_order(self) -> "LDP":
        low, high = self.min_bits, self.max_bits
        if low >= high:
            raise ValueError(f"min_bits ({low}) must be below max_bits ({high}).")
        for name in ("start_bits", "target_bits"):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) must lie in min_bits to max_bits "
                    f"({low} to {high})."
                )
        return self


class AdaptiveLossScale(Settings):
    """A scale for the float16 gradient of each layer, so that little of it underflows.

    Source: Zhao, Vogel and Ahmed 2020, IJCAI 2020.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["adaptive_loss_scale"] = "adaptive_loss_scale"
    forward: FormatName = Field(
        default="float16", description="of activations and weights"
    )
    underflow: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-3, description="share of the products that may underflow"
    )
    largest_scale: Annotated[float, Field(ge=1, le=2.0**14)] = Field(
        default=16.0, description="of one layer"
    )
    largest_product: Annotated[float, Field(ge=1, le=2.0**14)] = Field(
        default=1024.0, description="of the scales along the backward pass"
    )
    every: Count = Field(default=10, description="steps between looks")


class PFQ(Settings):
    """Bits that rise by stages, each when the training loss levels off.

    Source: Fu et al. 2020 (FracTrain), arXiv:2012.13113.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["pfq"] = "pfq"
    forward_bits: tuple[Bits, ...] = Field(
        default=(3, 4, 6, 8),
        min_length=1,
        description="of activations and weights, by stage",
    )
    gradient_bits: tuple[Bits, ...] = Field(
        default=(6, 6, 8, 8), description="of gradients, by stage"
    )
    every: Count = Field(default=20, description="steps of an epoch")
    epsilon: Positive = Field(
        default=0.15, description="largest change of the loss that counts as none"
    )
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.4, description="factor of epsilon at each switch but the last"
    )
    window: Annotated[int, Field(ge=2, le=10_000)] = Field(
        default=5, description="epochs whose losses are compared"
    )
    scale_epochs: Count = Field(
        default=10, description="first epochs, in whose mean loss changes are measured"
    )

    @model_validator(mode="after")
    def _same_stages(self) -> "PFQ":
        if len(self.forward_bits) != len(self.gradient_bits):
            raise ValueError(
                "forward_bits and gradient_bits must have as many stages, got "
                f"{len(self.forward_bits)} and {len(self.gradient_bits)}."
            )
        return self


class MuPPET(Settings):
    """Bits of the whole network that rise as the diversity of gradients falls.

    Source: Rajagopal et al. 2020, arXiv:2006.09049.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["muppet"] = "muppet"
    bits: tuple[Bits, ...] = Field(
        default=(8, 12, 14, 16),
        min_length=1,
        description="of all operands, before float32",
    )
    every: Count = Field(default=10, description="steps of an epoch")
    resolution: Annotated[int, Field(ge=2, lt=2**31)] = Field(
        default=3, description="epochs from one look at the diversity to the next"
    )
    violations: Count = Field(
        default=2, description="looks above the threshold that add bits"
    )
    alpha: Annotated[float, Field(ge=1, le=1e6)] = Field(
        default=1.0, description="what the threshold approaches"
    )
    beta: NotNegative = Field(
        default=1.5, description="how far above alpha the threshold begins"
    )
    decay: NotNegative = Field(
        default=0.1, description="how fast it falls towards alpha, by epoch"
    )

    @model_validator(mode="after")
    def _rising(self) -> "MuPPET":
        if any(a >= b for a, b in pairwise(self.bits)):
            raise ValueError(f"bits must rise, got {list(self.bits)}.")
        return self


class QEM(Settings):
    """8, 16 or 24 bits for each tensor, by how far rounding moves its mean magnitude.

    Source: Zhang et al. 2020, arXiv:1911.00361.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["qem"] = "qem"
    epoch: Count = Field(default=100, description="steps, the longest without a check")
    every: Count = Field(default=1, description="steps from one look to the next")
    warmup_fraction: Fraction = Field(
        default=0.01, description="of the first epoch, in which every look checks"
    )
    threshold: Positive = Field(
        default=0.03, description="largest error measure that needs no more bits"
    )
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.04, description="weight of the newest scale in its moving average"
    )
    beta: Positive = Field(default=0.1, description="numerator of the interval")
    gamma: NotNegative = Field(default=2.0, description="taken off the interval")
    delta: NotNegative = Field(
        default=100.0, description="weight of the squared error measure"
    )


class APT(Settings):
    """Bits of each layer's weights, by how many grid steps its gradient is long.

    Source: Huang et al. 2020, arXiv:2012.12775.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["apt"] = "apt"
    min_bits: Bits = Field(default=3, description="fewest, of weights")
    max_bits: Bits = Field(default=8, description="most, of weights")
    start_bits: Bits = Field(default=6, description="before the first look")
    activation_bits: Bits = Field(default=8, description="of activations, constant")
    gradient_bits: Bits = Field(default=8, description="of gradients, constant")
    low: NotNegative = Field(
        default=0.05, description="mean gradient in grid steps that adds a bit"
    )
    high: Positive = Field(default=0.2, description="the same, that takes a bit")
    every: Count = Field(default=10, description="steps between looks")
    decay: Decay = Field(default=0.5, description="of the moving average")

    @model_validator(mode="after")
    def _in_order(self) -> "APT":
        check_bounds(self.min_bits, self.max_bits)
        check_start(self.min_bits, self.start_bits, self.max_bits)
        check_thresholds(self.low, self.high)
        return self


class Accordion(HighLow):
    """High precision for a layer while the norm of its gradients is changing.

    Source: Agarwal et al. 2021, arXiv:2010.16248.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["accordion"] = "accordion"
    window: Count = Field(default=20, description="steps whose gradients are added up")
    threshold: Positive = Field(
        default=0.5, description="relative change of the norm that asks for high"
    )
    decays: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(), description="steps at which the learning rate falls"
    )


class Maturity(HighLow):
    """High precision for layers whose relative updates still change, then low.

    Source: ours.
    """

    loop: ClassVar[Loop] = "closed"
    kind: Literal["maturity"] = "maturity"
    window: Count = Field(default=10, description="looks between two comparisons")
    every: Count = Field(default=2, description="steps between looks")
    decay: Decay = Field(default=0.9, description="of the moving average")
    tolerance: NotNegative = Field(
        default=0.1, description="largest relative change that counts as settled"
    )
    patience: Count = Field(
        default=2, description="comparisons in a row that make a layer mature"
    )
    reverse: bool = Field(
        default=False, description="whether mature layers have the high precision"
    )
