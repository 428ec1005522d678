"""Short real runs of schedules that close a loop, with all that they were shown."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaprec_jax import loss_scaling
from adaprec_jax.contractions import Options, Weight
from adaprec_jax.formats import Format
from adaprec_jax.schedules import Schedule
from adaprec_jax.train import make_train_step
from adaprec_jax.train.record import formats_of
from adaprec_jax.train.state import shown
from tests.small_run import PROGRAM, TABLE, batches, first_state, one


class Turn(NamedTuple):
    """One step: what the schedule was shown, what it decided, and what it then was.

    Attributes:
        stats: Of the step before, on the host.
        formats: Of the plan, one for each layer (row) and operand of a product.
        weights: What `observe` was last shown, by path.
        state: Of the schedule, after the step.
        signals: As the metrics have them, in rows.
        finite: Whether the step was applied.
    """

    stats: Any
    formats: Format
    weights: dict[str, Weight]
    state: Any
    signals: dict[str, np.ndarray]
    finite: bool


class Spied(NamedTuple):
    inner: Any
    weights: dict[str, Weight]


def spied(schedule: Schedule) -> Schedule:
    """Keeps the weights that `observe` is shown."""

    def init(table):
        zeros = {
            c.name: Weight(*[jnp.zeros(c.parameter_shape, jnp.float32)] * 3)
            for c in table.contractions
            if c.parameter
        }
        return Spied(schedule.init(table), zeros)

    def update(step, stats, state):
        plan, inner = schedule.update(step, stats, state.inner)
        return plan, state._replace(inner=inner)

    def observe(step, weights, state):
        inner = state.inner
        if schedule.observe is not None:
            inner = schedule.observe(step, weights, inner)
        return Spied(inner, dict(weights))

    return schedule._replace(
        init=init,
        update=update,
        observe=observe,
        signals=lambda state: schedule.signals(state.inner),
    )


NO_OPTIONS = Options()


def follow(
    schedule: Schedule,
    steps: int,
    *,
    rate: float = 0.5,
    skipped=(),
    options=NO_OPTIONS,
    loss_scale: float = 2.0**15,
) -> list[Turn]:
    """Trains for some steps in one compilation; those in `skipped` see NaN."""
    here = PROGRAM._replace(
        schedule=spied(schedule),
        transformation=loss_scaling.static(optax.sgd(rate), loss_scale),
        options=options,
        watch=schedule.reads,
        gather_every=schedule.every,
    )
    traces, train_step = [], make_train_step(here)

    @jax.jit
    def step(state, batch):
        traces.append(None)
        return train_step(state, batch)

    state, turns = first_state(here), []
    for t in range(steps):
        x, y = one(batches(1, t), 0)
        if t in skipped:
            x = jnp.full_like(x, jnp.nan)  # a format may saturate an infinity
        stats = shown(here, state.measured)
        state, metrics = step(state, (x, y))
        state = state._replace(halted=jnp.bool_(False))
        spy, finite = state.schedule_state, state.measured.finite
        found = (stats, formats_of(state.plan), spy.weights, spy.inner, metrics.signals)
        turns.append(Turn(*jax.tree.map(np.asarray, found), bool(finite)))
        assert bool(finite) == (t not in skipped)
    assert len(traces) == 1
    return turns


def rows(by_path) -> np.ndarray:
    """Returns numbers by path as one row, in the order of the metrics."""
    return np.concatenate(
        [np.broadcast_to(by_path[c.name], c.axes).ravel() for c in TABLE.contractions]
    )


def layers(by_path) -> list[np.ndarray]:
    """Returns each layer's array of a tree of parameters by path, float64."""
    found = []
    for c in TABLE.contractions:
        array = np.asarray(by_path[c.name], np.float64)
        found += list(array.reshape(-1, *array.shape[len(c.axes) :]))
    return found


def integer_rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """Rounds to integers of some bits under the smallest power of two that holds all.

    In float64, from the definition: the scale is 2^ceil(log2(amax / (2^(b-1) - 1))).
    """
    top = 2 ** (bits - 1) - 1
    scale = 2.0 ** np.ceil(np.log2(np.abs(x).max() / top))
    return np.clip(np.rint(x / scale), -top - 1, top) * scale
