"""Schedules: in which formats is trained, by step, layer and what is measured."""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import Imported, Settings
from adaprec_jax.runs.config.bottleneck import ByBottleneck
from adaprec_jax.runs.config.bounds import Loop
from adaprec_jax.runs.config.closed_loop import (
    AMPA,
    APT,
    LDP,
    PFQ,
    QEM,
    Accordion,
    AdaptiveLossScale,
    AdaptKummer,
    Maturity,
    MoR,
    MuPPET,
    Snip,
    Sqrt3,
    TwoThreshold,
)
from adaprec_jax.runs.config.formats import INT8
from adaprec_jax.runs.config.open_loop import (
    CPT,
    Constant,
    Cyclic,
    Deficit,
    Float32,
    LateSwitch,
    Piecewise,
    ShuffledCPT,
    Warmup,
)


class ImportedSchedule(Imported):
    """A schedule of somebody's own; the factory may ask for `steps`.

    Source: its author's.
    """

    loop: ClassVar[Loop] = "either"
    offers: ClassVar[tuple[str, ...]] = ("steps",)


class Rule(Settings):
    """A schedule for the contractions whose path matches a pattern."""

    pattern: str = Field(
        min_length=1, description="a glob of paths, first or last; @ names layers"
    )
    schedule: "Schedule" = Field(description="what they follow")


class PerLayer(Settings):
    """Schedules by path; of several rules that match, the first counts.

    Source: common practice.
    """

    loop: ClassVar[Loop] = "either"
    kind: Literal["per_layer"] = "per_layer"
    rules: tuple[Rule, ...] = Field(
        min_length=1,
        description="in order of priority",
        examples=[
            [
                {"pattern": name, "schedule": {"kind": "constant", "precision": INT8}}
                for name in ("first", "last")
            ]
        ],
    )
    default: "Schedule" = Field(
        description="where no rule matches", examples=[{"kind": "cpt"}]
    )

    @model_validator(mode="after")
    def _patterns_differ(self) -> "PerLayer":
        patterns = [rule.pattern for rule in self.rules]
        if len(set(patterns)) < len(patterns):
            raise ValueError(f"rules must have different patterns, got {patterns}.")
        return self


Schedule: TypeAlias = Annotated[
    Float32
    | Constant
    | Piecewise
    | Warmup
    | LateSwitch
    | Deficit
    | CPT
    | Cyclic
    | ShuffledCPT
    | TwoThreshold
    | MoR
    | Snip
    | AMPA
    | Sqrt3
    | AdaptKummer
    | LDP
    | AdaptiveLossScale
    | PFQ
    | MuPPET
    | QEM
    | APT
    | Accordion
    | Maturity
    | ByBottleneck
    | PerLayer
    | ImportedSchedule,
    Field(discriminator="kind"),
]
Rule.model_rebuild()
PerLayer.model_rebuild()
