"""Schedules that look at the weights: what they are shown, when, and what is kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import loss_scaling, plan as plans, schedules
from adaprec_jax.contractions import Options, Watch, contraction_table, weights_of
from adaprec_jax.schedules import Schedule, Scope
from adaprec_jax.testing import check_schedule
from adaprec_jax.train import make_train_step
from tests.small_run import (
    LAYERS,
    PROGRAM,
    TABLE,
    assert_equal,
    batches,
    first_state,
    init,
    one,
)


class Sums(NamedTuple):
    scope: Scope
    gradient: dict[str, jax.Array]
    update: dict[str, jax.Array]
    looks: jax.Array


def adding_up(every: int = 1) -> Schedule:
    """Adds up the gradients and updates that it is shown, layer by layer."""

    def init(table):
        zeros = {c.name: jnp.zeros(c.axes, jnp.float32) for c in table.contractions}
        return Sums(Scope(table), zeros, zeros, jnp.int32(0))

    def update(step, stats, state):
        entry = plans.integers(8 + jnp.minimum(state.looks, 4), 8)
        return plans.uniform(state.scope.table, entry), state

    def observe(step, weights, state):
        def added(sums, field):
            shown = {name: getattr(w, field) for name, w in weights.items()}
            return sums | {
                name: sums[name] + jnp.sum(x, tuple(range(sums[name].ndim, x.ndim)))
                for name, x in shown.items()
            }

        return state._replace(
            gradient=added(state.gradient, "gradient"),
            update=added(state.update, "update"),
            looks=state.looks + 1,
        )

    return Schedule(
        init,
        update,
        every=every,
        observe=observe,
        signals=lambda state: {"gradient_sum": state.gradient},
    )


def program(schedule: Schedule):
    """The small run in plain SGD, so that a gradient follows from two parameters."""
    return PROGRAM._replace(
        schedule=schedule,
        transformation=loss_scaling.dynamic(optax.sgd(0.5), growth_interval=3),
        options=Options(),
        watch=Watch(),
    )


def test_the_weights_shown_are_those_of_the_step_without_the_loss_scale():
    here = program(adding_up())
    step = jax.jit(make_train_step(here))
    state = first_state(here)
    history = [state]
    for t in range(4):
        state, metrics = step(state, one(batches(1, t), 0))
        history.append(state)
    before, after = (s.params for s in (history[0], history[-1]))
    moved = jax.tree.map(lambda a, b: np.asarray(b - a, np.float64), before, after)
    found = state.schedule_state
    by_name = {"blocks": moved["blocks"]["w"].sum((1, 2)), "last": moved["last"]["w"]}
    np.testing.assert_allclose(found.update["blocks"], by_name["blocks"], rtol=1e-3)
    np.testing.assert_allclose(
        found.gradient["blocks"], by_name["blocks"] / -0.5, rtol=1e-3
    )
    np.testing.assert_allclose(
        found.gradient["last"], by_name["last"].sum() / -0.5, rtol=1e-3, atol=1e-6
    )
    signals = metrics.signals["gradient_sum"]
    assert signals.shape == (LAYERS + 1,)
    np.testing.assert_array_equal(signals[:LAYERS], found.gradient["blocks"])


def test_a_skipped_step_is_not_seen_and_a_cadence_is_kept():
    here = program(adding_up(every=2))
    step = jax.jit(make_train_step(here))
    state, looks = first_state(here), []
    for t in range(6):
        x, y = one(batches(1, t), 0)
        bad = t == 3
        state, _ = step(state, (jnp.full_like(x, jnp.inf) if bad else x, y))
        state = state._replace(halted=jnp.bool_(False))
        looks.append(int(state.schedule_state.looks))
    assert looks == [0, 1, 1, 1, 1, 2]  # the fourth step was skipped


def test_masters_are_shown_where_parameters_are_narrow():
    here = program(adding_up())
    state = first_state(here, dtype=jnp.bfloat16)
    after, _ = jax.jit(make_train_step(here))(state, one(batches(1), 0))
    moved = jax.tree.map(jnp.subtract, after.opt_state.master, state.opt_state.master)
    np.testing.assert_allclose(
        after.schedule_state.update["last"], np.sum(moved["last"]["w"]), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("around", "looks"),
    [
        (lambda s: schedules.clip(s, min_bits=2, max_bits=9), [2]),
        (lambda s: schedules.delay(s, 1), [2]),
        (lambda s: schedules.hold(s, 2), [2]),
        (lambda s: schedules.join([s, s], [3]), [1, 1]),  # each from its beginning
        (lambda s: schedules.per_layer({"last": s}, default=s), [2, 2]),
    ],
    ids=["clip", "delay", "hold", "join", "per_layer"],
)
def test_combinators_hand_the_weights_on(around, looks):
    here = program(around(adding_up(2)))
    step, state = jax.jit(make_train_step(here)), first_state(here)
    for t in range(5):
        state, metrics = step(state, one(batches(1, t), 0))
    assert np.isfinite(metrics.signals["gradient_sum"]).all()
    inner = jax.tree.leaves(
        state.schedule_state, is_leaf=lambda node: isinstance(node, Sums)
    )
    assert [int(node.looks) for node in inner if isinstance(node, Sums)] == looks


def test_a_schedule_that_looks_at_weights_keeps_the_contract():
    check_schedule(schedules.join([adding_up(2), adding_up()], [3]))


def test_layers_that_do_not_lie_first_are_refused():
    params = {"w": jnp.zeros((3, 2, 4))}

    def wide(params, x):
        return jax.vmap(lambda w, x: x @ w, in_axes=(1, 0))(params["w"], x)

    table = contraction_table(wide, params, jnp.zeros((2, 5, 3)))
    with pytest.raises(ValueError, match=r"must lie along the first axes.*\(3, 2, 4\)"):
        weights_of(table, params, params, params)


def test_the_table_names_the_parameter_and_its_shape():
    found = {c.name: c.parameter for c in TABLE.contractions}
    assert found == {"blocks": "blocks/w", "last": "last/w"}
    params, _ = init(jax.random.key(0))
    shapes = {c.name: c.parameter_shape for c in TABLE.contractions}
    assert shapes == {name: params[name]["w"].shape for name in found}


def test_a_step_of_a_watching_schedule_does_not_depend_on_how_it_is_called():
    here = program(adding_up(2))
    step = make_train_step(here)
    state, stacked = first_state(here), batches(4)
    scanned, _ = jax.jit(lambda s, b: jax.lax.scan(step, s, b))(state, stacked)
    for t in range(4):
        state, _ = jax.jit(step)(state, one(stacked, t))
    assert_equal(scanned.schedule_state, state.schedule_state)
