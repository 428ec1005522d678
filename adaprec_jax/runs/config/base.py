"""What all settings share: strictness, and the kinds of values."""

import re
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from adaprec_jax.runs import format_names

_LARGEST = 3.4e38  # of float32, nearly


def _known_format(name: str) -> str:
    format_names.parse(name)
    return name


def _name_of_a_folder(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError(
            "it must begin with a letter or digit and be at most 64 letters, digits, "
            f"dots, underscores and hyphens, got {text!r}."
        )
    return text


def _import_target(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError(f"it must be package.module:factory, got {text!r}.")
    return text


Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]  # as JAX counts
# A schedule is a table with a row per step.
Steps: TypeAlias = Annotated[int, Field(ge=1, le=10_000_000)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**32)]
Bits: TypeAlias = Annotated[int, Field(ge=2, le=16)]
Positive: TypeAlias = Annotated[float, Field(gt=0, le=_LARGEST)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, le=_LARGEST)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
LossScale: TypeAlias = Annotated[float, Field(ge=2.0**-126, le=2.0**126)]
# A folder bears the name, so it holds no separator and does not begin with a dot.
Name: TypeAlias = Annotated[str, AfterValidator(_name_of_a_folder)]
FormatName: TypeAlias = Annotated[
    str, AfterValidator(_known_format), Field(description="name of a format")
]
FloatDtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Rounding: TypeAlias = Annotated[
    Literal["nearest_even", "nearest_away", "toward_zero", "stochastic"],
    Field(description="to which of two neighbours a number goes"),
]
Role: TypeAlias = Literal["activation", "weight", "gradient"]
Statistic: TypeAlias = Literal[
    "amax",
    "mean_abs",
    "rms",
    "zero_fraction",
    "underflow_fraction",
    "saturation_fraction",
    "sqnr_db",
    "mean_abs_rounded",
]


Arguments: TypeAlias = dict[str, JsonValue]


class Settings(BaseModel):
    """Frozen and strict; knows no field that is not declared, no infinity, no NaN."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _tuples_may_be_lists(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }


class Imported(Settings):
    """What a factory of somebody's own package makes; see `runs.imports`."""

    # Values of ours that the factory may ask for by name.
    offers: ClassVar[tuple[str, ...]] = ()
    kind: Literal["import"] = "import"
    target: Annotated[str, AfterValidator(_import_target)] = Field(
        description="package.module:factory"
    )
    arguments: Arguments = Field(default={}, description="of the factory, by name")
