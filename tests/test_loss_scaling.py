"""Loss scaling: the scale's trajectory, exact skips, masters, composition."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from adaprec_jax import loss_scaling, schedules
from adaprec_jax.contractions import contraction_table
from adaprec_jax.plan import integers
from adaprec_jax.train import Program, init_state, make_train_step
from tests.small_run import Aux

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

# Made by running torch.amp.GradScaler (torch 2.13.0, CPU) on a two-element parameter
# w under SGD(lr=1, momentum=0.5) with the loss sum(w), whose gradient is 1, and with
# sum(inf * w) or sum(nan * w) where the pattern has a 0; patterns are seeded random.
# Columns: growth interval, growth factor, backoff factor, first scale, pattern,
# scale after each step, growth tracker after each step, w at the end.
TORCH = {
    "interval 3": (
        (3, 2.0, 0.5, 16.0),
        "0111111100111011111001111101111111101110",
        "8 8 8 16 16 16 32 32 16 8 8 8 16 8 8 8 16 16 16 8 4 4 4 8 8 8 4 4 4 8 8 8 16 "
        "16 16 8 8 8 16 8",
        "0120120100120012012001201201201201201200",
        -60.0,
    ),
    "every other step overflows": (
        (2, 2.0, 0.5, 65536.0),
        "1100111011100011110000000111000011101111",
        "65536 131072 65536 32768 32768 65536 65536 32768 32768 65536 65536 32768 "
        "16384 8192 8192 16384 16384 32768 16384 8192 4096 2048 1024 512 256 256 512 "
        "512 256 128 64 32 32 64 64 32 32 64 64 128",
        "1000101010100010100000000101000010101010",
        -42.0,
    ),
    "interval 5": (
        (5, 2.0, 0.5, 32768.0),
        "1111100111111111111110111011111111111011",
        "32768 32768 32768 32768 65536 32768 16384 16384 16384 16384 16384 32768 "
        "32768 32768 32768 32768 65536 65536 65536 65536 65536 32768 32768 32768 "
        "32768 16384 16384 16384 16384 16384 32768 32768 32768 32768 32768 65536 "
        "65536 32768 32768 32768",
        "1234000123401234012340123012340123401012",
        -68.0,
    ),
    "interval 1": (
        (1, 2.0, 0.5, 1024.0),
        "0010011110100001111011111011101011111111",
        "512 256 512 256 128 256 512 1024 2048 1024 2048 1024 512 256 128 256 512 "
        "1024 2048 1024 2048 4096 8192 16384 32768 16384 32768 65536 131072 65536 "
        "131072 65536 131072 262144 524288 1048576 2097152 4194304 8388608 16777216",
        "0000000000000000000000000000000000000000",
        -52.0,
    ),
    "no powers of two": (
        (3, 1.5, 0.75, 100.0),
        "111111011110101100111010",
        "100 100 150 150 150 225 168.75 168.75 168.75 253.125 253.125 189.84375 "
        "189.84375 142.382812 142.382812 142.382812 106.787109 80.090332 80.090332 "
        "80.090332 120.135498 90.1016235 90.1016235 67.5762177",
        "120120012010101200120010",
        -32.00001525878906,
    ),
    "factors 4 and 1/8": (
        (2, 4.0, 0.125, 256.0),
        "111001111101111101101111",
        "256 1024 1024 128 16 16 64 64 256 256 32 32 128 128 512 512 64 64 256 32 32 "
        "128 128 512",
        "101001010101010101001010",
        -36.000003814697266,
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def run(tx, params, gradients):
    """Runs `tx` in one scan; returns parameters, last state and all states."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = loss_scaling.apply(params, updates, state)
        return (params, state), state

    (params, state), states = jax.lax.scan(step, (params, tx.init(params)), gradients)
    return params, state, states


def assert_same_bits(actual, expected):
    """Compares two trees leaf by leaf, -0 and NaN included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def tree(*values, dtype=jnp.float32):
    """A tree of two leaves."""
    return {"w": jnp.asarray(values, dtype), "b": jnp.zeros((1,), dtype)}


# --- The scale -----------------------------------------------------------------------


@pytest.mark.parametrize("row", TORCH.values(), ids=TORCH)
def test_scale_counter_and_parameters_follow_torch_grad_scaler(row):
    (interval, growth, backoff, init_scale), pattern, scales, tracker, final = row
    tx = loss_scaling.dynamic(
        optax.sgd(1.0, momentum=0.5),
        init_scale=init_scale,
        growth_interval=interval,
        growth_factor=growth,
        backoff_factor=backoff,
    )
    before = [init_scale, *map(float, scales.split())][:-1]
    gradients = np.array(
        [
            np.float32(scale) if finite == "1" else (np.nan, np.inf)[i % 2]
            for i, (scale, finite) in enumerate(zip(before, pattern, strict=True))
        ],
        np.float32,
    )
    w, state, states = run(tx, jnp.zeros(2), jnp.stack([gradients] * 2, axis=1))
    expected = np.array([float(scale) for scale in scales.split()], np.float32)
    np.testing.assert_array_equal(states.scale, expected)
    assert "".join(map(str, states.finite_steps.tolist())) == tracker
    np.testing.assert_array_equal(w, np.full(2, final, np.float32))
    assert state.calls == len(pattern)
    assert state.applied == pattern.count("1")
    assert state.skipped == pattern.count("0")


def grad_scaler(pattern, interval, scale, low, high):
    """GradScaler as its documentation tells it, between a floor and a ceiling."""
    steps, trajectory = 0, []
    for finite in pattern:
        if not finite:
            scale, steps = max(scale / 2, low), 0
        elif (steps := steps + 1) == interval:
            scale, steps = min(scale * 2, high), 0
        trajectory.append((scale, steps))
    return trajectory


CONFIGS = {
    (interval, *bounds): loss_scaling.dynamic(
        optax.identity(),
        init_scale=8.0,
        growth_interval=interval,
        min_scale=bounds[0],
        max_scale=bounds[1],
    )
    for interval in (1, 2, 5)
    for bounds in ((2.0**-126, 2.0**126), (2.0, 32.0))
}


@settings(deadline=None, max_examples=60)
@given(
    pattern=st.lists(st.booleans(), min_size=60, max_size=60),
    config=st.sampled_from(list(CONFIGS)),
)
def test_trajectory_equals_the_documented_rule_on_any_overflow_pattern(pattern, config):
    gradients = jnp.where(jnp.array(pattern), 1.0, jnp.inf)
    *_, states = run(CONFIGS[config], jnp.zeros(()), gradients)
    interval, *bounds = config
    expected = grad_scaler(pattern, interval, 8.0, *bounds)
    trajectory = zip(states.scale.tolist(), states.finite_steps.tolist(), strict=True)
    assert list(trajectory) == expected


@pytest.mark.parametrize(
    ("init_scale", "interval", "pattern", "expected"),
    [
        # Growth on the N-th finite step, not on the one after it.
        (16, 3, "1110111111100", [16, 16, 32, 16, 16, 16, 32, 32, 32, 64, 64, 32, 16]),
        (32768, 2, "111011", [32768, 65536, 65536, 32768, 32768, 65536]),
    ],
)
def test_scale_grows_on_the_nth_finite_step(init_scale, interval, pattern, expected):
    tx = loss_scaling.dynamic(
        optax.identity(), init_scale=init_scale, growth_interval=interval
    )
    gradients = jnp.array([1.0 if finite == "1" else jnp.nan for finite in pattern])
    *_, states = run(tx, jnp.zeros(()), gradients)
    assert states.scale.tolist() == expected


def test_scale_holds_at_both_ends_of_its_range_and_is_never_zero_or_infinite():
    tx = loss_scaling.dynamic(
        optax.sgd(1.0),
        init_scale=2.0**125,
        growth_interval=1,
        growth_factor=2.0**10,
        backoff_factor=2.0**-10,
        min_scale=2.0**-126,
        max_scale=2.0**126,
    )
    gradients = jnp.concat([jnp.ones(3), jnp.full(60, jnp.inf), jnp.zeros(60)])
    *_, states = run(tx, jnp.zeros(()), gradients)
    assert states.scale[2] == 2.0**126
    assert states.scale[62] == 2.0**-126
    assert states.scale[-1] == 2.0**126
    assert bool(jnp.all((states.scale > 0) & jnp.isfinite(states.scale)))


def test_every_setting_survives_jit():
    tx = loss_scaling.dynamic(
        optax.sgd(1.0),
        init_scale=0.25,
        growth_interval=2,
        growth_factor=4.0,
        backoff_factor=0.25,
        min_scale=2.0**-5,
        max_scale=0.25,
        max_consecutive_skips=3,
    )
    gradients = jnp.array([jnp.inf] * 6 + [1.0] * 6)
    *_, states = run(tx, jnp.zeros(()), gradients)
    assert states.scale.tolist()[:6] == [2.0**-4] + [2.0**-5] * 5
    assert states.scale.tolist()[7::2] == [2.0**-3, 0.25, 0.25]
    assert states.diverged.tolist() == [False] * 4 + [True] * 8
    state = tx.init(jnp.zeros(()))
    for i, gradient in enumerate(gradients):
        _, state = tx.update(gradient, state)
        assert state.scale == states.scale[i]


def test_divergence_is_reported_after_the_stated_skips_at_the_floor_and_stays():
    tx = loss_scaling.dynamic(
        optax.sgd(1.0), init_scale=4.0, min_scale=1.0, max_consecutive_skips=3
    )
    bad, good = jnp.inf, 1.0
    gradients = jnp.array([bad] * 4 + [good] + [bad] * 2 + [good] + [bad] * 3 + [good])
    w, state, states = run(tx, jnp.zeros(()), gradients)
    assert states.skips_at_floor.tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0]
    assert states.consecutive_skips.tolist() == [1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 0]
    assert states.diverged.tolist() == [False] * 10 + [True] * 2
    assert (w, state.applied) == (-3.0, 3)  # the three good ones and nothing else


@pytest.mark.parametrize("factory", [loss_scaling.none, loss_scaling.static])
def test_a_scale_that_cannot_move_is_its_own_floor(factory):
    arguments = () if factory is loss_scaling.none else (1024.0,)
    tx = factory(optax.sgd(1.0), *arguments, max_consecutive_skips=3)
    *_, states = run(tx, jnp.zeros(()), jnp.full(3, jnp.nan))
    assert states.diverged.tolist() == [False, False, True]
    assert set(states.scale.tolist()) == {arguments[0] if arguments else 1.0}


# --- Unscaling -----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**15, 2.0**100])
def test_powers_of_two_are_undone_exactly(scale, key):
    gradients = jax.random.normal(key, (1000,))
    tx = loss_scaling.static(optax.identity(), scale)
    updates, _ = tx.update(gradients * scale, tx.init(gradients))
    assert_same_bits(updates, gradients)


def test_other_scales_are_undone_within_one_and_a_half_units_in_the_last_place(key):
    gradients = jax.random.normal(key, (100_000,))
    tx = loss_scaling.static(optax.identity(), 3.0)
    updates, _ = tx.update(gradients, tx.init(gradients))
    exact = np.asarray(gradients, np.float64) / 3.0
    error = np.abs(np.asarray(updates, np.float64) - exact)
    assert np.all(error <= 1.5 * np.spacing(np.abs(exact).astype(np.float32)))


def test_a_clip_inside_sees_the_unscaled_gradient():
    tx = loss_scaling.static(optax.clip_by_global_norm(1.0), 1024.0)
    params = tree(0.0, 0.0)
    grads = {"w": jnp.array([0.3, 0.4]) * 1024.0, "b": jnp.zeros(1)}
    updates, _ = tx.update(grads, tx.init(params))
    np.testing.assert_allclose(updates["w"], [0.3, 0.4], rtol=1e-6)


def test_unscaling_touches_gradients_and_nothing_else():
    """amax 3.0 became 0.0029 where quantiser state travelled with the gradients."""
    quantiser_state = {"amax": jnp.array([3.0, 30.0])}
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra, params=params)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: quantiser_state, update)
    tx = loss_scaling.static(inner, 1024.0)
    params = tree(1.0, 2.0)
    state = tx.init(params)
    _, state = tx.update(params, state, params, value=jnp.array(5.0))
    assert_same_bits(state.inner, quantiser_state)
    np.testing.assert_array_equal(jax.tree.leaves(state.inner)[0], [3.0, 30.0])
    assert seen["value"] == 5.0
    assert set(seen) == {"value", "params"}


def test_extra_arguments_reach_the_inner_transformation():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    tx = loss_scaling.static(plateau, 4.0)
    state, alone = tx.init(jnp.zeros(())), plateau.init(jnp.zeros(()))
    update = jax.jit(tx.update)
    for _ in range(5):
        updates, state = update(jnp.array(4.0), state, value=jnp.array(1.0))
        with jax.numpy_dtype_promotion("standard"):
            expected, alone = plateau.update(
                jnp.array(1.0), alone, value=jnp.array(1.0)
            )
    assert updates == expected < 1.0


def test_the_scaled_loss_is_at_least_float32():
    state = loss_scaling.static(optax.sgd(1.0), 2.0**20).init(jnp.zeros(()))
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        scaled = loss_scaling.scale_loss(jnp.asarray(2.0, dtype), state)
        assert (scaled.dtype, scaled) == (jnp.float32, 2.0**21)


# --- Skipping ------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "momentum": optax.sgd(optax.linear_schedule(0.1, 0.0, 10), momentum=0.9),
    "clip and decay": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1)
    ),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation(),
    "masked": optax.masked(optax.adam(1e-2), {"w": True, "b": False}),
    "partition": optax.partition(
        {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()},
        {"w": "train", "b": "freeze"},
    ),
}
each_optimizer = pytest.mark.parametrize("inner", OPTIMIZERS.values(), ids=OPTIMIZERS)


@each_optimizer
def test_a_skip_leaves_parameters_and_inner_state_untouched_to_the_bit(inner):
    tx = loss_scaling.dynamic(inner, init_scale=8.0)
    # Both zeros, and subnormals, which arithmetic on a CPU flushes.
    values = [1.5, -0.0, 0.0, 1e-40]
    params = {"w": jnp.array(values), "b": jnp.array(values, jnp.bfloat16)}
    good = jax.tree.map(jnp.ones_like, params)
    update, apply = jax.jit(tx.update), jax.jit(loss_scaling.apply)
    _, before = update(good, tx.init(params), params)
    before = before._replace(master={"w": (), "b": params["b"].astype(jnp.float32)})
    state = before
    for name, bad in (("w", jnp.nan), ("b", jnp.inf), ("w", -jnp.inf)):
        grads = {**good, name: good[name].at[2].set(bad)}
        updates, state = update(grads, state, params)
        assert_same_bits(apply(params, updates, state), params)
        assert_same_bits((state.inner, state.master), (before.inner, before.master))
        for leaf in updates.values():
            assert_same_bits(leaf, jnp.full(4, -0.0))
    counts = (state.calls, state.applied, state.skipped, state.consecutive_skips)
    assert counts == (4, 1, 3, 3)
    assert not state.last_finite
    assert state.scale == 1.0


@each_optimizer
def test_finite_steps_do_what_the_inner_transformation_does_alone(inner, key):
    params = {"w": jax.random.normal(key, (5,)), "b": jnp.ones(1)}
    tx = loss_scaling.static(inner, 2.0**10)
    state, plain_state = tx.init(params), inner.init(params)
    plain = params
    for i in range(1, 5):
        grads = {name: jnp.sin(i * p) for name, p in params.items()}
        scaled = jax.tree.map(lambda g: g * 2.0**10, grads)
        updates, state = jax.jit(tx.update)(scaled, state, params)
        params = loss_scaling.apply(params, updates, state)
        with jax.numpy_dtype_promotion("standard"):
            updates, plain_state = jax.jit(inner.update)(grads, plain_state, plain)
        plain = optax.apply_updates(plain, updates)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5), params, plain
        )


def test_any_number_of_consecutive_overflows_is_never_applied():
    """apply_if_finite lets the one through that follows its limit."""
    tx = loss_scaling.dynamic(optax.adam(0.1), max_consecutive_skips=2)
    gradients = jnp.array([1.0] * 3 + [jnp.inf] * 50 + [1.0] * 2)
    w, state, _ = run(tx, jnp.ones(()), gradients)
    assert bool(jnp.isfinite(w))
    count = optax.tree.get(state.inner, "count")
    counts = (state.calls, state.applied, state.skipped, count)
    assert counts == (55, 5, 50, 5)
    assert state.diverged


def test_a_learning_rate_schedule_moves_with_applied_steps_only():
    schedule = optax.piecewise_constant_schedule(1.0, {2: 0.5})
    tx = loss_scaling.none(optax.sgd(schedule))
    gradients = jnp.array([1.0, jnp.nan, jnp.nan, 1.0, 1.0])
    w, state, _ = run(tx, jnp.zeros(()), gradients)
    assert w == -(1.0 + 1.0 + 0.5)
    assert (state.calls, state.applied) == (5, 3)


def test_a_gradient_that_only_unscaling_overflows_is_skipped():
    tx = loss_scaling.static(optax.sgd(1.0), 2.0**-10)
    w, state, _ = run(tx, jnp.ones(()), jnp.array([3e38]))
    assert (w, state.skipped) == (1.0, 1)


@pytest.mark.slow
def test_the_train_step_skips_a_gradient_that_only_unscaling_overflows():
    """The gradient is 1e40, which with a scale of 2**-10 float32 holds."""

    def loss(params, model_state, batch, key):
        return jnp.sum(batch @ (batch @ params)), Aux({}, model_state)

    params, batch = jnp.zeros((3, 1)), 1e20 * jnp.eye(3)

    program = Program(
        loss,
        contraction_table(loss, params, {}, batch, None),
        schedules.constant(integers(8, 8)),
        loss_scaling.static(optax.sgd(1.0), 2.0**-10),
    )
    state = init_state(program, params, {}, jax.random.key(0))
    after, metrics = jax.jit(make_train_step(program))(state, batch)
    assert metrics.scalars["gradient_norm"] == jnp.inf
    assert metrics.scalars["skipped"] == 1
    assert_same_bits(after.params, params)


@pytest.mark.parametrize("finite", [True, False, np.False_, jnp.asarray(True)])
def test_a_decision_handed_in_is_taken(finite):
    tx = loss_scaling.none(optax.sgd(1.0))
    for grad in (jnp.array(1.0), jnp.array(jnp.nan)):
        updates, state = tx.update(grad, tx.init(grad), finite=finite)
        assert bool(state.last_finite) == bool(finite)
        assert bool(jnp.isnan(updates)) == (bool(finite) and bool(jnp.isnan(grad)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e5m2"])
def test_one_bad_element_anywhere_is_found(dtype, key):
    """Large arrays: a maximum over them drops some NaNs on XLA:CPU."""
    all_finite = jax.jit(loss_scaling.all_finite)
    leaf = jax.random.normal(key, (130, 129)).astype(dtype)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for at in ((0, 0), (129, 128), (64, 7)):
            value = jnp.asarray(bad, dtype)
            assert not all_finite({"a": jnp.arange(3), "b": leaf.at[at].set(value)})
    assert all_finite({"a": jnp.arange(3), "b": leaf})
    assert loss_scaling.all_finite({})


# --- Accumulation --------------------------------------------------------------------


def test_a_bad_micro_batch_is_as_if_it_had_not_been():
    """MultiSteps alone keeps the NaN for ever, at emitting steps and between."""
    good = np.arange(1.0, 10.0, dtype=np.float32)
    tx = loss_scaling.none(optax.MultiSteps(optax.adam(0.1), 3))
    w, state, _ = run(tx, jnp.zeros(()), jnp.array(good))
    for at in (0, 1, 2, 5, 6):
        gradients = jnp.array(np.insert(good, at, np.nan))
        with_bad, bad_state, _ = run(tx, jnp.zeros(()), gradients)
        assert_same_bits((with_bad, bad_state.inner), (w, state.inner))
        assert bad_state.inner.gradient_step == 3
        counts = (bad_state.calls, bad_state.applied, bad_state.skipped)
        assert counts == (10, 9, 1)


def test_a_skipped_micro_batch_is_not_reported_as_an_update():
    """MultiSteps.has_updated alone says True after a micro-step skipped there."""
    multi_steps = optax.MultiSteps(optax.sgd(1.0), 2)
    tx = loss_scaling.none(multi_steps)
    gradients = jnp.array([1.0, 1.0, jnp.nan, 1.0, jnp.inf, 1.0])
    params = jnp.zeros(())
    state = tx.init(params)
    changed, reported = [], []
    for grad in gradients:
        updates, state = tx.update(grad, state, params)
        new = loss_scaling.apply(params, updates, state)
        changed.append(bool(new != params))
        updated = multi_steps.has_updated(state.inner)
        reported.append(bool(state.last_finite & updated))
        params = new
    assert changed == [False, True, False, False, False, True]
    assert reported == changed


# --- Masters -------------------------------------------------------------------------


def mixed():
    """Parameters of several dtypes, one of them an integer."""
    return {
        "half": jnp.linspace(-1.0, 1.0, 5, dtype=jnp.float16),
        "brain": jnp.linspace(-2.0, 2.0, 7).astype(jnp.bfloat16),
        "eight": jnp.ones(2, jnp.float8_e4m3fn),
        "full": jnp.linspace(0.0, 1.0, 3),
        "count": jnp.arange(2),
        "absent": None,
        "masked": optax.MaskedNode(),
    }


def test_masters_are_float32_copies_of_the_narrow_parameters_alone():
    tx = loss_scaling.none(optax.sgd(1.0))
    state = tx.init(mixed())
    dtypes = {
        name: master if isinstance(master, tuple) else master.dtype
        for name, master in state.master.items()
        if name not in ("absent", "masked")
    }
    narrow = dict.fromkeys(("half", "brain", "eight"), jnp.dtype("float32"))
    assert dtypes == narrow | {"full": (), "count": ()}
    grads = jax.tree.map(jnp.zeros_like, mixed())
    updates, state = tx.update(grads, state, mixed())
    assert_same_bits(loss_scaling.apply(mixed(), updates, state), mixed())


def test_new_parameters_equal_the_cast_master_and_masters_train_as_float32_does():
    params = {name: mixed()[name] for name in ("half", "brain", "eight", "full")}
    tx = loss_scaling.static(optax.sgd(2.0**-6, momentum=0.5), 256.0)
    state = tx.init(params)
    alone = {name: params[name].astype(jnp.float32) for name in ("half", "brain")}
    plain = optax.sgd(2.0**-6, momentum=0.5)
    plain_state = plain.init(alone)
    for i in range(20):
        value = (i % 3) * 2.0**-3
        grads = {name: jnp.full_like(p, value) for name, p in params.items()}
        scaled = jax.tree.map(lambda g: g * jnp.asarray(256, g.dtype), grads)
        updates, state = jax.jit(tx.update)(scaled, state, params)
        params = loss_scaling.apply(params, updates, state)
        wide = {name: grads[name].astype(jnp.float32) for name in alone}
        with jax.numpy_dtype_promotion("standard"):
            updates, plain_state = plain.update(wide, plain_state)
        alone = optax.apply_updates(alone, updates)
    for name in ("half", "brain", "eight"):
        assert_same_bits(params[name], state.master[name].astype(params[name].dtype))
    assert_same_bits({name: state.master[name] for name in alone}, alone)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.inner) if leaf.size > 2} == {
        jnp.dtype("float32")
    }


def test_float32_parameters_are_updated_as_optax_updates_them(key):
    params = {"w": jax.random.normal(key, (64,)), "b": jnp.zeros(1)}
    tx = loss_scaling.none(optax.sgd(0.1))
    updates, state = tx.update(params, tx.init(params), params)
    expected = optax.apply_updates(params, updates)
    assert_same_bits(loss_scaling.apply(params, updates, state), expected)
    assert jax.tree.leaves(state.master) == []


def test_updates_too_small_for_the_parameters_are_not_lost():
    step = 2.0**-10
    gradients = jnp.full((512, 1), step, jnp.bfloat16)
    tx = loss_scaling.none(optax.sgd(1.0))
    w, state, _ = run(tx, jnp.ones(1, jnp.bfloat16), gradients)
    assert (w[0], state.master[0]) == (0.5, 0.5)
    assert jnp.bfloat16(1.0) - jnp.bfloat16(step) == 1.0  # as it would be without


# --- One executable ------------------------------------------------------------------


@each_optimizer
def test_one_executable_serves_growth_skips_and_finite_steps(inner):
    tx = loss_scaling.dynamic(inner, growth_interval=2, max_consecutive_skips=1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return loss_scaling.apply(params, updates, state), state

    params = {"w": jnp.ones(3), "b": jnp.ones(1, jnp.bfloat16)}
    state = tx.init(params)
    leaves = jax.tree.leaves(state)
    assert not any(leaf.weak_type for leaf in leaves)
    types = [(leaf.dtype, leaf.shape) for leaf in leaves]
    for value in (1.0, 2.0, 3.0, jnp.inf, jnp.nan, 1.0):
        grads = {"w": jnp.full(3, value), "b": jnp.full(1, value, jnp.bfloat16)}
        params, state = step(params, state, grads)
    assert step._cache_size() == 1
    assert [(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(state)] == types


def test_a_new_static_scale_needs_no_new_compilation_and_stays_over_a_skip():
    tx = loss_scaling.static(optax.sgd(1.0), 64)
    update = jax.jit(tx.update)
    state = tx.init(jnp.zeros(()))
    for scale in (64.0, 8.0, 2.0**100):
        state = state._replace(scale=jnp.float32(scale))
        updates, state = update(jnp.array(scale), state)
        assert (updates, state.scale) == (-1.0, scale)
        _, state = update(jnp.array(jnp.nan), state)
        assert (state.scale, state.skips_at_floor) == (scale, 1)
    assert update._cache_size() == 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_it_lowers_ahead_of_time_from_shapes_alone(dtype):
    tx = loss_scaling.dynamic(optax.adam(0.1))
    params = tree(1.0, 2.0, dtype=dtype)
    abstract = jax.eval_shape(lambda: params)
    state = jax.eval_shape(tx.init, abstract)
    update = jax.jit(tx.update).lower(abstract, state, abstract).compile()
    _, state = update(params, tx.init(params), params)
    assert state.applied == 1


def test_the_compiled_step_has_one_conditional_and_no_memory_for_updates():
    """Updates live where the gradients lived, although both meet in a `cond`."""

    def step(tx, apply, params, state, x):
        grads = jax.grad(lambda p: jnp.sum((x @ p["a"] @ p["b"]) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return apply(params, updates, state), state

    def compiled(tx, apply):
        matrix = jax.ShapeDtypeStruct((512, 512), jnp.float32)
        params, x = (
            {"a": matrix, "b": matrix},
            jax.ShapeDtypeStruct((4, 512), "float32"),
        )
        jitted = jax.jit(functools.partial(step, tx, apply), donate_argnums=(0, 1))
        state = jax.eval_shape(tx.init, params)
        with jax.numpy_dtype_promotion("standard"):
            return jitted.lower(params, state, x).compile()

    plain = compiled(optax.adam(0.1), lambda p, u, _: optax.apply_updates(p, u))
    ours = compiled(loss_scaling.dynamic(optax.adam(0.1)), loss_scaling.apply)
    text = ours.as_text()
    assert text.count(" conditional(") == 1
    assert text.count("f32[512,512]{1,0} copy(") == 0
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (ours, plain)]
    # The finite test may take a byte an element; updates would take four.
    assert temporary[0] - temporary[1] <= 1.1 * 2 * 512 * 512


# --- Many runs, many devices ---------------------------------------------------------


def test_each_member_of_a_vmapped_pack_has_its_own_overflows_and_scale(key):
    patterns = jax.random.bernoulli(key, 0.7, (4, 30))
    gradients = jnp.where(patterns, 1.0, jnp.nan)
    tx = loss_scaling.dynamic(
        optax.adam(0.1), init_scale=64.0, growth_interval=3, max_consecutive_skips=2
    )
    pack = jax.vmap(functools.partial(run, tx))(jnp.zeros(4), gradients)
    for i, pattern in enumerate(patterns):
        w, state, states = jax.tree.map(operator.itemgetter(i), pack)
        w_alone, _, states_alone = run(tx, jnp.zeros(()), gradients[i])
        assert_same_bits(states._replace(inner=()), states_alone._replace(inner=()))
        np.testing.assert_allclose(w, w_alone, rtol=1e-6)
        assert state.applied == pattern.sum()


def test_runs_with_different_static_scales_train_in_one_pack():
    tx = loss_scaling.static(optax.sgd(1.0), 1.0)
    scales = jnp.array([1.0, 8.0, 64.0])
    states = jax.vmap(tx.init)(jnp.zeros(3))._replace(scale=scales)
    updates, states = jax.jit(jax.vmap(tx.update))(2.0 * scales, states)
    assert updates.tolist() == [-2.0] * 3
    assert states.scale.tolist() == scales.tolist()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_an_overflow_on_one_device_skips_the_step_on_all(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    split = NamedSharding(mesh, P("data"))
    tx = loss_scaling.dynamic(optax.adam(0.1), init_scale=4.0)
    update, apply = jax.jit(tx.update), jax.jit(loss_scaling.apply)

    def train(params, overflowed):
        state = jax.jit(tx.init)(params)
        for grads in (params, overflowed, params):
            updates, state = update(grads, state, params)
            params = apply(params, updates, state)
        return params, state

    params = {"w": jnp.arange(1.0, 17.0), "b": jnp.ones(8, jnp.bfloat16)}
    overflowed = {**params, "w": params["w"].at[5].set(jnp.inf)}
    expected, _ = train(params, overflowed)
    with jax.set_mesh(mesh):
        sharded, state = train(*jax.device_put((params, overflowed), split))
    assert {leaf.sharding for leaf in jax.tree.leaves(sharded)} == {split}
    np.testing.assert_allclose(sharded["w"], expected["w"], rtol=1e-6)
    assert_same_bits(sharded["b"], expected["b"])
    assert (state.applied, state.skipped, state.scale) == (2, 1, 2.0)


def test_devices_inside_shard_map_share_the_decision():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tx = loss_scaling.dynamic(optax.sgd(1.0), init_scale=4.0)

    def step(params, state, grads):
        finite = loss_scaling.all_finite(grads, "data")
        updates, state = tx.update(grads, state, params, finite=finite)
        return loss_scaling.apply(params, updates, state), state

    params = jnp.arange(16.0)
    state = tx.init(params)
    specs = jax.tree.map(lambda leaf: P("data") if leaf.ndim else P(), state)
    sharded = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P("data"), specs, P("data")),
            out_specs=(P("data"), specs),
        )
    )
    good, bad = jnp.full(16, 2.0), jnp.full(16, 2.0).at[3].set(jnp.nan)
    new, state = sharded(params, state, bad)
    assert_same_bits(new, params)
    assert (state.skipped, state.scale) == (1, 2.0)
    new, state = sharded(params, state, good)
    np.testing.assert_array_equal(new, params - 1.0)
    assert state.applied == 1


# --- Bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_scale": 0.5}, "min_scale <= init_scale"),
        ({"init_scale": float("nan")}, "init_scale=nan"),
        ({"max_scale": 2.0**127}, r"2\*\*126, got"),
        ({"min_scale": 0.0}, "min_scale=0.0"),
        ({"growth_factor": 1.0}, "growth_factor=1.0"),
        ({"growth_factor": float("inf")}, "both finite"),
        ({"backoff_factor": 1.0}, "backoff_factor=1.0"),
        ({"backoff_factor": 0.0}, "backoff_factor=0.0"),
        ({"growth_interval": 0}, "growth_interval=0"),
        ({"max_consecutive_skips": 0}, "max_consecutive_skips=0"),
        ({"growth_interval": 2**31}, "growth_interval=2147483648"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        loss_scaling.dynamic(optax.sgd(1.0), **arguments)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), 2.0**127])
def test_a_static_scale_without_a_normal_reciprocal_is_refused(scale):
    with pytest.raises(ValueError, match="scale from"):
        loss_scaling.static(optax.sgd(1.0), scale)


def test_masters_without_parameters_are_refused():
    tx = loss_scaling.none(optax.sgd(1.0))
    grads = jnp.ones(2, jnp.bfloat16)
    with pytest.raises(ValueError, match="update needs params"):
        tx.update(grads, tx.init(grads))
