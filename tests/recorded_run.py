"""The small run under a closed loop, with all that the loop was shown, step by step."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaprec_jax import formats, loss_scaling
from adaprec_jax.contractions import Options, Stats
from adaprec_jax.contractions.weights import Weight, Weights
from adaprec_jax.schedules import Schedule, observed
from adaprec_jax.stats import empty
from adaprec_jax.train import make_train_step
from adaprec_jax.train.record import OPERANDS, formats_of
from tests.small_run import PROGRAM, TABLE, batches, first_state, one


class Recorded(NamedTuple):
    """State of `recording`: the schedule's, and what it was shown last."""

    inner: Any
    stats: Stats
    weights: Weights


class Step(NamedTuple):
    """One step, in NumPy.

    Attributes:
        stats: What `update` was shown before the step.
        weights: What `observe` could see at the end of it; of the step before if this
            one was skipped.
        bits: By path and operand, over the plan axes.
        signals: By name and path, after the step.
        state: Of the schedule, after the step.
        applied: Whether it was not skipped.
    """

    stats: Stats
    weights: Weights
    bits: dict[str, dict[str, np.ndarray]]
    signals: dict[str, dict[str, np.ndarray]]
    state: Any
    applied: bool


def recording(schedule: Schedule) -> Schedule:
    """The same schedule, with the tensors and numbers it was shown in its state."""

    def init(table):
        zeros = {
            c.name: Weight(*[jnp.zeros(c.parameter_shape)] * 3)
            for c in table.contractions
            if c.parameter
        }
        nothing = empty(table, schedule.reads)._replace(amax={})
        return Recorded(schedule.init(table), nothing, zeros)

    def update(step, stats, state):
        plan, inner = schedule.update(step, stats, state.inner)
        return plan, Recorded(inner, stats, state.weights)

    def observe(step, weights, state):
        inner = observed(schedule, step, weights, state.inner)
        return state._replace(inner=inner, weights=weights)

    return Schedule(init, update, schedule.reads, 1, observe)


def record(schedule: Schedule, steps: int, skipped: Collection[int] = ()) -> list[Step]:
    """Trains the small run under a schedule, compiled once; some steps are skipped."""
    program = PROGRAM._replace(
        schedule=recording(schedule),
        transformation=loss_scaling.dynamic(optax.sgd(0.5), growth_interval=1000),
        options=Options(),
        watch=schedule.reads,
        gather_every=schedule.every,
    )
    train_step = jax.jit(make_train_step(program))
    state, data, found = first_state(program), batches(steps), []
    for t in range(steps):
        x, y = one(data, t)
        bad = np.full_like(x, np.inf) if t in skipped else x
        state, metrics = train_step(state, (bad, y))
        state = state._replace(halted=jnp.bool_(False))
        signals = dict(schedule.signals(state.schedule_state.inner))
        seen = jax.tree.map(np.asarray, state.schedule_state)
        found.append(
            Step(
                seen.stats,
                seen.weights,
                bits_of(metrics.plan),
                jax.tree.map(np.asarray, signals),
                seen.inner,
                bool(metrics.scalars["finite"]),
            )
        )
    assert train_step._cache_size() == 1
    assert [t for t, step in enumerate(found) if not step.applied] == sorted(skipped)
    return found


def bits_of(packed) -> dict[str, dict[str, np.ndarray]]:
    """The widths of a plan whose products share their operands."""
    widths = np.asarray(formats.bits(formats_of(packed)))
    found, start = {}, 0
    for c in TABLE.contractions:
        size = int(np.prod(c.axes))
        own = widths[start : start + size].reshape(*c.axes, len(OPERANDS))
        places = {"activation": 0, "weight": 1, "gradient": 2}
        found[c.name] = {role: own[..., place] for role, place in places.items()}
        start += size
    return found


def layer_sum(x: np.ndarray, path: str) -> np.ndarray:
    """The sum over each layer of a weight, in float64."""
    (axes,) = (len(c.axes) for c in TABLE.contractions if c.name == path)
    return np.sum(np.float64(x), tuple(range(axes, x.ndim)))
