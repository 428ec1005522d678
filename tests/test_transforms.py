"""What is done to masters, each rule against a replay in NumPy; wrong arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import formats, loss_scaling, scaling, transforms
from adaprec_jax.transforms.hysteresis import round_with_memory
from adaprec_jax.transforms.rounding import as_arrays, round_tensor

E4M3 = formats.get("float8_e4m3fn")
INT4 = formats.get("int4")
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
        transforms.in_place(INT4),
    ],
)
def test_what_reads_the_parameters_says_that_it_needs_them(tx):
    w = jnp.zeros(1)
    with pytest.raises(ValueError, match="needs params in update"):
        tx.update(w, tx.init(w))
