"""What a run is made of: functions that never change, and the state that does."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32, Key, PyTree

from adaprec_jax.contractions import (
    Options,
    RecipeStates,
    Stats,
    Table,
    Watch,
    init_recipes,
)
from adaprec_jax.loss_scaling import LossScalingState
from adaprec_jax.precision import Plan
from adaprec_jax.schedules import Schedule
from adaprec_jax.stats import empty
from adaprec_jax.train import record
from adaprec_jax.train.record import PackedPlan


class Stop(NamedTuple):
    """When a run counts as diverged; from then on no step changes a parameter.

    Loss scaling has a rule of its own: too many skipped steps at its floor.

    Attributes:
        nonfinite_steps: Losses in a row that are not finite, at least 1.
        loss_above: A larger loss is divergence.
    """

    nonfinite_steps: int = 1
    loss_above: float = float("inf")


class Program(NamedTuple):
    """Everything static about a train step.

    Attributes:
        loss: `(params, model_state, batch, key) -> (loss, aux)`, as a task has it;
            `aux` has `metrics` (name -> float32 scalar) and `model_state`.
        table: `contraction_table(loss, params, model_state, batch, key)`.
        schedule: Decides the plan of each step.
        transformation: What `adaprec_jax.loss_scaling` returned.
        options: Scaling recipes and the dtype between contractions.
        watch: Which statistics are gathered, for the schedule and the metrics.
        gather_every: Calls between two gatherings. They are gathered for the calls
            that are multiples of it, when a schedule that looks as often will look.
        micro_batches: Parts of a batch whose gradients are averaged.
        stop: When the run counts as diverged.
        costs: Beside the bit operations, what a step costs: traced functions of table
            and plan, by name.
    """

    loss: Callable[..., tuple[Float32[Array, ""], Any]]
    table: Table
    schedule: Schedule
    transformation: optax.GradientTransformationExtraArgs
    options: Options = Options()
    watch: Watch = Watch()
    gather_every: int = 1
    micro_batches: int = 1
    stop: Stop = Stop()
    costs: Mapping[str, Callable[[Table, Plan], Float32[Array, ""]]] = {}


class Measured(NamedTuple):
    """What the next decision of the schedule is taken from.

    Attributes:
        loss: Of the last step, without the loss scale.
        gradient_norm: Of the last step, without the loss scale.
        finite: Whether the last step was applied.
        tensors: Statistics in rows (`record`), those gathered last by a finite step.
    """

    loss: Float32[Array, ""]
    gradient_norm: Float32[Array, ""]
    finite: Bool[Array, ""]
    tensors: Float32[Array, "rows roles formats fields"]


class TrainState(NamedTuple):
    """Everything that a step changes, and the key; a checkpoint holds all of it.

    Attributes:
        calls: Steps so far, skipped ones included. It is the position in the data and
            what schedules and cadences read; a pack of runs shares one.
        params: The model's parameters.
        model_state: What else the model keeps, such as batch statistics.
        opt_state: Of the loss scaling: scale, counters, optimizer, masters.
        schedule_state: Of the schedule.
        recipe_states: Of the scaling recipes, by contraction.
        measured: What the schedule is shown next.
        plan: Formats of the last step (before the first, of the first), in rows.
        highest: The widest formats so far, in rows.
        key: The run's key; it never changes.
        bad_losses: Losses in a row that were not finite.
        halted: Whether the run has diverged.
    """

    calls: Int32[Array, ""]
    params: PyTree
    model_state: PyTree
    opt_state: LossScalingState
    schedule_state: PyTree
    recipe_states: RecipeStates
    measured: Measured
    plan: PackedPlan
    highest: PackedPlan
    key: Key[Array, ""]
    bad_losses: Int32[Array, ""]
    halted: Bool[Array, ""]


def init_state(
    program: Program,
    params: PyTree,
    model_state: PyTree,
    key: Key[Array, ""],
    schedule_state: PyTree | None = None,
) -> TrainState:
    """Returns the state before the first step; it traces under `jit` and `vmap`.

    Every leaf is strongly typed and a copy, so that the state may be donated.

    Args:
        program: What is trained.
        params: Parameters, as the task's `init` made them, in the dtype to train in.
        model_state: What else `init` made.
        key: The run's key, from which `stream` derives all others.
        schedule_state: In place of `program.schedule.init(program.table)`.
    """
    if schedule_state is None:
        schedule_state = program.schedule.init(program.table)
    nothing = empty(program.table, program.watch)
    zero = jnp.int32(0)
    plan, _ = program.schedule.update(zero, nothing, schedule_state)
    packed = record.pack_plan(plan, program.table)
    state = TrainState(
        calls=zero,
        params=params,
        model_state=model_state,
        opt_state=program.transformation.init(params),  # pyright: ignore[reportArgumentType]  (optax: any tree)
        schedule_state=schedule_state,
        recipe_states=init_recipes(program.table, program.options.recipes),
        measured=Measured(
            nothing.loss,
            nothing.gradient_norm,
            nothing.finite,
            record.pack_tensors(
                nothing.tensors, nothing.what_if, program.table, program.watch
            ),
        ),
        plan=packed,
        highest=packed,
        key=key,
        bad_losses=zero,
        halted=jnp.bool_(False),
    )
    return jax.tree.map(_own, state)


def shown(program: Program, measured: Measured) -> Stats:
    """Returns what the schedule is shown of the last step."""
    tensors, what_if = record.unpack_tensors(
        measured.tensors, program.table, program.watch
    )
    return Stats(
        loss=measured.loss,
        gradient_norm=measured.gradient_norm,
        finite=measured.finite,
        tensors=tensors,
        what_if=what_if,
        amax={},
    )


def plan_of(program: Program, state: TrainState, packed: PackedPlan) -> Plan:
    """Returns a plan of this program from its rows (`state.plan`, `state.highest`)."""

    def decide(state: TrainState) -> Plan:
        stats = shown(program, state.measured)
        return program.schedule.update(state.calls, stats, state.schedule_state)[0]

    # Which entries share operands is static: it takes no computation to know.
    return record.unpack_plan(packed, program.table, jax.eval_shape(decide, state))


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Returns the key of one use of randomness: "init", "rounding", "dropout".

    >>> key = jax.random.key(0)
    >>> bool(stream(key, "init") == stream(key, "rounding"))
    False
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _own(leaf: Array) -> Array:
    """Returns a strongly typed copy: one buffer cannot be donated twice."""
    leaf = jnp.asarray(leaf)
    return jnp.array(leaf, leaf.dtype, copy=True)
