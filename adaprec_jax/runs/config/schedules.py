"""Schedules: in which formats is trained, by step, layer and what is measured."""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import Count, FormatName, Imported, Settings
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
    Steps,
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


class Change(Settings):
    """Other formats in some layers for some steps; what is not named stays."""

    layers: str = Field(
        min_length=1, description="a glob of paths, first or last; @ names layers"
    )
    start: Steps = Field(description="first step that has them, counted from 0")
    end: Steps = Field(description="first step after those")
    activation: FormatName | None = Field(
        default=None, description="format of activations"
    )
    weight: FormatName | None = Field(default=None, description="format of weights")
    gradient: FormatName | None = Field(default=None, description="format of gradients")

    @model_validator(mode="after")
    def _in_order(self) -> "Change":
        if self.start >= self.end:
            raise ValueError(f"start ({self.start}) must be below end ({self.end}).")
        if not (self.activation or self.weight or self.gradient):
            raise ValueError("a change needs the format of some role.")
        return self


class Forked(Settings):
    """A run's own schedule from one of its checkpoints on, with a change or as it was.

    Source: ours.
    """

    loop: ClassVar[Loop] = "either"
    kind: Literal["forked"] = "forked"
    parent: Annotated[str, Field(pattern="^[0-9a-f]{12}$")] = Field(
        description="id of the run whose checkpoint it goes on from"
    )
    step: Count = Field(description="of that checkpoint")
    schedule: "Schedule" = Field(description="of that run")
    change: Change | None = Field(
        default=None, description="from that step on; none is the run as it was"
    )

    @model_validator(mode="after")
    def _after_the_checkpoint(self) -> "Forked":
        if self.change and self.change.start < self.step:
            raise ValueError(
                f"change.start ({self.change.start}) must not be below step "
                f"({self.step}): what lies before the checkpoint is done."
            )
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
    | Forked
    | ImportedSchedule,
    Field(discriminator="kind"),
]
Rule.model_rebuild()
PerLayer.model_rebuild()
Forked.model_rebuild()
