"""The whole experiment, and the rules between its fields."""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import (
    Count,
    FloatDtype,
    Imported,
    Name,
    Positive,
    Seed,
    Settings,
    Statistic,
    Steps,
)
from adaprec_jax.runs.config.execution import Emulated, Execution
from adaprec_jax.runs.config.mesh import Mesh
from adaprec_jax.runs.config.open_loop import (
    CPT,
    Cyclic,
    Deficit,
    Float32,
    LateSwitch,
    Piecewise,
    ShuffledCPT,
    Warmup,
)
from adaprec_jax.runs.config.recipes import Scaling, StoredActivations
from adaprec_jax.runs.config.schedules import Forked, PerLayer, Schedule
from adaprec_jax.runs.config.tasks import Model, Task
from adaprec_jax.runs.config.training import (
    LossScaling,
    NoLossScaling,
    Optimizer,
    WarmupCosine,
    WarmupStableDecay,
    decay_start,
)


class Stop(Settings):
    """When a run ends before its last step, recorded as diverged."""

    nonfinite_steps: Count = Field(
        default=1, description="steps in a row with a loss that is not finite"
    )
    loss_above: Positive | None = Field(
        default=None, description="training loss that counts as divergence"
    )


class Cost(Imported):
    """A way of somebody's own to count what a step costs."""

    name: Name = Field(description="of its column, cost/NAME")


class ImportedSink(Imported):
    """What is shown the metrics; the factory returns a Sink."""

    offers: ClassVar[tuple[str, ...]] = ("directory", "name", "start")


class Experiment(Settings):
    """Everything that decides the outcome of a run."""

    name: Name = Field(description="of the run's folder; no part of the id")
    tags: tuple[str, ...] = Field(default=(), description="no part of the id")
    seed: Seed = Field(default=0, description="root of all random streams")
    task: Task = Field(description="the data, and what is learned from it")
    model: Model = Field(description="the network")
    optimizer: Optimizer = Field(description="how its parameters move")
    steps: Steps = Field(description="train steps, skipped ones included")
    batch_size: Count = Field(description="examples per step")
    micro_batches: Count = Field(
        default=1, description="parts of a batch whose gradients are averaged"
    )
    devices: Count = Field(default=1, description="devices that share each batch")
    # Left out where it is the default: runs of before have no such setting in their id.
    mesh: Mesh = Field(
        default=Mesh(),
        exclude_if=lambda value: value == Mesh(),
        description="what each of them holds of the model",
    )
    steps_per_dispatch: Count = Field(
        default=1, description="steps in one call of the compiled program"
    )
    evaluate_every: Count = Field(default=100, description="steps")
    checkpoint_every: Count = Field(default=500, description="steps")
    keep_checkpoints: Count = Field(
        default=2, description="checkpoints that stay, the last; no part of the id"
    )
    log_every: Count = Field(default=1, description="steps between rows of metrics")
    statistics: tuple[Statistic, ...] = Field(
        default=(), description="logged per contraction and role"
    )
    schedule: Schedule = Field(
        default=Float32(), description="which formats each step has"
    )
    scaling: Scaling = Field(
        default=Scaling(), description="how tensors are brought into their range"
    )
    stored_activations: StoredActivations | None = Field(
        default=None, description="for the backward pass; none keeps them as they are"
    )
    execution: Execution = Field(
        default=Emulated(), description="what the products are formed from"
    )
    compute_dtype: FloatDtype | None = Field(
        default=None, description="between contractions; none is as the model has it"
    )
    parameter_dtype: FloatDtype = Field(
        default="float32", description="narrower ones have a float32 master"
    )
    loss_scaling: LossScaling = Field(
        default=NoLossScaling(), description="what the loss is multiplied by"
    )
    stop: Stop = Field(default=Stop(), description="when the run ends early")
    costs: tuple[Cost, ...] = Field(
        default=(), description="logged beside the bit operations"
    )
    sinks: tuple[ImportedSink, ...] = Field(
        default=(), description="are shown the metrics, too; no part of the id"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if faults := [*_faults(self)]:
            raise ValueError("\n".join(faults))
        return self


# Which models read the examples of which task.
_MODELS = {
    "digits": ("mlp", "resnet", "vit", "recurrent", "experts", "graph"),
    "denoising": ("denoiser",),
    "fashion_mnist": ("cnn",),
    "shakespeare": ("transformer",),
    "function": ("siren",),
    "teacher": ("mlp",),
    "supervised": ("mlp", "cnn", "resnet", "recurrent", "experts"),
}


def _faults(experiment: Experiment) -> Iterator[str]:
    """Yields a sentence for each rule between fields that does not hold."""
    task, model, steps = experiment.task, experiment.model, experiment.steps
    allowed = _MODELS.get(task.kind, ())  # Of one's own, all; own models read any.
    if allowed and model.kind not in (*allowed, "import"):
        yield (
            f"model.kind: the task {task.kind} needs {_one_of(allowed)}, "
            f"got {model.kind}."
        )
    names = [cost.name for cost in experiment.costs]
    if len(set(names)) < len(names):
        yield f"costs must have different names, got {names}."
    if experiment.batch_size % experiment.micro_batches:
        yield (
            f"batch_size ({experiment.batch_size}) must be a multiple of "
            f"micro_batches ({experiment.micro_batches})."
        )
    yield from _mesh_faults(experiment)
    dispatch = experiment.steps_per_dispatch
    for field in ("steps", "evaluate_every", "checkpoint_every"):
        if (value := getattr(experiment, field)) % dispatch:
            yield (
                f"{field} ({value}) must be a multiple of steps_per_dispatch "
                f"({dispatch})."
            )
    rate = experiment.optimizer.learning_rate
    if isinstance(rate, WarmupCosine) and rate.warmup_steps >= steps:
        yield (
            f"optimizer.learning_rate.warmup_steps ({rate.warmup_steps}) must be below "
            f"steps ({steps})."
        )
    if isinstance(rate, WarmupStableDecay):
        both = rate.warmup_steps + rate.decay_steps
        if both > steps:
            yield (
                "optimizer.learning_rate.warmup_steps and decay_steps together "
                f"({both}) must not be above steps ({steps})."
            )
    yield from _optimizer_faults(experiment)
    yield from _schedule_faults("schedule", experiment.schedule, experiment)


def _mesh_faults(experiment: Experiment) -> Iterator[str]:
    """Yields a sentence for each way in which the devices cannot share the work."""
    devices, tensor = experiment.devices, experiment.mesh.tensor
    shares = "devices" if tensor == 1 else "devices / mesh.tensor"
    if devices % tensor:
        yield f"devices ({devices}) must be a multiple of mesh.tensor ({tensor})."
    elif experiment.batch_size % (devices // tensor):
        yield (
            f"batch_size ({experiment.batch_size}) must be a multiple of {shares} "
            f"({devices // tensor})."
        )
    if experiment.mesh.splits and tensor == 1:
        yield "mesh.splits says how devices share a layer, and mesh.tensor is 1."


def _optimizer_faults(experiment: Experiment) -> Iterator[str]:
    """Yields a sentence for each transformation that the run never does not allow."""
    optimizer, steps = experiment.optimizer, experiment.steps
    if optimizer.in_place and experiment.parameter_dtype != "float32":
        yield (
            "optimizer.in_place has no master, so parameter_dtype must be float32, got "
            f"{experiment.parameter_dtype}."
        )
    if (reset := optimizer.oscillation_reset) and reset.start + reset.window > steps:
        yield (
            f"optimizer.oscillation_reset.start ({reset.start}) leaves no window of "
            f"{reset.window} steps in {steps}."
        )
    if (average := optimizer.averaging) and average.start >= steps:
        yield (
            f"optimizer.averaging.start ({average.start}) must be below steps "
            f"({steps})."
        )


def _one_of(names: tuple[str, ...]) -> str:
    """Returns names in words: "a", or "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _schedule_faults(path: str, schedule: Any, run: Experiment) -> Iterator[str]:
    """Yields a sentence for each part of a schedule that the run never reaches."""
    steps = run.steps
    match schedule:
        case Piecewise(boundaries=(*_, last)) if last >= steps:
            yield f"{path}.boundaries ({last}) must be below steps ({steps})."
        case Warmup(warmup_steps=last) if last >= steps:
            yield f"{path}.warmup_steps ({last}) must be below steps ({steps})."
        case LateSwitch(at="decay"):
            rate = run.optimizer.learning_rate
            if not decay_start(rate, steps):
                yield (
                    f"{path}.at: decay needs a learning rate that falls after steps at "
                    "its peak, such as warmup_stable_decay with decay_steps below "
                    f"steps, got {rate.kind}."
                )
        case LateSwitch(fraction=fraction) if not 0 < round(fraction * steps) < steps:
            yield f"{path}.fraction ({fraction}) leaves no step of {steps} on one side."
        case Deficit(start=start, length=length) if start + length > steps:
            yield (
                f"{path}.start and length together ({start + length}) must not be "
                f"above steps ({steps})."
            )
        case (
            CPT(cycles=cycles) | Cyclic(cycles=cycles) | ShuffledCPT(cycles=cycles)
        ) if cycles > steps:
            yield f"{path}.cycles ({cycles}) must not be above steps ({steps})."
        case PerLayer() | Forked():
            yield from _faults_of_parts(path, schedule, run)


def _faults_of_parts(
    path: str, schedule: PerLayer | Forked, run: Experiment
) -> Iterator[str]:
    """Yields a sentence for each part of a schedule of schedules, as above."""
    if isinstance(schedule, PerLayer):
        yield from _schedule_faults(f"{path}.default", schedule.default, run)
        for index, rule in enumerate(schedule.rules):
            where = f"{path}.rules.{index}.schedule"
            yield from _schedule_faults(where, rule.schedule, run)
        return
    steps = run.steps
    if schedule.step >= steps:
        yield f"{path}.step ({schedule.step}) must be below steps ({steps})."
    elif (change := schedule.change) and change.end > steps:
        yield f"{path}.change.end ({change.end}) must not be above steps ({steps})."
    yield from _schedule_faults(f"{path}.schedule", schedule.schedule, run)
