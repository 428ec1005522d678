"""How it is trained: optimizer, learning rate, loss scaling."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import (
    Bits,
    Count,
    Decay,
    FormatName,
    Fraction,
    LossScale,
    NotNegative,
    Positive,
    Rounding,
    Settings,
)

Call: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]


class ConstantRate(Settings):
    """The same learning rate at every step."""

    kind: Literal["constant"] = "constant"
    peak: Positive = Field(description="learning rate")


class _Falling(Settings):
    peak: Positive = Field(description="highest learning rate")
    final: NotNegative = Field(default=0.0, description="learning rate at the end")

    @model_validator(mode="after")
    def _peak_is_highest(self) -> "_Falling":
        if self.final > self.peak:
            raise ValueError(
                f"final ({self.final}) must not be above peak ({self.peak})."
            )
        return self


class Cosine(_Falling):
    """A learning rate that falls from `peak` to `final` along half a cosine."""

    kind: Literal["cosine"] = "cosine"


class WarmupCosine(_Falling):
    """A linear rise from 0 to `peak`, then half a cosine to `final`."""

    kind: Literal["warmup_cosine"] = "warmup_cosine"
    warmup_steps: Count = Field(description="applied steps of the rise")


class WarmupStableDecay(_Falling):
    """A linear rise from 0 to `peak`, `peak`, then a fall to `final` at the end.

    A run made longer has `peak` for longer, and falls over as many steps as before.
    """

    kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="applied steps of the rise"
    )
    decay_steps: Count = Field(description="applied steps of the fall")
    fall: Literal["linear", "cosine"] = Field(
        default="linear", description="a line, or half a cosine"
    )


LearningRate: TypeAlias = Annotated[
    ConstantRate | Cosine | WarmupCosine | WarmupStableDecay,
    Field(discriminator="kind"),
]


def decay_start(rate: LearningRate, steps: int) -> int | None:
    """Returns the step at which a learning rate that was steady begins to fall.

    None if it never does, or falls from the first step on.

    Args:
        rate: The settings.
        steps: Length of the run.

    >>> decay_start(WarmupStableDecay(peak=0.1, decay_steps=20), 100)
    80
    """
    match rate:
        case WarmupStableDecay(decay_steps=decay):
            return steps - decay if steps > decay else None
        case WarmupCosine(warmup_steps=warmup):
            return warmup
    return None


class Moment(Settings):
    """How an optimizer's moment is stored."""

    format: FormatName = "float8_e4m3fn"
    group: Count | None = Field(
        default=None, description="neighbours that share a scale; none is the tensor"
    )
    expand: bool = Field(
        default=False, description="raise the range to that of the format first"
    )
    rounding: Rounding = "nearest_even"


class FP8LMMoments(Settings):
    """The first in float8_e4m3fn, the second in scaled float16, arXiv:2310.18313."""

    kind: Literal["fp8_lm"] = "fp8_lm"


class COATMoments(Settings):
    """Both in float8_e4m3fn with an expanded range, arXiv:2410.19313."""

    kind: Literal["coat"] = "coat"
    group: Count = Field(default=128, description="neighbours that share a scale")


class OwnMoments(Settings):
    """Each in a format of its own, at a scale that is a power of two."""

    kind: Literal["own"] = "own"
    first: Moment = Field(
        default=Moment(format="float32"), description="the mean of the gradients"
    )
    second: Moment = Field(
        default=Moment(format="float32"), description="the mean of their squares"
    )


Moments: TypeAlias = Annotated[
    FP8LMMoments | COATMoments | OwnMoments, Field(discriminator="kind")
]


class Communication(Settings):
    """Gradients rounded as for a narrow all-reduce, once, arXiv:2310.18313."""

    format: FormatName = "float8_e4m3fn"
    threshold: Fraction = Field(
        default=1e-5, description="saturated share above which the factor is halved"
    )
    window: Count = Field(default=1000, description="steps in which it doubles")


class OscillationReset(Settings):
    """Oscillating weights are set to their bin's centre, arXiv:2510.27527."""

    format: FormatName = Field(description="that the model rounds its weights to")
    start: Call = Field(description="applied steps before the first window")
    every: Count = Field(default=200, description="applied steps between windows")
    window: Count = Field(default=50, description="applied steps that are watched")
    threshold: Positive = Field(
        default=8.0, description="way of the rounded weight for that of the weight"
    )

    @model_validator(mode="after")
    def _windows_are_apart(self) -> "OscillationReset":
        if self.window > self.every:
            raise ValueError(
                f"window ({self.window}) must not be above every ({self.every})."
            )
        return self


class Hysteresis(Settings):
    """Weights rounded with memory; the optimizer keeps float32 masters."""

    format: FormatName = Field(description="of the weights")


class InPlace(Settings):
    """Parameters kept and updated in a format, without a master, arXiv:1710.03740."""

    format: FormatName = Field(default="float16", description="of the parameters")


class Averaging(Settings):
    """The mean of the weights of the tail, tested beside the last, arXiv:1904.11943."""

    start: Call = Field(description="applied steps before the first weight that counts")
    every: Count = Field(default=1, description="applied steps between two of them")


class _Optimizer(Settings):
    learning_rate: LearningRate = Field(description="reads applied, not skipped steps")
    clip_norm: Positive | None = Field(
        default=None, description="largest global norm of the unscaled gradient"
    )
    communication: Communication | None = Field(
        default=None, description="format of the reduced gradient"
    )
    oscillation_reset: OscillationReset | None = Field(
        default=None, description="of the matrices"
    )
    hysteresis: Hysteresis | None = Field(
        default=None, description="of the matrices, which the model gets rounded"
    )
    averaging: Averaging | None = Field(
        default=None, description="of the weights that the model uses"
    )
    # Left out where it is none: runs of before have no such setting in their id.
    in_place: InPlace | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="format in which all parameters are updated, without a master",
    )

    @model_validator(mode="after")
    def _one_of_master_and_none(self) -> "_Optimizer":
        if self.in_place and self.hysteresis:
            raise ValueError("in_place has no master, which hysteresis needs.")
        return self


class _AdamLike(_Optimizer):
    moments: Moments | None = Field(default=None, description="formats of both moments")


class SGD(_Optimizer):
    """Gradient descent."""

    kind: Literal["sgd"] = "sgd"
    weight_decay: NotNegative = Field(default=0.0, description="added to the gradient")


class Momentum(_Optimizer):
    """Gradient descent with momentum."""

    kind: Literal["momentum"] = "momentum"
    decay: Decay = Field(default=0.9, description="of the accumulated gradient")
    nesterov: bool = Field(default=False, description="look ahead")
    weight_decay: NotNegative = Field(default=0.0, description="added to the gradient")


class Adam(_AdamLike):
    """Adam, arXiv:1412.6980."""

    kind: Literal["adam"] = "adam"
    b1: Decay = Field(default=0.9, description="decay of the first moment")
    b2: Decay = Field(default=0.999, description="decay of the second moment")
    eps: Positive = Field(default=1e-8, description="added to the root")


class AdamW(_AdamLike):
    """Adam with decoupled weight decay, arXiv:1711.05101."""

    kind: Literal["adamw"] = "adamw"
    b1: Decay = Field(default=0.9, description="decay of the first moment")
    b2: Decay = Field(default=0.999, description="decay of the second moment")
    eps: Positive = Field(default=1e-8, description="added to the root")
    weight_decay: NotNegative = Field(
        default=1e-4, description="times learning rate and parameter"
    )


class WAGE(_Optimizer):
    """Whole steps on a grid, of gradients by their size, at random, arXiv:1802.04680.

    The learning rate counts units of the grid: WAGE's code has 8, 1 and 1/8.
    """

    kind: Literal["wage"] = "wage"
    bits: Bits = Field(default=8, description="of the grid")
    weight_bits: Bits | None = Field(
        default=None, description="of weights scaled by wage, whose alpha it divides by"
    )
    on_grid: bool = Field(
        default=True, description="keep the weights on the grid and within its bound"
    )

    @model_validator(mode="after")
    def _rate_is_within_the_grid(self) -> "WAGE":
        if self.learning_rate.peak > 2**16:
            raise ValueError(
                f"learning_rate.peak ({self.learning_rate.peak:g}) must not be above "
                "2^16 units of the grid."
            )
        return self


Optimizer: TypeAlias = Annotated[
    SGD | Momentum | Adam | AdamW | WAGE, Field(discriminator="kind")
]


class NoLossScaling(Settings):
    """The loss as it is; a gradient that is not finite is skipped."""

    kind: Literal["none"] = "none"
    max_consecutive_skips: Count = Field(
        default=10, description="skipped steps in a row that mean divergence"
    )


class StaticLossScaling(Settings):
    """The loss times a constant."""

    kind: Literal["static"] = "static"
    scale: LossScale = Field(default=2.0**15, description="factor of the loss")
    max_consecutive_skips: Count = Field(
        default=10, description="skipped steps in a row that mean divergence"
    )


class DynamicLossScaling(Settings):
    """A factor that grows until gradients overflow, arXiv:1710.03740."""

    kind: Literal["dynamic"] = "dynamic"
    init_scale: LossScale = Field(
        default=2.0**15, description="first factor of the loss"
    )
    growth_interval: Count = Field(
        default=2000, description="finite steps in a row after which it grows"
    )
    growth_factor: Annotated[float, Field(gt=1)] = Field(
        default=2.0, description="what it is multiplied by then"
    )
    backoff_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="what it is multiplied by after a skipped step"
    )
    min_scale: LossScale = Field(default=1.0, description="floor")
    max_scale: LossScale = Field(default=2.0**24, description="ceiling")
    max_consecutive_skips: Count = Field(
        default=10, description="skipped steps in a row, at the floor: divergence"
    )

    @model_validator(mode="after")
    def _between_floor_and_ceiling(self) -> "DynamicLossScaling":
        if not self.min_scale <= self.init_scale <= self.max_scale:
            raise ValueError(
                "min_scale <= init_scale <= max_scale must hold, got "
                f"{self.min_scale}, {self.init_scale}, {self.max_scale}."
            )
        return self


LossScaling: TypeAlias = Annotated[
    NoLossScaling | StaticLossScaling | DynamicLossScaling, Field(discriminator="kind")
]
