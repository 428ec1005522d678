"""Scaling recipes: how tensors are brought into the range of their format."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import (
    Count,
    FormatName,
    Imported,
    Rounding,
    Settings,
)


class _Rounding(Settings):
    rounding: Rounding = "nearest_even"
    quantizer: Imported | None = Field(
        default=None, description="of one's own, in the place of rounding"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "_Rounding":
        if self.quantizer and self.rounding != "nearest_even":
            raise ValueError(
                f"rounding ({self.rounding}) has no effect beside a quantizer."
            )
        return self


class NoScaling(_Rounding):
    """Rounds to the format's own range."""

    kind: Literal["none"] = "none"


class CurrentScaling(_Rounding):
    """Scales a tensor by its present largest magnitude."""

    kind: Literal["current"] = "current"
    power_of_two: bool = Field(default=True, description="round the scale up to 2^k")


class DelayedScaling(_Rounding):
    """Scales a tensor by its largest magnitude of the last steps."""

    kind: Literal["delayed"] = "delayed"
    history: Count = Field(default=1024, description="steps that are remembered")
    margin: int = Field(
        default=0, ge=-64, le=64, description="powers of two left free above"
    )
    amax: Literal["max", "most_recent"] = Field(
        default="max", description="which of the history sets the scale"
    )


class PerChannelScaling(_Rounding):
    """Scales each channel (or row) by its present largest magnitude."""

    kind: Literal["per_channel"] = "per_channel"
    power_of_two: bool = Field(default=True, description="round the scale up to 2^k")


class BlockScaling(_Rounding):
    """Scales each block along what a product sums over, arXiv:2412.19437."""

    kind: Literal["block"] = "block"
    size: Count = Field(default=128, description="elements along a side of a block")
    square: bool = Field(default=False, description="whether blocks have two sides")
    power_of_two: bool = Field(default=True, description="round the scale up to 2^k")


class MXScaling(_Rounding):
    """Microscaling: a power of two for each block, arXiv:2506.08027."""

    kind: Literal["mx"] = "mx"
    size: Count = Field(default=32, description="elements of a block")
    shared_exponent: Literal["floor", "up"] = Field(
        default="floor", description="floor: of OCP, may saturate; up: never does"
    )
    square: bool = Field(default=False, description="whether blocks have two sides")


class NVFP4Scaling(_Rounding):
    """A scale in E4M3 for each block and one for the tensor, arXiv:2509.25149."""

    kind: Literal["nvfp4"] = "nvfp4"
    size: Count = Field(default=16, description="elements along a side of a block")
    square: bool = Field(default=False, description="whether blocks have two sides")
    hadamard: bool = Field(
        default=False, description="rotate for the weight's gradient"
    )
    four_over_six: Literal["none", "mse", "mae"] = Field(
        default="none", description="error by which a block ends at 4 or 6"
    )


Level: TypeAlias = Annotated[
    Literal["nearest_even", "stochastic"],
    Field(description="to which of two neighbours a number goes"),
]
Per: TypeAlias = Literal["tensor", "slice"]
_PER = "with its own range: the whole, or each example or output"


class SBMScaling(Settings):
    """2^bits levels from end to end of a tensor: Banner et al. 2018, CPT, FracTrain."""

    kind: Literal["sbm"] = "sbm"
    per: Per = Field(default="tensor", description=_PER)
    rounding: Level = "nearest_even"


class DoReFaScaling(Settings):
    """2^bits levels from -1 to 1, or 0 to 1, by role: DoReFa-Net, arXiv:1606.06160."""

    kind: Literal["dorefa"] = "dorefa"


class WAGEScaling(Settings):
    """Multiples of 2^(1-bits) between -1 and 1, by role: WAGE, arXiv:1802.04680."""

    kind: Literal["wage"] = "wage"


class SWALPScaling(Settings):
    """Integers with the exponent of the largest magnitude: SWALP, arXiv:1904.11943."""

    kind: Literal["swalp"] = "swalp"
    per: Per = Field(default="tensor", description=_PER)
    rounding: Rounding = "stochastic"


class MuPPETScaling(Settings):
    """The finest power-of-two step that holds both ends: MuPPET, arXiv:2006.09049."""

    kind: Literal["muppet"] = "muppet"
    rounding: Rounding = "stochastic"


class NoiseScaling(Settings):
    """Adds noise as large as the error of another recipe, in the place of rounding."""

    kind: Literal["noise"] = "noise"
    recipe: "Recipe" = Field(
        default=CurrentScaling(), description="whose error is measured"
    )
    distribution: Literal["uniform", "normal"] = Field(
        default="uniform", description="of the noise"
    )

    @model_validator(mode="after")
    def _of_another(self) -> "NoiseScaling":
        if isinstance(self.recipe, NoiseScaling):
            raise ValueError("recipe must be one that rounds, got noise.")
        return self


Recipe: TypeAlias = Annotated[
    NoScaling
    | CurrentScaling
    | DelayedScaling
    | PerChannelScaling
    | BlockScaling
    | MXScaling
    | NVFP4Scaling
    | SBMScaling
    | DoReFaScaling
    | WAGEScaling
    | SWALPScaling
    | MuPPETScaling
    | NoiseScaling
    | Imported,
    Field(discriminator="kind", description="how a tensor of this role is scaled"),
]
NoiseScaling.model_rebuild()


class Scaling(Settings):
    """How tensors are brought into the range of their format, by role."""

    activation: Recipe = CurrentScaling()
    weight: Recipe = CurrentScaling()
    gradient: Recipe = CurrentScaling()


class StoredActivations(Settings):
    """How contractions keep their activations for the backward pass."""

    format: FormatName = Field(description="they are rounded to")
    recipe: Recipe = Field(
        default=CurrentScaling(), description="how they are scaled for it"
    )

    @model_validator(mode="after")
    def _without_state(self) -> "StoredActivations":
        own = self.recipe
        inner = own.recipe if isinstance(own, NoiseScaling) else own
        if inner.kind == "delayed":
            raise ValueError("recipe must be one without a state, got delayed.")
        return self
