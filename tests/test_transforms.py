"""Masters, moments and gradients: each rule against a replay in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from adaprec_jax import formats, loss_scaling, scaling, transforms
from adaprec_jax.transforms.hysteresis import round_with_memory
from adaprec_jax.transforms.rounding import as_arrays, round_tensor

E4M3, E2M1 = formats.get("float8_e4m3fn"), formats.get("float4_e2m1fn")
INT4 = formats.get("int4")
MOMENTS = (transforms.coat(4)["mu"], *transforms.fp8_lm().values())
# Every value of two formats, from their definitions.
GRIDS = {
    "int4": np.arange(-8.0, 8.0),
    "float4_e2m1fn": np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]),
}
GRIDS["float4_e2m1fn"] = np.unique(
    np.concatenate([-GRIDS["float4_e2m1fn"], GRIDS["float4_e2m1fn"]])
)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    key = jax.random.key(seed)
    return np.asarray(jax.random.normal(key, shape))


def power_of_two_scale(amax: float, largest: float) -> float:
    """FP8-LM's rule: the power of two below largest / amax, as x ~= value * scale."""
    return 2.0 ** -np.floor(np.log2(largest / amax))


# Oscillation reset


def nearest_int4(w: np.ndarray) -> np.ndarray:
    scale = power_of_two_scale(np.abs(w).max(), 7.0)
    return (np.clip(np.round(w / scale), -8, 7) * scale).astype(np.float32)


def replayed_reset(w, steps, *, start, every, window, threshold):
    """The rule in words: watch, form the ratio, put weights into their bin's centre."""
    ways, quantized_ways, resets = np.zeros_like(w), np.zeros_like(w), 0
    for call, step in enumerate(steps):
        new = w + step
        phase = (call - start) % every if call >= start else every
        if phase == 0:
            ways[:], quantized_ways[:] = 0, 0
        if phase < window:
            ways += np.abs(new - w)
            quantized_ways += np.abs(nearest_int4(new) - nearest_int4(w))
        if phase == window - 1:
            ratio = np.divide(
                quantized_ways, ways, out=np.zeros_like(ways), where=ways > 0
            )
            chosen = ratio > threshold
            resets = chosen.sum()
            new = np.where(chosen, nearest_int4(new), new)
        w = new
        yield w, ways, quantized_ways, resets


def test_oscillation_reset_follows_a_replay_of_the_rule():
    settings = {"start": 3, "every": 12, "window": 5, "threshold": 3.0}
    w = numbers(40).astype(np.float32)
    w[0] = 7.0  # the scale stays 1
    w[1:9] = np.arange(-4, 4) + 0.5  # on the borders
    steps = 0.05 * numbers(40, 40, seed=1)
    steps[:, 0] = 0
    steps[:, 9] = 0  # a weight that never moves
    tx = transforms.oscillation_reset(INT4, **settings)
    state, params, seen = tx.init(jnp.asarray(w)), jnp.asarray(w), []
    update = jax.jit(tx.update)
    for step, expected in zip(steps, replayed_reset(w, steps, **settings), strict=True):
        updates, state = update(jnp.asarray(step), state, params)
        params = optax.apply_updates(params, updates)
        weights, ways, quantized_ways, resets = expected
        np.testing.assert_array_equal(params, weights)
        np.testing.assert_allclose(state.way, ways, rtol=1e-6)
        np.testing.assert_allclose(state.quantized_way, quantized_ways, rtol=1e-6)
        assert state.resets == resets
        seen.append(int(resets))
    assert max(seen) >= 3
    assert min(seen) == 0


def test_a_reset_weight_is_its_bins_centre_to_the_bit():
    w = jnp.asarray(np.r_[7.0, 2.4999, -3.5001, 0.49].astype(np.float32))
    tx = transforms.oscillation_reset(
        INT4, scaling.none(), start=0, every=2, window=2, threshold=8
    )
    state = tx.init(w)
    for sign in (1.0, -1.0):
        updates, state = tx.update(sign * jnp.array([0.0, 0.01, 0.01, 0.02]), state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(w, [7.0, 2.0, -4.0, 0.0])


def test_each_tensor_may_have_a_format_and_recipe_of_its_own():
    reset = functools.partial(
        transforms.oscillation_reset, start=0, every=2, window=2, threshold=4
    )
    tx = optax.multi_transform(
        {
            "a": reset(INT4, scaling.none()),
            "b": reset(formats.get("int8"), scaling.none()),
            "c": optax.identity(),
        },
        {"a": "a", "b": "b", "c": "c"},
    )
    w = {"a": jnp.array([7.49]), "b": jnp.array([9.49]), "c": jnp.array([1.49])}
    state = tx.init(w)
    for sign in (1.0, -1.0):
        steps = {name: jnp.array([sign * 0.02]) for name in w}
        updates, state = tx.update(steps, state, w)
        w = optax.apply_updates(w, updates)
    # int4 ends at 7, so that there its quantised value did not swing.
    np.testing.assert_allclose([w["a"][0], w["b"][0], w["c"][0]], [7.49, 9.0, 1.49])


def test_a_recipe_with_blocks_cuts_a_kernel_along_its_inputs():
    w = (numbers(6, 3) * np.exp(2 * numbers(6, 3, seed=1))).astype(np.float32)
    found = round_tensor(jnp.asarray(w), INT4, scaling.blockwise(2), ())[0]
    blocks = w.reshape(3, 2, 3)
    expected = [[nearest_int4(b[:, out]) for out in range(3)] for b in blocks]
    np.testing.assert_array_equal(
        found, np.moveaxis(np.array(expected), 1, 2).reshape(6, 3)
    )
    for make in (
        functools.partial(transforms.oscillation_reset, start=0),
        functools.partial(transforms.hysteresis, optax.sgd(1.0)),
    ):
        tx = make(INT4, recipe=scaling.blockwise(2))
        params = jnp.asarray(w)
        _, state = tx.update(jnp.zeros((6, 3)), tx.init(params), params)
    # Rounded to nearest at first, and nothing moved since.
    np.testing.assert_array_equal(state.weights, found)


# Hysteresis


def replayed_memory(w: np.ndarray, previous: np.ndarray, grid: np.ndarray):
    """The rule in words: above the last value down to the grid, below it up."""
    w = np.clip(w, grid[0], grid[-1])
    below = grid[np.searchsorted(grid, w, side="right") - 1]
    above = grid[np.searchsorted(grid, w, side="left")]
    return np.where(w >= previous, below, above)


@pytest.mark.parametrize("name", GRIDS)
def test_hysteresis_follows_a_replay_of_the_rule(name):
    grid = GRIDS[name]
    w = (2.0 * numbers(200)).astype(np.float32)
    params = jnp.asarray(w)
    tx = transforms.hysteresis(optax.sgd(1.0), formats.get(name), scaling.none())
    state = tx.init(params)
    params = transforms.rounded_weights(state, params)
    distance = np.abs(w[:, None] - grid)
    np.testing.assert_array_equal(
        np.abs(np.asarray(params) - w), distance.min(axis=1)
    )  # to nearest, at first
    previous, changes = np.asarray(params, np.float64), 0
    update = jax.jit(tx.update)
    for step in 0.4 * numbers(60, 200, seed=1):
        updates, state = update(jnp.asarray(-step), state, params)
        params = optax.apply_updates(params, updates)
        w = w + step
        expected = replayed_memory(w.astype(np.float64), previous, grid)
        changes += np.sum(expected != previous)
        previous = expected
        np.testing.assert_array_equal(state.master, w)
        np.testing.assert_array_equal(params, expected)
        np.testing.assert_array_equal(state.weights, expected)
    assert changes > 1000


def test_a_weight_that_swings_over_a_border_keeps_its_value():
    tx = transforms.hysteresis(optax.sgd(1.0), INT4, scaling.none())
    params = jnp.array([0.4, 2.4])
    state, values = tx.init(params), []
    for sign in (-1.0, 1.0) * 10:
        updates, state = tx.update(jnp.full(2, sign * 0.3), state, params)
        params = optax.apply_updates(params, updates)
        values.append(params)
    nearest = np.round(np.add.outer([0.0, 0.3], np.asarray(state.master)))
    assert (nearest[0] != nearest[1]).all()  # to nearest it would swing
    np.testing.assert_array_equal(values, np.broadcast_to([0.0, 2.0], (20, 2)))


def test_with_memory_a_value_is_a_neighbour_on_the_side_of_the_last_one():
    """Of every format: what rounds toward zero says which numbers are its own."""

    @jax.jit  # once, for formats are data
    def rounded(x, fmt):
        one = jnp.float32(1)
        down = round_with_memory(x, jnp.full_like(x, -jnp.inf), fmt, one)
        up = round_with_memory(x, jnp.full_like(x, jnp.inf), fmt, one)
        cast = lambda x: round_tensor(x, fmt, scaling.none(), ())[0]
        return down, up, cast(down), cast(up), cast(x)

    for name in formats.names():
        if name in ("float8_e8m0fnu", "int1", "uint1"):
            continue  # no grid of operands, and grids of two values
        fmt = formats.get(name)
        x = np.r_[np.float32(100.0) ** numbers(400), -numbers(400)]
        x = np.clip(x, fmt.min_value, fmt.max_value).astype(np.float32)
        down, up, down_again, up_again, nearest = rounded(x, as_arrays(fmt))
        assert (down <= x).all(), name
        assert (up >= x).all(), name
        np.testing.assert_array_equal(down_again, down)
        np.testing.assert_array_equal(up_again, up)
        # Neighbours: nothing lies between, so what is nearest is one of them.
        assert ((nearest == down) | (nearest == up)).all(), name


def test_weight_decay_acts_on_the_masters_and_a_mask_leaves_weights_alone():
    tx = transforms.hysteresis(
        optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)),
        INT4,
        scaling.none(),
        mask=lambda params: {"w": True, "bias": False},
    )
    params = {"w": jnp.array([3.4]), "bias": jnp.array([0.3])}
    state = tx.init(params)
    params = transforms.rounded_weights(state, params)
    assert params["w"] == 3
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.master["w"], [1.7])  # 3.4 / 2, not 3 / 2
    assert params["w"] == 2
    np.testing.assert_allclose(params["bias"], [0.15])
    assert state.master["bias"] == ()


# Averaging


@pytest.mark.parametrize(("start", "every"), [(0, 1), (7, 1), (5, 4), (40, 1)])
def test_the_average_is_the_mean_of_the_weights_that_were_taken(start, every):
    steps = numbers(30, 6)
    path = np.cumsum(steps, axis=0, dtype=np.float64)
    taken = path[start::every]
    params = jnp.zeros(6)
    tx = transforms.averaging(start=start, every=every)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in steps:
        updates, state = update(jnp.asarray(step), state, params)
        np.testing.assert_array_equal(updates, step)
        params = optax.apply_updates(params, updates)
    assert state.averaged == len(taken)
    expected = taken.mean(axis=0) if len(taken) else path[-1]
    found = transforms.averaged(state, params)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_the_average_of_rounded_weights_is_nearer_to_the_optimum_than_the_last():
    """SWALP's point: the weights have a step of 1, their mean has not."""
    optimum = jnp.asarray(3 * numbers(500))
    inner = transforms.hysteresis(optax.sgd(0.2), INT4, scaling.none())
    tx = optax.chain(inner, transforms.averaging(start=100))

    def step(carry, noise):
        params, state = carry
        updates, state = tx.update(params - optimum + noise, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.zeros(500)
    noise = 2 * jax.random.normal(jax.random.key(1), (600, 500))
    (last, state), _ = jax.jit(functools.partial(jax.lax.scan, step))(
        (start, tx.init(start)), noise
    )
    mean = transforms.averaged(state, last)
    np.testing.assert_array_equal(last, np.round(last))
    errors = [float(jnp.sqrt(jnp.mean((w - optimum) ** 2))) for w in (last, mean)]
    assert errors[1] < 0.3 * errors[0]


def test_masters_are_averaged_behind_loss_scaling():
    tx = loss_scaling.none(optax.chain(optax.sgd(1.0), transforms.averaging(start=0)))
    params = jnp.ones(1, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(3):
        grads = jnp.full(1, -(2.0**-9), jnp.bfloat16)
        updates, state = tx.update(grads, state, params)
        params = loss_scaling.apply(params, updates, state)
    assert state.inner[1].mean[0] == 1 + 2 * 2.0**-9
    assert transforms.averaged(state, params).dtype == jnp.bfloat16


def test_the_average_of_a_masked_weight_is_the_weight():
    tx = optax.chain(
        optax.sgd(1.0),
        optax.masked(transforms.averaging(start=0), {"a": True, "b": False}),
    )
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(
            {"a": -jnp.ones(1), "b": -jnp.ones(1)}, state, params
        )
        params = optax.apply_updates(params, updates)
    assert transforms.averaged(state, params) == {"a": 2.0, "b": 3.0}


# Moments


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _stored(x, fmt, recipe, group, expand):
    moment = transforms.Moment(fmt, recipe, group, expand)
    return transforms.round_moment(x, moment, ())[0]


def stored(x, moment):
    """What comes back of a moment; compiled once for all formats."""
    return _stored(x, as_arrays(moment.fmt), *moment[1:])


def replayed_adam(grads, store, *, b1=0.9, b2=0.999, eps=1e-8, rate=0.1):
    """Adam in NumPy, float32, whose moments go through `store` after each step."""
    m = v = np.zeros_like(grads[0])
    for t, g in enumerate(grads, start=1):
        m = (1 - b1) * g + b1 * m
        v = (1 - b2) * g**2 + b2 * v
        update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        m, v = store["mu"](m), store["nu"](v)
        yield -rate * update, m, v


def stored_in(dtype, largest: float):
    def store(x):
        scale = power_of_two_scale(np.abs(x).max(), largest)
        return ((x / scale).astype(dtype).astype(np.float64) * scale).astype(np.float32)

    return store


def test_fp8_lm_moments_follow_a_replay_of_adam():
    grads = (numbers(5, 300) * np.exp(3 * numbers(5, 300, seed=1))).astype(np.float32)
    store = {
        "mu": stored_in(ml_dtypes.float8_e4m3fn, 448.0),
        "nu": stored_in(np.float16, 65504.0),
    }
    tx = transforms.narrow_moments(optax.adam(0.1), transforms.fp8_lm())
    params = jnp.zeros(300)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for g, (update, m, v) in zip(grads, replayed_adam(grads, store), strict=True):
        found, state = step(jnp.asarray(g), state, params)
        np.testing.assert_allclose(found, update, rtol=1e-4)
        # A sum one ulp off may lie beyond a tie: never more than a few.
        for name, expected in (("mu", m), ("nu", v)):
            stored = np.asarray(optax.tree_utils.tree_get(state, name))
            assert np.mean(stored != expected) < 0.01
            np.testing.assert_allclose(stored, expected, rtol=0.13, atol=1e-30)
            state = optax.tree_utils.tree_set(state, **{name: jnp.asarray(expected)})
    assert (v > 0).sum() < 300  # float16 ends 2^40 below the largest


def coat_in_numpy(x: np.ndarray, group: int) -> np.ndarray:
    """COAT's formula in float64, with ml_dtypes' E4M3."""
    out = []
    for block in np.split(x.astype(np.float64), np.arange(group, x.size, group)):
        magnitude = np.abs(block)
        nonzero = magnitude[magnitude > 0]
        if not nonzero.size:
            out.append(block)
            continue
        low, high = nonzero.min(), nonzero.max()
        k = np.floor(16 * np.log2(448**2 / 2) / np.log2(high / low)) / 16
        centre = np.sqrt(high * low)
        scale = np.sqrt(high / low) ** k / 448
        q = np.sign(block) * (magnitude / centre) ** k / scale
        # In float32 448 may come out as 448.00003, in float64 as 448 and a bit.
        q = q.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        out.append(np.sign(q) * (np.abs(q) * scale) ** (1 / k) * centre)
    return np.concatenate(out)


@pytest.mark.parametrize("spread", [0.01, 0.5, 3.0, 8.0])
def test_coat_moments_follow_the_formula(spread):
    x = (numbers(1000) * np.exp(spread * numbers(1000, seed=1))).astype(np.float32)
    if spread == 0.01:
        x = np.exp2(0.3 * np.tanh(x)).astype(np.float32)  # a narrow range: k is large
    x[5:9] = 0
    x[384:512] = 0  # a whole group
    found = stored(jnp.asarray(x), transforms.coat()["mu"])
    expected = coat_in_numpy(x, 128)
    off = ~np.isclose(found, expected, rtol=2e-3, atol=0)
    assert off.mean() < 0.005  # beyond a tie in the last digit of a power
    np.testing.assert_array_equal(np.asarray(found)[384:512], 0)
    assert (np.asarray(found)[x != 0] != 0).all()  # nothing underflows


def test_the_expanded_range_is_the_published_one_for_a_range_known_by_hand():
    # M / m = 2^4: k = floor(16 * 16.6147 / 4) / 16 = 66 / 16, and back 2^(4 k / 2).
    found = transforms.expand(jnp.array([0.5, -8.0, 0.0, 2.0]), E4M3, (0,))
    assert found.k == 66 / 16
    assert found.centre == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(
        found.value, [2.0 ** -(66 / 8), -(2.0 ** (66 / 8)), 0, 1], rtol=1e-5
    )


def test_expansion_lowers_the_error_of_moments_of_a_wide_and_of_a_narrow_range():
    plain = transforms.Moment(E4M3, scaling.current(power_of_two=False), 128)
    for spread in (0.2, 6.0):
        x = jnp.asarray(np.exp(spread * numbers(4096)).astype(np.float32))
        error = [
            float(jnp.mean(jnp.abs(stored(x, m) / x - 1)))
            for m in (plain, plain._replace(expand=True))
        ]
        assert error[1] < 0.8 * error[0]


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_format_that_is_not_scaled_is_a_cast(name):
    moment = transforms.coat()["mu"]._replace(fmt=formats.get(name))
    x = np.r_[numbers(300), 0, 1e-42, 1e30, -1e-30].astype(np.float32)
    found = stored(jnp.asarray(x), moment)
    np.testing.assert_array_equal(found, x.astype(name).astype(np.float32))


@pytest.mark.parametrize(
    "x",
    [
        [0.0] * 5,
        [1e-45] * 5,
        [3.4e38, 1e-38, -1e-45, 0.0],
        [3.4e38] * 4,
        [1.0, np.nextafter(np.float32(1), np.float32(2))],
        [-7.5] * 5,
        [],
    ],
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_no_moment_makes_a_nan_or_an_infinity(x, moment):
    x = np.array(x, np.float32)
    found = np.asarray(stored(jnp.asarray(x), moment))
    assert np.isfinite(found).all()
    normal = np.abs(x) > 1e-37
    if normal.any() and np.abs(x[normal]).min() > 1e-5 * np.abs(x).max():
        np.testing.assert_allclose(found[normal], x[normal], rtol=0.04)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spoils_nothing_beside_it(bad):
    x = np.r_[bad, numbers(127)].astype(np.float32)
    for moment in (transforms.coat()["mu"], transforms.fp8_lm()["mu"]):
        found = np.asarray(stored(jnp.asarray(x), moment))
        clean = stored(jnp.asarray(np.r_[0, x[1:]].astype(np.float32)), moment)
        np.testing.assert_array_equal(found[0], bad)
        np.testing.assert_array_equal(found[1:], clean[1:])


def test_recipes_with_a_state_and_with_noise_are_carried_along():
    delayed = transforms.Moment(E4M3, scaling.delayed(history=2))
    noisy = transforms.Moment(INT4, scaling.current(rounding="stochastic"))
    tx = transforms.narrow_moments(
        optax.adam(0.1), {"mu": delayed, "nu": noisy}, seed=3
    )
    params = jnp.zeros(50_000)
    state = tx.init(params)
    grads = jnp.sqrt(jnp.linspace(0.2, 1.0, 50_000))
    update = jax.jit(tx.update)
    _, first = update(grads, state, params)
    _, again = update(grads, state, params)
    _, second = update(grads, first, params)
    assert first.recipes[0].amax == pytest.approx(0.1)
    nu = [optax.tree_utils.tree_get(s, "nu") for s in (first, again, second)]
    np.testing.assert_array_equal(nu[0], nu[1])
    exact = 0.001 * np.square(grads)
    assert np.mean(nu[0]) == pytest.approx(exact.mean(), rel=5e-3)  # unbiased
    assert (np.asarray(nu[0]) != exact).mean() > 0.9


# Communication

reduced = jax.jit(transforms.all_reduce)


def replayed_all_reduce(g: np.ndarray, factor: float):
    """FP8-LM's sum in E4M3: one scale, each device rounds, the sum is rounded."""
    multiplier = factor / power_of_two_scale(np.abs(g).max(), 448.0)

    def to_fp8(x):
        x = np.clip(x, -448, 448).astype(np.float32)
        return x.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)

    total = to_fp8(to_fp8(g * multiplier).sum(axis=0))
    return total / multiplier / len(g), np.mean(np.abs(total) >= 448)


def test_the_all_reduce_and_its_factor_follow_a_replay():
    devices, size, window = 8, 2000, 10
    tx = transforms.narrow_all_reduce(E4M3, "data", threshold=0.0103, window=window)
    state = tx.init(jnp.zeros(size))
    update = jax.jit(
        jax.vmap(tx.update, in_axes=(0, None), out_axes=(0, None), axis_name="data")
    )
    factor, seen = 1.0, []
    for step in range(60):
        g = (numbers(devices, size, seed=step) + 1.0).astype(np.float32)
        mean, saturated = replayed_all_reduce(g.astype(np.float64), factor)
        found, state = update(jnp.asarray(g), state)
        np.testing.assert_allclose(found, np.broadcast_to(mean, g.shape), rtol=1e-5)
        factor = factor / 2 if saturated > 0.0103 else factor * 2 ** (1 / window)
        assert state.factor == pytest.approx(factor, rel=1e-5)
        # Powers of two that are a digit off would round elsewhere from here on.
        state = state._replace(factor=jnp.float32(factor))
        factor = float(state.factor)
        seen.append(factor)
    assert min(seen) < 0.5  # eight of them overflow at 1
    assert any(b > a for a, b in itertools.pairwise(seen))


def test_inside_shard_map_it_takes_the_place_of_the_mean():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    g = numbers(8, 64).astype(np.float32)
    reduce = functools.partial(transforms.all_reduce, fmt=E4M3, axis_name="data")
    emulated = jax.jit(jax.vmap(reduce, (0, None), axis_name="data"))(
        g, jnp.float32(0.25)
    )
    sharded = jax.jit(
        jax.shard_map(
            lambda g: reduce(g[0], jnp.float32(0.25)),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P(),
        )
    )(g)
    np.testing.assert_array_equal(sharded.mean, emulated.mean[0])
    np.testing.assert_array_equal(sharded.saturated, emulated.saturated[0])
    np.testing.assert_allclose(sharded.mean, g.mean(axis=0), atol=0.15)


def test_one_sick_device_is_seen_by_all_and_moves_no_factor_out_of_its_range():
    reduce = functools.partial(transforms.all_reduce, fmt=E4M3, axis_name="data")
    reduce = jax.jit(jax.vmap(reduce, (0, None), axis_name="data"))
    for bad in (np.nan, np.inf):
        g = np.ones((4, 3), np.float32)
        g[2, 1] = bad
        found = reduce(g, jnp.float32(1.0))
        assert not np.isfinite(found.mean[:, 1]).any()
        factor = transforms.next_factor(jnp.float32(1.0), found.saturated[0])
        assert 0.5 <= factor <= 1.001


@pytest.mark.parametrize("factor", [2.0**-32, 1.0, 2.0**32])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1.0, 3e38])
def test_no_finite_gradient_makes_a_nan_or_an_infinity(factor, value):
    g = jnp.full(4, value, jnp.float32)
    for name in ("float8_e4m3fn", "float8_e5m2", "int8", "bfloat16"):
        fmt = formats.get(name)
        found = reduced(g, jnp.float32(factor), fmt=as_arrays(fmt))
        assert np.isfinite(found.mean).all()
        assert np.isfinite(found.saturated)


def test_a_format_that_is_not_scaled_travels_as_it_is():
    g = np.r_[numbers(50), 1e-42].astype(np.float32)
    for name in ("float32", "bfloat16"):
        fmt = as_arrays(formats.get(name))
        found = reduced(jnp.asarray(g), jnp.float32(0.1), fmt=fmt)
        np.testing.assert_array_equal(found.mean, g.astype(name).astype(np.float32))


def test_the_factor_doubles_in_a_thousand_steps_and_stays_in_its_bounds():
    factor = jnp.float32(0.5)
    grow = jax.jit(lambda f: transforms.next_factor(f, jnp.float32(0.0)))
    for _ in range(1000):
        factor = grow(factor)
    assert factor == pytest.approx(1.0, rel=1e-4)
    highest = transforms.next_factor(jnp.float32(2.0**32), jnp.float32(0.0))
    lowest = transforms.next_factor(jnp.float32(2.0**-32), jnp.float32(1.0))
    assert (highest, lowest) == (2.0**32, 2.0**-32)


# Arguments


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: transforms.oscillation_reset(INT4, start=-1), "start of at least 0"),
        (lambda: transforms.oscillation_reset(INT4, start=0, every=0), "every of at"),
        (
            lambda: transforms.oscillation_reset(INT4, start=0, every=4, window=5),
            "window (5) of at most every (4)",
        ),
        (
            lambda: transforms.oscillation_reset(INT4, start=0, threshold=float("nan")),
            "threshold of at least 0",
        ),
        (lambda: transforms.averaging(start=-2), "start of at least 0, got -2"),
        (lambda: transforms.averaging(start=0, every=0), "every of at least 1, got 0"),
        (
            lambda: transforms.narrow_moments(
                optax.adam(1.0), {"mu": transforms.coat()["mu"]._replace(group=0)}
            ),
            "'mu' needs a group of at least 1",
        ),
        (
            lambda: transforms.narrow_moments(
                optax.sgd(1.0), transforms.fp8_lm()
            ).init(jnp.zeros(1)),
            "no moment 'mu'",
        ),
        (lambda: transforms.narrow_all_reduce(E4M3, threshold=-1.0), "threshold of at"),
        (lambda: transforms.narrow_all_reduce(E4M3, window=0), "window of at least 1"),
        (lambda: transforms.averaged(optax.sgd(1.0).init(1.0), 1.0), "found 0"),
        (lambda: transforms.rounded_weights((), jnp.zeros(1)), "found 0"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_sentence(make, fault):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        make()
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    "tx",
    [
        transforms.oscillation_reset(INT4, start=0),
        transforms.averaging(start=0),
        transforms.hysteresis(optax.sgd(1.0), INT4),
    ],
)
def test_what_reads_the_parameters_says_that_it_needs_them(tx):
    w = jnp.zeros(1)
    with pytest.raises(ValueError, match="needs params in update"):
        tx.update(w, tx.init(w))
