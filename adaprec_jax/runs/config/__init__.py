"""Typed settings of an experiment: plain frozen data, checked when it is made.

A config is built from these defaults alone, and every number says its unit. What is
chosen by name is a tagged union: the field `kind` says which model it is. These models
know no functions; `adaprec_jax.runs.build` turns them into the objects they name.

>>> CPT(min_bits=3, max_bits=8).cycles
8
>>> CPT(min_bits=9, max_bits=8)
Traceback (most recent call last):
...
pydantic_core._pydantic_core.ValidationError: 1 validation error for CPT
  Value error, min_bits (9) must not be above max_bits (8). [type=value_error, ...]
...
"""

from adaprec_jax.runs.config.base import Imported as Imported
from adaprec_jax.runs.config.bottleneck import ByBottleneck as ByBottleneck
from adaprec_jax.runs.config.closed_loop import (
    AMPA as AMPA,
    APT as APT,
    LDP as LDP,
    PFQ as PFQ,
    QEM as QEM,
    Accordion as Accordion,
    AdaptiveLossScale as AdaptiveLossScale,
    AdaptKummer as AdaptKummer,
    Maturity as Maturity,
    MoR as MoR,
    MuPPET as MuPPET,
    Snip as Snip,
    Sqrt3 as Sqrt3,
    TwoThreshold as TwoThreshold,
)
from adaprec_jax.runs.config.execution import (
    Emulated as Emulated,
    Execution as Execution,
    Native as Native,
)
from adaprec_jax.runs.config.experiment import (
    Cost as Cost,
    Experiment as Experiment,
    ImportedSink as ImportedSink,
    Stop as Stop,
)
from adaprec_jax.runs.config.formats import (
    DgradFormats as DgradFormats,
    Formats as Formats,
    ForwardFormats as ForwardFormats,
    SeparateFormats as SeparateFormats,
    SharedFormats as SharedFormats,
    WgradFormats as WgradFormats,
)
from adaprec_jax.runs.config.mesh import Mesh as Mesh, Split as Split
from adaprec_jax.runs.config.open_loop import (
    CPT as CPT,
    Constant as Constant,
    Cyclic as Cyclic,
    Deficit as Deficit,
    Float32 as Float32,
    LateSwitch as LateSwitch,
    Piecewise as Piecewise,
    ShuffledCPT as ShuffledCPT,
    Warmup as Warmup,
)
from adaprec_jax.runs.config.recipes import (
    BlockScaling as BlockScaling,
    CurrentScaling as CurrentScaling,
    DelayedScaling as DelayedScaling,
    DoReFaScaling as DoReFaScaling,
    MuPPETScaling as MuPPETScaling,
    MXScaling as MXScaling,
    NoiseScaling as NoiseScaling,
    NoScaling as NoScaling,
    NVFP4Scaling as NVFP4Scaling,
    PerChannelScaling as PerChannelScaling,
    Recipe as Recipe,
    SBMScaling as SBMScaling,
    Scaling as Scaling,
    StoredActivations as StoredActivations,
    SWALPScaling as SWALPScaling,
    WAGEScaling as WAGEScaling,
)
from adaprec_jax.runs.config.schedules import (
    Change as Change,
    Forked as Forked,
    ImportedSchedule as ImportedSchedule,
    PerLayer as PerLayer,
    Rule as Rule,
    Schedule as Schedule,
)
from adaprec_jax.runs.config.tasks import (
    CNN as CNN,
    MLP as MLP,
    Denoiser as Denoiser,
    Denoising as Denoising,
    Digits as Digits,
    Experts as Experts,
    FashionMNIST as FashionMNIST,
    Function as Function,
    Graph as Graph,
    ImportedModel as ImportedModel,
    ImportedTask as ImportedTask,
    Model as Model,
    Recurrent as Recurrent,
    ResNet as ResNet,
    Shakespeare as Shakespeare,
    Siren as Siren,
    Supervised as Supervised,
    Task as Task,
    Teacher as Teacher,
    Transformer as Transformer,
    ViT as ViT,
)
from adaprec_jax.runs.config.training import (
    SGD as SGD,
    WAGE as WAGE,
    Adam as Adam,
    AdamW as AdamW,
    Averaging as Averaging,
    COATMoments as COATMoments,
    Communication as Communication,
    ConstantRate as ConstantRate,
    Cosine as Cosine,
    DynamicLossScaling as DynamicLossScaling,
    FP8LMMoments as FP8LMMoments,
    Hysteresis as Hysteresis,
    InPlace as InPlace,
    LearningRate as LearningRate,
    LossScaling as LossScaling,
    Moment as Moment,
    Moments as Moments,
    Momentum as Momentum,
    NoLossScaling as NoLossScaling,
    Optimizer as Optimizer,
    OscillationReset as OscillationReset,
    OwnMoments as OwnMoments,
    StaticLossScaling as StaticLossScaling,
    WarmupCosine as WarmupCosine,
    WarmupStableDecay as WarmupStableDecay,
    decay_start as decay_start,
)
