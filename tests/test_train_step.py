"""The train step: what it changes, what it leaves alone, and what it reports."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import formats, loss_scaling
from adaprec_jax.contractions import Options, Watch, contraction_table
from adaprec_jax.plan import integers
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import Recipes, current, delayed
from adaprec_jax.schedules import constant
from adaprec_jax.train import Program, init_state, make_dispatch, make_train_step
from adaprec_jax.train.record import OPERANDS, formats_of, rows
from tests.small_run import (
    BATCH,
    CLASSES,
    FEATURES,
    LAYERS,
    PROGRAM,
    TABLE,
    Aux,
    assert_equal,
    batches,
    first_state,
    one,
    rate,
)

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

STEP = make_train_step(PROGRAM)


@functools.cache
def compiled():
    return jax.jit(STEP)


@functools.cache
def dispatched():
    return make_dispatch(STEP)


def run(state, steps: int, start: int = 0):
    """The states and metrics after each of some steps."""
    history = []
    for t in range(steps):
        state, metrics = compiled()(state, one(batches(1, start + t), 0))
        history.append((state, metrics))
    return history


@functools.cache
def history():
    return run(first_state(), 12)


def test_a_dispatch_is_its_steps_and_compiles_once_while_the_plan_changes():
    dispatch = dispatched()
    state, stacked = first_state(), []
    for start in (0, 4, 8):
        state, metrics = dispatch(state, batches(4, start))
        stacked.append(metrics)
    assert dispatch._cache_size() == 1
    assert_equal(state, history()[-1][0])
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *stacked)
    expected = jax.tree.map(lambda *x: np.stack(x), *(m for _, m in history()))
    assert_equal(joined, expected)
    plans = {np.asarray(plan).tobytes() for plan in joined.plan}
    assert len(plans) >= 3


def test_the_first_state_is_donated_and_nothing_of_it_is_weakly_typed():
    state = first_state()
    dispatched()(state, batches(4))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(
        getattr(leaf, "weak_type", False) for leaf in jax.tree.leaves(first_state())
    )


def overflow(state):
    """The state and metrics after a step whose loss, near 2, is scaled to infinity."""
    x, y = one(batches(1, int(state.calls)), 0)
    scaling = state.opt_state._replace(scale=jnp.float32(3e38))
    return compiled()(state._replace(opt_state=scaling), (x, (y + 1) % CLASSES))


def test_a_skipped_step_changes_nothing_that_is_learnt_and_is_counted():
    before = history()[3][0]
    after, metrics = overflow(before)
    for name in ("params", "model_state", "recipe_states"):
        assert_equal(getattr(after, name), getattr(before, name))
    assert_equal(after.opt_state.inner, before.opt_state.inner)
    counts = (after.calls, after.opt_state.applied, after.opt_state.skipped)
    assert counts == (5, 4, 1)
    assert not after.measured.finite
    assert not after.halted
    assert metrics.scalars["finite"] == 0
    assert np.isfinite(metrics.scalars["loss"])
    assert metrics.scalars["loss_scale"] == np.float32(3e38)
    assert after.opt_state.scale == np.float32(1.5e38)
    assert_equal(after.measured.tensors, before.measured.tensors)


def test_the_loss_scale_is_no_part_of_what_is_learnt_or_measured():
    state = history()[3][0]
    small = state._replace(opt_state=state.opt_state._replace(scale=jnp.float32(2)))
    (a, a_metrics), (b, b_metrics) = (run(s, 1, 4)[0] for s in (state, small))
    assert_equal(a.params, b.params)
    assert_equal((a.measured.loss, a.measured.gradient_norm),
                 (b.measured.loss, b.measured.gradient_norm))  # fmt: skip
    assert a_metrics.scalars["gradient_norm"] == b_metrics.scalars["gradient_norm"]


def test_the_learning_rate_reads_applied_steps():
    state = history()[3][0]
    after, skipped = overflow(state)
    ((_, applied),) = run(after._replace(opt_state=state.opt_state), 1)
    # Of the last applied step: the fourth, whose count before it was 3, then the fifth.
    assert skipped.scalars["learning_rate"] == rate(3)
    assert applied.scalars["learning_rate"] == rate(4)


def test_statistics_are_gathered_for_the_calls_that_look_at_them():
    for step, (state, metrics) in enumerate(history(), start=1):
        seen = metrics.quantities["underflow_fraction"]
        assert np.isnan(seen).all() == (step % 3 != 0)
        if step % 3:
            continue
        fraction = state.measured.tensors[..., -1] / (
            state.measured.tensors[..., 0] - state.measured.tensors[..., 2]
        )
        np.testing.assert_array_equal(seen, fraction)
    assert_equal(history()[9][0].measured.tensors, history()[8][0].measured.tensors)


def test_metrics_tell_the_bits_of_every_layer_and_what_they_cost():
    assert rows(TABLE) == ("blocks@0", "blocks@1", "last")
    macs = np.array([FEATURES * FEATURES] * LAYERS + [FEATURES * CLASSES])
    widest = np.zeros((len(macs), len(OPERANDS)), np.int32)
    for state, metrics in history():
        bits = np.asarray(formats.bits(formats_of(metrics.plan)))
        np.testing.assert_array_equal(bits[:, [2, 4]], 8)
        assert (bits[:, [0, 1, 3, 5]] == bits[:, :1]).all()
        products = (bits[:, ::2] * bits[:, 1::2]).sum(axis=1)
        cost = np.sum(macs * products) / (np.sum(macs) * 3 * 32 * 32)
        np.testing.assert_allclose(metrics.scalars["cost"], cost, rtol=1e-6)
        widest = np.maximum(widest, bits)
        np.testing.assert_array_equal(formats.bits(formats_of(state.highest)), widest)
    assert len(np.unique(widest[:, 0])) > 1


def test_a_program_that_multiplies_nothing_trains_all_the_same():
    def loss(params, model_state, batch, key):
        value = jnp.mean((params["w"] * batch - 1) ** 2)
        return value, Aux({"loss": value}, model_state)

    params, batch, key = {"w": jnp.float32(1)}, jnp.full(4, 2.0), jax.random.key(0)
    program = Program(
        loss,
        contraction_table(loss, params, {}, batch, key),
        constant(integers(4, 8)),
        loss_scaling.none(optax.sgd(0.125)),
        watch=Watch(("rms",)),
    )
    state = init_state(program, params, {}, key)
    state, metrics = jax.jit(make_train_step(program))(state, batch)
    # d/dw (2 w - 1)^2 = 4 (2 w - 1) = 4
    assert float(state.params["w"]) == 1 - 0.125 * 4
    assert metrics.plan.shape[0] == 0
    assert "cost" not in metrics.scalars


@pytest.mark.parametrize(
    ("poison", "stop", "loss_is_finite"),
    [("batch", {}, False), ("bound", {"loss_above": 0.1}, True)],
)
def test_a_diverged_run_keeps_its_last_sound_parameters(poison, stop, loss_is_finite):
    program = PROGRAM._replace(stop=PROGRAM.stop._replace(**stop))
    before = history()[3][0]
    batch, good = one(batches(2, 4), 0), one(batches(2, 4), 1)
    if poison == "batch":
        batch = (np.full_like(batch[0], np.nan), batch[1])
    step = compiled() if program == PROGRAM else jax.jit(make_train_step(program))
    after, metrics = step(before, batch)
    assert metrics.halted
    assert np.isfinite(metrics.scalars["loss"]) == loss_is_finite
    later, metrics = step(after, good)
    assert metrics.halted
    for name in ("params", "model_state", "recipe_states"):
        assert_equal(getattr(later, name), getattr(before, name))


def test_a_run_whose_loss_scaling_has_diverged_halts():
    state = history()[3][0]
    scaling = state.opt_state._replace(diverged=jnp.bool_(True))
    ((after, metrics),) = run(state._replace(opt_state=scaling), 1)
    assert after.halted
    assert metrics.halted


def test_narrow_parameters_are_the_cast_masters():
    state = first_state(dtype=jnp.bfloat16)
    (after, _), *_, (last, metrics) = run(state, 6)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(after.params))
    assert_equal(
        last.params,
        jax.tree.map(lambda m: m.astype(jnp.bfloat16), last.opt_state.master),
    )
    assert metrics.scalars["applied"] == 6


# Micro-batches: a loss without noise, against the gradient of the whole batch.
FLOAT32 = SharedPrecision(*[formats.get("float32")] * 3)


def quiet_loss(params, model_state, batch, key):
    x, y = batch
    value = jnp.mean(jnp.square(jnp.tanh(x @ params["w"]) - y))
    return value, Aux({}, {"seen": model_state["seen"] + x.shape[0]})


QUIET_PARAMS = {"w": jax.random.normal(jax.random.key(0), (FEATURES, FEATURES))}
QUIET_STATE = {"seen": jnp.int32(0)}
X, Y = jax.random.normal(jax.random.key(1), (2, BATCH, FEATURES))


@functools.cache
def accumulated():
    program = Program(
        quiet_loss,
        contraction_table(quiet_loss, QUIET_PARAMS, QUIET_STATE, (X, Y), None),
        constant(FLOAT32),
        loss_scaling.static(optax.sgd(1.0), 4.0),
        Options(Recipes(delayed(2), current(), current())),
        Watch(("amax", "mean_abs")),
        micro_batches=4,
    )
    state = init_state(program, QUIET_PARAMS, QUIET_STATE, jax.random.key(0))
    return state, jax.jit(make_train_step(program))


def test_micro_batches_give_the_gradient_and_the_statistics_of_the_whole():
    state, step = accumulated()
    after, metrics = step(state, (X, Y))
    loss, gradient = jax.value_and_grad(
        lambda w: quiet_loss({"w": w}, {"seen": 0}, (X, Y), None)[0]
    )(QUIET_PARAMS["w"])
    np.testing.assert_allclose(
        after.params["w"], QUIET_PARAMS["w"] - gradient, rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(metrics.scalars["loss"], loss, rtol=1e-6)
    norm = np.linalg.norm(gradient)
    np.testing.assert_allclose(metrics.scalars["gradient_norm"], norm, rtol=1e-6)
    assert metrics.quantities["amax"][0, 0, 0] == np.abs(X).max()
    assert after.recipe_states["w"].activation.amax == np.abs(X).max()
    np.testing.assert_allclose(
        metrics.quantities["mean_abs"][0, 0, 0], np.abs(X).mean(), rtol=1e-6
    )
    assert after.model_state["seen"] == BATCH


def test_a_bad_micro_batch_skips_the_whole_step():
    state, step = accumulated()
    after, metrics = step(state, (X.at[5, 0].set(jnp.inf), Y.at[5, 0].set(jnp.inf)))
    assert metrics.scalars["skipped"] == 1
    assert_equal((after.params, after.model_state), (state.params, state.model_state))


def test_a_batch_that_cannot_be_cut_is_refused():
    state, step = accumulated()
    with pytest.raises(ValueError, match="15 examples cannot be cut into 4"):
        step(state, (X[:-1], Y[:-1]))


def test_the_compiled_steps_neither_copy_nor_transpose_a_parameter():
    def wide_loss(params, model_state, batch, key):
        x, y = batch
        h = jax.nn.relu(x @ params["in"]) @ params["out"]
        return jnp.mean(jnp.square(h - y)), Aux({}, model_state)

    params = {"in": jnp.zeros((256, 320)), "out": jnp.zeros((320, 256))}
    batch = jnp.zeros((2, 2, 64, 256))
    program = Program(
        wide_loss,
        contraction_table(wide_loss, params, {}, (*batch[0],), None),
        constant(integers(8, 8)),
        loss_scaling.dynamic(optax.adam(1e-3)),
    )
    state = init_state(program, params, {}, jax.random.key(0))
    dispatch = make_dispatch(make_train_step(program))
    compiled = dispatch.lower(state, (*batch,)).compile().as_text()
    assert " fusion(" in compiled
    moved = r"= f32\[(?:256,320|320,256)\]\S* (?:copy|transpose)\("
    assert re.findall(moved, compiled) == []
