"""Formats of a contraction, by operand."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from adaprec_jax.runs.config.base import FormatName, Settings


class SharedFormats(Settings):
    """Formats of a contraction whose products share one rounded copy per tensor."""

    kind: Literal["shared"] = "shared"
    activation: FormatName = "float32"
    weight: FormatName = "float32"
    gradient: FormatName = "float32"


class ForwardFormats(Settings):
    """Formats of the operands of the forward product."""

    activation: FormatName = "float32"
    weight: FormatName = "float32"


class DgradFormats(Settings):
    """Formats of the operands of the activation's gradient."""

    gradient: FormatName = "float32"
    weight: FormatName = "float32"


class WgradFormats(Settings):
    """Formats of the operands of the weight's gradient."""

    gradient: FormatName = "float32"
    activation: FormatName = "float32"


class SeparateFormats(Settings):
    """Formats of a contraction, separately for each operand of each product."""

    kind: Literal["separate"] = "separate"
    forward: ForwardFormats = Field(
        default=ForwardFormats(), description="of activation times weight"
    )
    dgrad: DgradFormats = Field(
        default=DgradFormats(), description="of the activation's gradient"
    )
    wgrad: WgradFormats = Field(
        default=WgradFormats(), description="of the weight's gradient"
    )


Formats: TypeAlias = Annotated[
    SharedFormats | SeparateFormats, Field(discriminator="kind")
]

BFLOAT16 = SharedFormats(activation="bfloat16", weight="bfloat16", gradient="bfloat16")
INT3, INT4, INT6, INT8 = (
    SharedFormats(activation=name, weight=name, gradient="int8")
    for name in ("int3", "int4", "int6", "int8")
)
FLOAT4 = SharedFormats(
    activation="float4_e2m1fn", weight="float4_e2m1fn", gradient="float4_e2m1fn"
)
FLOAT8 = SharedFormats(
    activation="float8_e4m3fn", weight="float8_e4m3fn", gradient="float8_e4m3fn"
)
