"""Turns the names in a config into functions; those of task and model in `build_task`.

A new schedule, optimizer or recipe is a line here. Settings have the names of the
arguments that they become.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from adaprec_jax import (
    formats,
    loss_scaling,
    plan as plans,
    scaling,
    schedules,
    stats,
    transforms,
)
from adaprec_jax.contractions import (
    Compute,
    Options,
    Stored,
    Table,
    Watch,
    contraction_table,
)
from adaprec_jax.native import learns
from adaprec_jax.precision import Entry, Plan
from adaprec_jax.runs import config, expected, format_names, imports
from adaprec_jax.runs.build_task import make_task
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.scaling import Recipe, Recipes, Use
from adaprec_jax.schedules import Schedule
from adaprec_jax.tasks import order
from adaprec_jax.tasks.task import Data, Split, Task
from adaprec_jax.train import guard
from adaprec_jax.train.state import Program, Stop, TrainState, init_state, stream

# Steps between two looks at statistics that only a person looks at.
_GLANCE = 20


class Built(NamedTuple):
    """What a config says, as functions and data.

    Attributes:
        task: What is trained, with all of its data.
        split: The rows of this seed.
        program: What a step does.
        key: The run's key.
        init: `(key, schedule_state=None) -> TrainState`.
    """

    task: Task
    split: Split
    program: Program
    key: Key[Array, ""]
    init: Callable[..., TrainState]


def build(experiment: Experiment, data: Data | None = None) -> Built:
    """Returns the functions and the data of an experiment.

    Args:
        experiment: All settings.
        data: In place of the task's own.

    Raises:
        InputError: The data is missing or damaged, a rule matches nothing, the batch is
            larger than the data, or devices are missing: what only shows when data,
            model and machine are there.
    """
    if experiment.devices > (here := jax.device_count()):
        raise InputError(f"devices: {experiment.devices} are asked for, {here} is all "
                         "that JAX finds here.")  # fmt: skip
    with as_input_error():
        task = make_task(experiment, data)
        split = task.data.split(experiment.seed)
        order.indices(experiment.seed, 0, experiment.batch_size, len(split.train))
    program = make_program(experiment, task)
    _try_out(experiment, program)
    init = functools.partial(first_state, experiment, task, program)
    return Built(task, split, program, jax.random.key(experiment.seed), init)


def _try_out(experiment: Experiment, program: Program) -> None:
    """Asks schedule and costs about the first step, so that wrong ones are told of.

    Raises:
        InputError: A schedule's plan does not fit, or a piece of one's own fails.
    """
    own = imports.targets(experiment.schedule)
    alone = isinstance(experiment.schedule, config.ImportedSchedule)
    with as_input_error(), imports.blamed(*own, always=alone):
        plan, before, after = jax.jit(functools.partial(_first_decision, program))()
        plans.check(plan, program.table)
        _check_state(before, after)
    for cost in experiment.costs:
        with imports.blamed(cost.target, always=True):
            counted = functools.partial(program.costs[cost.name], program.table)
            found = jax.eval_shape(counted, plan)
        if getattr(found, "shape", None) != ():
            raise InputError(
                f"{cost.target} must return a function of table and plan whose result "
                f"is a number, got {found}."
            )


def _check_state(before: PyTree, after: PyTree) -> None:
    """Refuses a schedule whose state changes its structure, shapes or dtypes.

    Raises:
        ValueError: It does.
    """
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError("The schedule's state has another structure after a step.")
    changed = guard.leaves_of(after)
    for name, old in guard.leaves_of(before).items():
        if (new := changed[name]) != old:
            raise ValueError(
                f"The schedule's state has {new.dtype}{list(new.shape)} at {name!r} "
                f"after a step, {old.dtype}{list(old.shape)} before."
            )


@contextlib.contextmanager
def as_input_error() -> Iterator[None]:
    """Turns what is wrong with the data or the settings into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error


def make_program(experiment: Experiment, task: Task) -> Program:
    """Returns what a step of the experiment does.

    Raises:
        ValueError: An argument is out of range.
    """
    schedule = make_schedule(
        experiment.schedule, experiment.steps, expected.decay(experiment)
    )
    watch, gather_every = make_watch(experiment, schedule)
    table = make_table(experiment, task)
    if experiment.execution.late is not None:
        nothing = stats.empty(table, watch)
        if learns(schedule, nothing, schedule.init(table)):
            every, dispatches = experiment.steps_per_dispatch, experiment.execution.late
            schedule = schedules.late(schedule, every, dispatches)
    return Program(
        loss=task.loss,
        table=table,
        schedule=schedule,
        transformation=make_transformation(experiment),
        options=Options(
            recipes=make_recipes(experiment.scaling),
            compute_dtype=experiment.compute_dtype
            and Compute(jnp.dtype(experiment.compute_dtype)),
            stored=make_stored(experiment.stored_activations),
        ),
        watch=watch,
        gather_every=gather_every,
        micro_batches=experiment.micro_batches,
        stop=Stop(
            nonfinite_steps=experiment.stop.nonfinite_steps,
            loss_above=experiment.stop.loss_above or math.inf,
        ),
        costs={each.name: imports.make_function(each) for each in experiment.costs},
    )


def first_plan(program: Program) -> Plan:
    """Returns the plan of the first step.

    Raises:
        ValueError: A rule matches nothing, or the schedule's parts do not fit together.
    """
    return _first_decision(program)[0]


def _first_decision(program: Program) -> tuple[Plan, PyTree, PyTree]:
    """Returns the plan of the first step, and the schedule's state around it."""
    nothing = stats.empty(program.table, program.watch)
    before = program.schedule.init(program.table)
    plan, after = program.schedule.update(jnp.int32(0), nothing, before)
    return plan, before, after


def make_table(experiment: Experiment, task: Task) -> Table:
    """Returns the contractions of one micro-batch; computes nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    size = experiment.batch_size // experiment.micro_batches
    rows = jax.ShapeDtypeStruct((size,), jnp.int32)
    batch = jax.eval_shape(task.data.gather, task.data.arrays, rows)
    own = imports.targets((experiment.task, experiment.model))
    with as_input_error(), imports.blamed(*own, always=True):
        params, model_state = jax.eval_shape(
            functools.partial(_variables, experiment, task), key
        )
        table = contraction_table(task.loss, params, model_state, batch, key)
        # Another function to JAX, which would not call the same one again.
        anew = functools.partial(task.loss)
        if own and table != contraction_table(anew, params, model_state, batch, key):
            raise InputError(
                f"{' with '.join(own)} multiplies something else each time it is "
                "called; a model must always have the same contractions."
            )
    return table


def make_schedule(
    settings: config.Schedule, steps: int, decay: int | None = None
) -> Schedule:
    """Returns the precision schedule.

    Args:
        settings: The schedule.
        steps: Length of the run.
        decay: The step at which the learning rate begins to fall, if it does.

    Raises:
        ValueError: An argument is out of range.
    """
    fields = settings.model_dump(exclude={"kind"})
    match settings:
        case config.CPT():
            return schedules.cpt(**fields, steps=steps)
        case config.Cyclic():
            return schedules.cyclic(**fields, steps=steps)
        case config.ShuffledCPT():
            seed = fields.pop("shuffle_seed")
            return schedules.shuffled(schedules.cpt(**fields, steps=steps), seed)
        case config.TwoThreshold(signal=signal):
            fields["signal"] = getattr(stats, signal)
            return schedules.two_threshold(**fields)
        case config.Snip(low=low, high=high):
            fields |= {"low": format_names.parse(low), "high": format_names.parse(high)}
            return schedules.snip(**fields)
        case (
            config.MoR()
            | config.AMPA()
            | config.Sqrt3()
            | config.AdaptKummer()
            | config.LDP()
            | config.APT()
            | config.MuPPET()
            | config.PFQ()
            | config.QEM()
            | config.Accordion()
            | config.Maturity()
            | config.ByBottleneck()
        ):
            return getattr(schedules, settings.kind)(**fields | _entries(settings))
        case config.AdaptiveLossScale(forward=forward):
            fields["forward"] = format_names.parse(forward)
            return schedules.adaptive_loss_scale(**fields)
        case config.ImportedSchedule():
            return imports.make(Schedule, settings, steps=steps)
        case config.PerLayer() | config.Forked():
            return _made_of(settings, lambda own: make_schedule(own, steps, decay))
    starts = expected.pieces(settings, steps, decay)
    (_, *boundaries), entries = zip(*starts.items(), strict=True)
    return schedules.piecewise(boundaries, entries)


def _made_of(
    settings: config.PerLayer | config.Forked,
    make: Callable[[config.Schedule], Schedule],
) -> Schedule:
    """Returns a schedule that is made of others."""
    if isinstance(settings, config.PerLayer):
        by_pattern = {rule.pattern: make(rule.schedule) for rule in settings.rules}
        return schedules.per_layer(by_pattern, make(settings.default))
    schedule, change = make(settings.schedule), settings.change
    if change is None:  # A change of no steps leaves the schedule as it was.
        return schedules.changed(schedule, "**", {}, start=0, end=0)
    named = change.model_dump(include=set(Recipes._fields), exclude_none=True)
    entry = {role: format_names.parse(name) for role, name in named.items()}
    return schedules.changed(
        schedule, change.layers, entry, start=change.start, end=change.end
    )


def _entries(settings: config.Schedule) -> dict[str, Entry]:
    """Returns the settings that are formats by role, as entries of a plan."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {
        name: expected.entry(value)
        for name, value in values.items()
        if isinstance(value, config.SharedFormats | config.SeparateFormats)
    }


def make_watch(experiment: Experiment, schedule: Schedule) -> tuple[Watch, int]:
    """Returns which statistics are gathered, and every how many steps.

    They are those that the schedule reads, those to be logged, and for the display the
    saturation, as often as the others.
    """
    reads, logged = schedule.reads, set(experiment.statistics)
    every = [schedule.every] if reads.quantities else []
    roles = set(reads.roles)
    if logged:
        every.append(experiment.log_every)
    if logged or not reads.quantities:
        roles = set(Recipes._fields)
    watch = Watch(
        quantities=tuple(sorted({*reads.quantities, *logged, "saturation_fraction"})),
        roles=tuple(role for role in Recipes._fields if role in roles),
        what_if=reads.what_if,
    )
    return watch, math.gcd(*every) or _GLANCE


def make_transformation(
    experiment: Experiment,
) -> optax.GradientTransformationExtraArgs:
    """Returns loss scaling around optimizer and what stands around that."""
    inner = make_optimizer(experiment.optimizer, experiment.steps, experiment.seed)
    inner = with_transforms(inner, experiment.optimizer, experiment.seed)
    settings = experiment.loss_scaling
    wrap = {
        "none": loss_scaling.none,
        "static": loss_scaling.static,
        "dynamic": loss_scaling.dynamic,
    }[settings.kind]
    return wrap(inner, **settings.model_dump(exclude={"kind"}))


def make_optimizer(
    settings: config.Optimizer, steps: int, seed: int = 0
) -> optax.GradientTransformation:
    """Returns the optimizer behind its clip; its state tells the learning rate."""
    own = ("b1", "b2", "eps")
    fields = {name: getattr(settings, name) for name in own if hasattr(settings, name)}

    def with_rate(learning_rate: Any) -> optax.GradientTransformation:
        parts = []
        if settings.clip_norm is not None:
            parts.append(optax.clip_by_global_norm(settings.clip_norm))
        match settings:
            case config.SGD(weight_decay=decay):
                parts += [optax.add_decayed_weights(decay), optax.sgd(learning_rate)]
            case config.Momentum(weight_decay=decay, decay=momentum):
                parts += [
                    optax.add_decayed_weights(decay),
                    optax.sgd(learning_rate, momentum, nesterov=settings.nesterov),
                ]
            case config.Adam():
                parts.append(optax.adam(learning_rate, **fields))
            case config.AdamW(weight_decay=decay):
                parts.append(optax.adamw(learning_rate, **fields, weight_decay=decay))
            case config.WAGE():
                grid = settings.model_dump(include={"bits", "weight_bits", "on_grid"})
                parts.append(transforms.wage(learning_rate, **grid, seed=seed))
        return optax.chain(*parts)

    rate = make_learning_rate(settings.learning_rate, steps)
    injected = optax.inject_hyperparams(with_rate, hyperparam_dtype=jnp.float32)
    return injected(learning_rate=rate)


def with_transforms(
    optimizer: optax.GradientTransformation, settings: config.Optimizer, seed: int
) -> optax.GradientTransformation:
    """Returns the optimizer with what acts on its moments, its masters and gradients.

    In the order of a step: the gradients are rounded as for communication; the
    optimizer moves the masters, and its moments are rounded; masters that oscillate are
    reset; the weights are rounded, with memory or in place; and what the model uses is
    averaged.

    Raises:
        ValueError: An argument is out of range.
    """
    if isinstance(settings, config.Adam | config.AdamW) and settings.moments:
        moments = make_moments(settings.moments)
        optimizer = transforms.narrow_moments(optimizer, moments, seed=seed)
    if reset := settings.oscillation_reset:
        fields = reset.model_dump(exclude={"format"})
        resets = transforms.oscillation_reset(
            format_names.parse(reset.format), **fields
        )
        optimizer = optax.chain(optimizer, optax.masked(resets, _matrices))
    if memory := settings.hysteresis:
        fmt = format_names.parse(memory.format)
        optimizer = transforms.hysteresis(optimizer, fmt, mask=_matrices)
    if kept := settings.in_place:
        narrow = transforms.in_place(format_names.parse(kept.format))
        optimizer = optax.chain(optimizer, narrow)
    if average := settings.averaging:
        averages = transforms.averaging(**average.model_dump())
        optimizer = optax.chain(optimizer, averages)
    if travels := settings.communication:
        fields = travels.model_dump(exclude={"format"})
        fmt = format_names.parse(travels.format)
        optimizer = optax.chain(transforms.narrow_all_reduce(fmt, **fields), optimizer)
    return optimizer


def make_moments(settings: config.Moments) -> dict[str, transforms.Moment]:
    """Returns how Adam's moments are stored, by their names in its state."""
    match settings:
        case config.FP8LMMoments():
            return transforms.fp8_lm()
        case config.COATMoments(group=group):
            return transforms.coat(group)

    def moment(settings: config.Moment) -> transforms.Moment:
        return transforms.Moment(
            format_names.parse(settings.format),
            scaling.current(rounding=settings.rounding),
            settings.group,
            settings.expand,
        )

    return {"mu": moment(settings.first), "nu": moment(settings.second)}


def _matrices(params: PyTree) -> PyTree:
    """Returns which parameters have two axes or more: what contractions round."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def make_learning_rate(
    settings: config.LearningRate, steps: int
) -> float | optax.Schedule:
    """Returns the learning rate, as a function of the applied steps if it moves."""
    match settings:
        case config.ConstantRate(peak=peak):
            return peak
        case config.Cosine(peak=peak, final=final):
            rate = optax.cosine_decay_schedule(peak, steps, final / peak)
        case config.WarmupCosine(peak=peak, final=final, warmup_steps=warmup):
            rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final)
        case config.WarmupStableDecay():
            rate = _warmup_stable_decay(settings, steps)

    def moving(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        with jax.numpy_dtype_promotion("standard"):  # as optax divides counts
            return rate(count)

    return moving


def _warmup_stable_decay(
    settings: config.WarmupStableDecay, steps: int
) -> optax.Schedule:
    peak, final, decay = settings.peak, settings.final, settings.decay_steps
    if settings.fall == "linear":
        fall = optax.linear_schedule(peak, final, decay)
    else:
        fall = optax.cosine_decay_schedule(peak, decay, final / peak)
    phases, starts = [optax.constant_schedule(peak), fall], [steps - decay]
    if warmup := settings.warmup_steps:
        phases = [optax.linear_schedule(0.0, peak, warmup), *phases]
        starts = [warmup, *starts]
    return optax.join_schedules(phases, starts)


def make_recipes(settings: config.Scaling) -> Recipes:
    """Returns the scaling recipe of each role."""
    return Recipes(
        *(make_recipe(getattr(settings, role), role) for role in Recipes._fields)
    )


def make_recipe(settings: config.Recipe, role: str = "activation") -> Recipe:
    """Returns a scaling recipe for a role.

    Raises:
        InputError: A piece of one's own fails, or returns something of another shape.
    """
    if isinstance(settings, config.Imported):
        made = imports.make(Recipe, settings)
    elif isinstance(settings, config.NoiseScaling):
        return scaling.noise(make_recipe(settings.recipe, role), settings.distribution)
    else:
        make = {
            "none": scaling.none,
            "current": scaling.current,
            "delayed": scaling.delayed,
            "per_channel": scaling.per_channel,
            "block": scaling.blockwise,
            "mx": scaling.mx,
            "nvfp4": scaling.nvfp4,
            "sbm": scaling.sbm,
            "dorefa": scaling.dorefa,
            "wage": scaling.wage,
            "swalp": scaling.swalp,
            "muppet": scaling.muppet,
        }[settings.kind]
        fields = settings.model_dump(exclude={"kind", "quantizer"})
        if isinstance(settings, config.DoReFaScaling | config.WAGEScaling):
            fields["role"] = role
        if own := getattr(settings, "quantizer", None):
            fields["quantizer"] = imports.make_function(own)
        made = make(**fields)
    for target in imports.targets(settings):
        _try_rounding(made, target)
    return made


def make_stored(settings: config.StoredActivations | None) -> Stored | None:
    """Returns how activations are kept for the backward pass."""
    if settings is None:
        return None
    return Stored(format_names.parse(settings.format), make_recipe(settings.recipe))


def _try_rounding(recipe: Recipe, target: str) -> None:
    """Rounds the shape of a small matrix, so that what does not fit is told of.

    Raises:
        InputError: A piece of one's own fails, or returns something of another shape.
    """
    x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    fmt = jax.tree.map(jnp.asarray, formats.integer(8))
    key = jax.eval_shape(lambda: jax.random.key(0))
    call = functools.partial(recipe.round, axes=(0, 1))
    if recipe.per_product:
        call = functools.partial(call, use=Use("forward", (1,)))
    with imports.blamed(target, always=True):
        found = jax.eval_shape(
            lambda x, key: call(x, fmt, recipe.init(()), key=key), x, key
        )
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(found)]
    scales = itertools.product((1, 4), (1, 3)) if recipe.per_product else [(1, 1)]
    if shapes not in [[((4, 3), "float32"), (s, "float32")] for s in scales]:
        fits = " that broadcasts to it" if recipe.per_product else " (1, 1)"
        raise InputError(
            f"{target}: rounding a float32 tensor (4, 3) must give one of "
            f"that shape and dtype, and a scale{fits}, got {shapes}."
        )


def _variables(
    experiment: Experiment, task: Task, key: Key[Array, ""]
) -> tuple[PyTree, PyTree]:
    """Returns the first parameters in their dtype, and the model's state."""
    params, model_state = task.init(stream(key, "init"))
    dtype = jnp.dtype(experiment.parameter_dtype)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params), model_state


def first_state(
    experiment: Experiment,
    task: Task,
    program: Program,
    key: Key[Array, ""],
    schedule_state: PyTree | None = None,
) -> TrainState:
    """Returns the state before the first step."""
    params, model_state = _variables(experiment, task, key)
    return init_state(program, params, model_state, key, schedule_state)
