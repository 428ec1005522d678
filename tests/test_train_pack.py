"""A pack of runs trains as each of them would alone, in one compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import loss_scaling
from adaprec_jax.plan import integers
from adaprec_jax.schedules import constant, piecewise, stack
from adaprec_jax.train import (
    evaluate,
    init_pack,
    init_state,
    make_dispatch,
    make_pack_dispatch,
    make_score,
    make_train_step,
    pack_score,
    run_of,
)
from tests import small_run
from tests.small_run import PROGRAM, TABLE, batches

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

STEPS, DISPATCH = 12, 4
SCHEDULES = [
    constant(integers(8, 8)),
    constant(integers(3, 8)),
    piecewise([5], [integers(4, 8), integers(6, 8)]),
]
RATES = [0.1, 0.2, 0.05]
# The examples of all seeds, and the rows of each run's steps.
POOL = batches(1, size=64)
ARRAYS = jax.tree.map(lambda leaf: leaf[0], POOL)
ROWS = np.random.default_rng(0).integers(64, size=(STEPS, len(RATES), 16))
EXACT = PROGRAM.options._replace(recipes=PROGRAM.options.recipes._replace(
    gradient=PROGRAM.options.recipes.weight))  # fmt: skip
PACKED = PROGRAM._replace(
    schedule=SCHEDULES[0],
    transformation=loss_scaling.none(optax.inject_hyperparams(optax.sgd)(0.1)),
    options=EXACT,
)


def gather(arrays, rows):
    return jax.tree.map(lambda leaf: leaf[rows], arrays)


def init(key, schedule_state):
    return init_state(PACKED, *small_run.init(key), key, schedule_state)


def with_rates(state, rates):
    inner = optax.tree_utils.tree_set(state.opt_state.inner, learning_rate=rates)
    return state._replace(opt_state=state.opt_state._replace(inner=inner))


def first_pack():
    keys = jax.vmap(jax.random.key)(jnp.arange(len(RATES)))
    states = [schedule.init(TABLE) for schedule in SCHEDULES]
    return with_rates(init_pack(init, keys, states), jnp.float32(RATES))


@functools.cache
def trained():
    dispatch = make_pack_dispatch(PACKED, gather)
    state, parts = first_pack(), []
    for start in range(0, STEPS, DISPATCH):
        rows = ROWS[start : start + DISPATCH]
        state, metrics = dispatch(state, rows, ARRAYS)
        parts.append(metrics)
    return dispatch, state, jax.tree.map(lambda *x: np.concatenate(x), *parts)


@pytest.mark.slow
def test_a_pack_compiles_once_and_branches_on_what_all_its_runs_share():
    dispatch, state, _ = trained()
    assert dispatch._cache_size() == 1
    assert int(state.calls) == STEPS
    lowered = dispatch.lower(first_pack(), ROWS[:DISPATCH], ARRAYS).as_text()
    # Statistics of three tensors of two contractions, gathered now and then.
    assert lowered.count("stablehlo.case") >= 6


@pytest.mark.parametrize("run", range(len(RATES)))
def test_a_run_in_a_pack_equals_the_run_alone(run):
    # Formats and decisions to the bit; numbers up to float32's reductions, whose order
    # differs, and which training multiplies: 1e-5 relative after 12 steps.
    schedule_state = jax.tree.map(
        lambda leaf: leaf[run], stack([s.init(TABLE) for s in SCHEDULES])
    )
    state = init(jax.random.key(run), schedule_state)
    state = with_rates(state, jnp.float32(RATES[run]))
    rows = ROWS[:, run].reshape(STEPS // DISPATCH, DISPATCH, -1)
    alone = []
    for part in rows:
        state, metrics = solo()(state, gather(ARRAYS, part))
        alone.append(metrics)
    alone = jax.tree.map(lambda *x: np.concatenate(x), *alone)
    _, pack, metrics = trained()
    together = jax.tree.map(lambda leaf: leaf[:, run], metrics)
    np.testing.assert_array_equal(together.plan, alone.plan)
    for name, values in alone.scalars.items():
        np.testing.assert_allclose(together.scalars[name], values, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (run_of(pack, run).params, state.params)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@functools.cache
def solo():
    return make_dispatch(make_train_step(PACKED))


def test_a_pack_is_evaluated_in_one_call_each_run_on_its_own_rows():
    _, state, _ = trained()
    score = make_score(PACKED, small_run.scores)
    rows = ROWS[:2, :, :].transpose(1, 0, 2).reshape(len(RATES), 4, 8)
    batches = [(rows[:, i], ARRAYS) for i in range(4)]
    found = evaluate(jax.jit(pack_score(score, gather)), state, batches, count=30)
    assert found["now"]["accuracy"].shape == (len(RATES),)
    for run in range(len(RATES)):
        one = run_of(state, run)
        part = gather(ARRAYS, rows[run].ravel()[:30])
        exact = small_run.scores(one.params, one.model_state, part)
        np.testing.assert_allclose(
            found["float32"]["first"][run], exact["first"].mean(), rtol=1e-5
        )
