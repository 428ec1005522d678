"""The schedule that asks where a device is slow."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from adaprec_jax.cost.devices import names
from adaprec_jax.runs.config.base import Fraction, Settings
from adaprec_jax.runs.config.bounds import Loop, check_alike
from adaprec_jax.runs.config.formats import BFLOAT16, FLOAT8, Formats


class ByBottleneck(Settings):
    """A low precision for what a device computes faster by it, else a high one.

    Source: ours, on the roofline of Williams et al. 2009.
    """

    loop: ClassVar[Loop] = "open"
    kind: Literal["by_bottleneck"] = "by_bottleneck"
    device: str = Field(
        default="h100", description="short name of the device, as of `adaprec cost`"
    )
    low: Formats = Field(default=FLOAT8, description="formats where it pays")
    high: Formats = Field(default=BFLOAT16, description="formats elsewhere")
    min_saving: Fraction = Field(
        default=0.1, description="share of its time that a contraction must gain"
    )

    @model_validator(mode="after")
    def _known_and_alike(self) -> "ByBottleneck":
        if self.device not in names():
            raise ValueError(
                f"device must be one of {', '.join(names())}, got {self.device!r}."
            )
        check_alike(self.low, self.high)
        return self
