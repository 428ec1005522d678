"""The train step: a pure function of state and batch, and several of them in a row."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float32, PyTree

from adaprec_jax import loss_scaling
from adaprec_jax.contractions import (
    Stats,
    Table,
    scopes,
    update_recipes,
    weights_of,
)
from adaprec_jax.cost import step_cost
from adaprec_jax.loss_scaling import LossScalingState
from adaprec_jax.precision import Plan
from adaprec_jax.schedules import observed, select
from adaprec_jax.train import record
from adaprec_jax.train.gradients import Gradients, make_gradients
from adaprec_jax.train.record import PackedPlan
from adaprec_jax.train.state import Measured, Program, TrainState, shown


class Metrics(NamedTuple):
    """What a human wants to know of a step; stacked along a leading axis of steps.

    Attributes:
        scalars: By name: the task's metrics, `loss`, `gradient_norm` (both without the
            loss scale), `finite`, `loss_scale` (in force), `applied`, `skipped` and
            `consecutive_skips` (steps so far), `cost` (bit operations of this step,
            relative to float32), `cost/...` (the program's other costs) and
            `learning_rate` (of the last applied step, if the optimizer is under
            `optax.inject_hyperparams`).
        plan: The formats in force, in rows; see `record`.
        quantities: What is watched, by name, in rows; NaN in steps that did not gather.
        signals: Numbers of the schedule after the step, by name, in rows; NaN where it
            has none.
        halted: Whether the run has diverged, in this step or before.
    """

    scalars: dict[str, Float32[Array, "*steps"]]
    plan: PackedPlan
    quantities: dict[str, Float32[Array, "*steps rows roles formats"]]
    signals: dict[str, Float32[Array, "*steps rows"]]
    halted: Bool[Array, "*steps"]


TrainStep: TypeAlias = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(program: Program) -> TrainStep:
    """Returns the pure function `train_step(state, batch) -> (state, metrics)`.

    In this order: the schedule decides the plan from what the last step measured; loss,
    gradients and statistics are computed under it; they are tested once, unrounded; the
    loss scaling unscales and applies them, or skips the step. A skipped step leaves
    parameters, model state, optimizer and scaling recipes as they were, to the bit; it
    counts in `calls`, and the schedule is told that it was not finite.

    Step t of a scheduled run equals, to the bit, one step from the same state with the
    plan of step t held constant.
    """
    gradients_of = make_gradients(program, program.watch)

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        stats = shown(program, state.measured)
        with scopes.part("schedule"):
            plan, schedule_state = program.schedule.update(
                state.calls, stats, state.schedule_state
            )
        # Whatever the plan was computed from, the step is compiled in the same way.
        plan, packed = lax.optimization_barrier(
            (plan, record.pack_plan(plan, program.table))
        )
        gathers = (state.calls + 1) % program.gather_every == 0
        found = gradients_of(state, plan, batch, gathers)
        state = _watch_loss(program, state, found.loss)
        applies = found.stats.finite & ~state.halted
        with scopes.part("optimizer"):
            moved = _update_params(program, state, found.gradients, applies)
        recipe_states = update_recipes(
            program.options.recipes, program.table, state.recipe_states, found.stats
        )
        with scopes.part("statistics"):
            measured = _measure(program, state, found, gathers, applies)
        with scopes.part("schedule"):
            decided = _observe(program, schedule_state, state, found, moved, applies)
        after = moved._replace(
            calls=state.calls + 1,
            model_state=select(applies, found.model_state, state.model_state),
            schedule_state=decided,
            recipe_states=select(applies, recipe_states, state.recipe_states),
            measured=measured,
            plan=packed,
            highest=record.wider(state.highest, packed),
        )
        quantities = record.quantities(_in_rows(program, found.stats), program.watch)
        metrics = Metrics(
            scalars=_scalars(state, found, after) | _costs(program, plan),
            plan=packed,
            quantities=jax.tree.map(
                lambda x: jnp.where(gathers, x, jnp.nan), quantities
            ),
            signals=record.pack_signals(
                program.schedule.signals(after.schedule_state), program.table
            ),
            halted=after.halted,
        )
        return after, metrics

    return train_step


def make_dispatch(
    train_step: Callable[..., tuple[TrainState, Metrics]],
    out_shardings: PyTree = None,
    on_trace: Callable[[], object] = lambda: None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `dispatch(state, batches)`: one compiled call for several steps.

    The leading axis of `batches` counts the steps, and that of the metrics returned.
    The state is donated: its memory is used again, and it cannot be read afterwards.

    Args:
        train_step: What `make_train_step` returned.
        out_shardings: Of the state and the metrics, on a mesh; see `mesh`.
        on_trace: Called at each trace, that is before each compilation.
    """

    def dispatch(state: TrainState, batches: PyTree) -> tuple[TrainState, Metrics]:
        on_trace()
        return lax.scan(train_step, state, batches)

    return jax.jit(dispatch, donate_argnums=0, out_shardings=out_shardings)


def _watch_loss(
    program: Program, state: TrainState, loss: Float32[Array, ""]
) -> TrainState:
    """Returns the state with the count of bad losses, and halted by them."""
    stop = program.stop
    bad_losses = jnp.where(jnp.isfinite(loss), 0, state.bad_losses + 1)
    halts = (bad_losses >= stop.nonfinite_steps) | (loss > stop.loss_above)
    return state._replace(bad_losses=bad_losses, halted=state.halted | halts)


def _update_params(
    program: Program, state: TrainState, gradients: PyTree, applies: Bool[Array, ""]
) -> TrainState:
    """Returns the state after loss scaling and optimizer, halted if they diverged."""
    updates, opt_state = program.transformation.update(
        gradients,
        state.opt_state,
        state.params,
        finite=applies,
    )
    opt_state = cast(LossScalingState, opt_state)
    return state._replace(
        params=loss_scaling.apply(state.params, updates, opt_state),
        opt_state=opt_state,
        halted=state.halted | opt_state.diverged,
    )


def _observe(
    program: Program,
    schedule_state: PyTree,
    before: TrainState,
    found: Gradients,
    moved: TrainState,
    applies: Bool[Array, ""],
) -> PyTree:
    """Returns the schedule's state after it saw what the step did to the weights."""
    schedule = program.schedule
    if schedule.observe is None:
        return schedule_state
    old, new = (loss_scaling.masters(s.params, s.opt_state) for s in (before, moved))
    updates = jax.tree.map(jnp.subtract, new, old)
    gradients = loss_scaling.unscale(found.gradients, before.opt_state)
    weights = weights_of(program.table, old, gradients, updates)

    return observed(schedule, before.calls, weights, schedule_state, applies)


def _measure(
    program: Program,
    state: TrainState,
    found: Gradients,
    gathers: Bool[Array, ""],
    applies: Bool[Array, ""],
) -> Measured:
    """Returns what the schedule is shown next, without the loss scale."""
    return Measured(
        loss=found.loss,
        gradient_norm=found.stats.gradient_norm / state.opt_state.scale,
        finite=applies,
        tensors=jnp.where(
            gathers & applies, _in_rows(program, found.stats), state.measured.tensors
        ),
    )


def _in_rows(program: Program, stats: Stats) -> Array:
    return record.pack_tensors(
        stats.tensors, stats.what_if, program.table, program.watch
    )


def _scalars(
    before: TrainState, found: Gradients, after: TrainState
) -> dict[str, Float32[Array, ""]]:
    scaling = after.opt_state
    scalars = {
        **found.metrics,
        "loss": found.loss,
        "gradient_norm": after.measured.gradient_norm,
        "finite": found.stats.finite,
        "loss_scale": before.opt_state.scale,
        "applied": scaling.applied,
        "skipped": scaling.skipped,
        "consecutive_skips": scaling.consecutive_skips,
    }
    rates = optax.tree_utils.tree_get_all_with_path(
        scaling.inner,
        "learning_rate",
        filtering=lambda path, value: isinstance(value, jax.Array),
    )
    if len(rates) == 1:
        scalars["learning_rate"] = rates[0][1]
    return {name: value.astype(jnp.float32) for name, value in scalars.items()}


def _costs(program: Program, plan: Plan) -> dict[str, Float32[Array, ""]]:
    found = {
        f"cost/{name}": jnp.asarray(cost(program.table, plan), jnp.float32)
        for name, cost in program.costs.items()
    }
    if _counts(program.table):
        found["cost"] = step_cost(program.table, plan)
    return found


def _counts(table: Table) -> bool:
    """Returns whether the cost of a step can be counted; not inside a while loop."""
    return bool(table.contractions) and all(c.executions for c in table.contractions)
