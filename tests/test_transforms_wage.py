"""WAGE's step: by hand, against a replay in NumPy, and by its odds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import formats, scaling, transforms
from adaprec_jax.scaling import Use

F = np.float32


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(F)


def shift(largest: float) -> float:
    """The power of two whose logarithm is nearest."""
    return 2.0 ** np.rint(np.log2(largest)) if largest > 0 else 1.0


def scaled(g: np.ndarray, rate: float) -> np.ndarray:
    return F(rate) * (g / F(shift(float(np.abs(g).max()))))


def steps_of(g: np.ndarray, rate: float, seed: int = 0) -> np.ndarray:
    """What the first call draws, found without a grid's bound in the way."""
    tx = transforms.wage(rate, bits=2, on_grid=False, seed=seed)
    updates, _ = tx.update(jnp.asarray(g), tx.init(jnp.asarray(g)))
    return -2.0 * np.asarray(updates)


def test_steps_that_need_no_noise_are_those_by_hand():
    # max |g| = 5.6, whose logarithm is 2.49: S = 4. max |g| = 5.7, 2.51: S = 8.
    g = np.array([5.0, 3.0, -1.0, 0.5, 0.0, -5.6], F)
    expected = [20, 12, -4, 2, 0]
    found = transforms.wage_steps(jnp.asarray(g), 16.0, key=jax.random.key(0))
    np.testing.assert_array_equal(found[:5], expected)
    assert found[5] in (-22, -23)  # 22.4
    g[5] = -5.7
    found = transforms.wage_steps(jnp.asarray(g), 16.0, key=jax.random.key(0))
    np.testing.assert_array_equal(found[:5], [10, 6, -2, 1, 0])
    assert found[5] in (-11, -12)  # 11.4


def test_weights_move_on_the_grid_and_stop_at_its_bound_by_hand():
    # 4 bits: the unit is 1/8, the bound 7/8. S = 1, so that 2 g are the steps.
    w = jnp.array([0.5, -0.25, 0.75, -0.75, 0.3, 1.7, 0.0])
    g = jnp.array([0.5, 1.0, -1.0, 1.0, 0.0, 0.5, -0.5])
    expected = [0.375, -0.5, 0.875, -0.875, 0.25, 0.875, 0.125]
    tx = transforms.wage(2.0, bits=4)
    updates, state = tx.update(g, tx.init(w), w)
    new = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(new, expected)
    assert state.calls == 1
    free, _ = transforms.wage(2.0, bits=4, on_grid=False).update(g, state)
    np.testing.assert_array_equal(free, [-0.125, -0.25, 0.25, -0.25, 0, -0.125, 0.125])


@pytest.mark.parametrize("rate", [0.125, 1.0, 8.0, 3.3])
def test_the_mean_of_the_steps_is_the_scaled_gradient_and_they_are_its_neighbours(rate):
    g = numbers(7) * F(0.01)
    draws = 20_000
    wide = jnp.asarray(np.repeat(g[:, None], draws, 1))
    steps = np.asarray(transforms.wage_steps(wide, rate, key=jax.random.key(3)))
    exact = scaled(g, rate)[:, None].astype(float)
    low, high = np.floor(exact), np.ceil(exact)
    assert ((steps == low) | (steps == high)).all()
    deviation = np.sqrt((exact - low) * (high - exact) / draws)
    error = np.abs(steps.mean(1, keepdims=True, dtype=float) - exact)
    assert (error <= 4 * deviation).all()
    assert (steps == low).any()
    assert (steps == high).any()
    assert np.abs(exact).max() <= np.sqrt(2) * rate * (1 + 1e-6)
    assert np.abs(exact).max() >= np.sqrt(0.5) * rate * (1 - 1e-6)


def test_the_noise_is_new_in_every_call_in_every_tensor_and_for_every_seed():
    g = jnp.full((64,), 0.7)  # steps of 0 or 1: S is 1/2
    tx = transforms.wage(0.3, on_grid=False)
    first, state = tx.update({"a": g, "b": g}, tx.init(g))
    second, _ = tx.update({"a": g, "b": g}, state)
    drawn = [first["a"], first["b"], second["a"], second["b"]]
    drawn.append(jnp.asarray(steps_of(np.asarray(g), 0.3, seed=1)) / -128)
    drawn = [np.asarray(each) for each in drawn]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert 5 < (one != other).sum() < 59
    again, _ = tx.update({"a": g, "b": g}, tx.init(g))
    np.testing.assert_array_equal(again["a"], first["a"])


@pytest.mark.parametrize("bits", [2, 8, 12])
def test_a_run_follows_a_replay_that_stores_integers(bits):
    """Integers for weights, as hardware keeps them; the noise is read off the steps."""
    steps, rate = 25, 3.0
    grads = numbers(steps, 6, 5, seed=1) * np.exp(numbers(steps, 1, 1, seed=2))
    w = numbers(6, 5, seed=3) * F(0.4)
    top = 2 ** (bits - 1)
    stored = np.rint(w * top).astype(np.int64)
    tx = transforms.wage(rate, bits=bits)
    free = transforms.wage(rate, bits=bits, on_grid=False)
    params, state = jnp.asarray(w), tx.init(jnp.asarray(w))
    update = jax.jit(tx.update)
    bounds = 0
    for g in grads:
        noisy = -np.asarray(free.update(jnp.asarray(g), state)[0]) * top
        exact = scaled(g, rate)
        assert (np.abs(noisy - exact) < 1).all()
        stored = np.clip(stored - noisy.astype(np.int64), 1 - top, top - 1)
        bounds += (np.abs(stored) == top - 1).sum()
        updates, state = update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        # The first update comes from off the grid: it is as exact as float32's sum.
        off = 2e-7 if state.calls == 1 else 0.0
        np.testing.assert_allclose(np.asarray(params) * top, stored, rtol=off)
    assert bounds > 0 or bits == 12
    assert state.calls == steps


@pytest.mark.parametrize("on_grid", [True, False])
def test_updates_are_multiples_of_the_unit(on_grid):
    tx = transforms.wage(5.0, bits=8, on_grid=on_grid)
    w = jnp.asarray(np.rint(numbers(8, 3) * 30) / 128, jnp.float32)
    updates, _ = tx.update(jnp.asarray(numbers(8, 3, seed=1)), tx.init(w), w)
    whole = np.asarray(updates) * 128
    np.testing.assert_array_equal(whole, np.rint(whole))
    assert (whole != 0).any()


def test_with_the_bits_of_the_weights_they_move_as_the_amplified_ones_of_wage_do():
    """WAGE stores alpha w; here w is what the model has, and the recipe amplifies."""
    shape, alpha = (4, 16, 3), 2.0  # S(1.5 / 2 / sqrt(6 / 64)) = S(2.449)
    w, b = numbers(*shape) * F(0.1), numbers(3)
    ours = transforms.wage(4.0, weight_bits=2)
    theirs = transforms.wage(4.0)
    params = {"b": jnp.asarray(b), "w": jnp.asarray(w)}
    amplified = {"b": params["b"], "w": params["w"] * alpha}
    states = [ours.init(params), theirs.init(params)]
    for step in range(6):
        g = {"b": jnp.asarray(b), "w": jnp.asarray(numbers(*shape, seed=step))}
        updates, states[0] = ours.update(g, states[0], params)
        params = optax.apply_updates(params, updates)
        g["w"] /= alpha  # the chain rule
        updates, states[1] = theirs.update(g, states[1], amplified)
        amplified = optax.apply_updates(amplified, updates)
        np.testing.assert_array_equal(params["w"] * alpha, amplified["w"])
        np.testing.assert_array_equal(params["b"], amplified["b"])
    # The weights that the recipe makes of both are those of Q(alpha w) / alpha.
    rounded, scale = scaling.wage("weight").round(
        params["w"], formats.integer(2), (), axes=(0, 1, 2), key=None,
        use=Use("forward", (0, 1), (2,)),
    )  # fmt: skip
    expected = np.clip(np.rint(np.asarray(amplified["w"]) * 2) / 2, -0.5, 0.5) / alpha
    np.testing.assert_array_equal(rounded * scale, expected)


# What is zero, tiny, huge or not finite


@pytest.mark.parametrize("on_grid", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e-30, 1e30, 2e38, 3.4e38])
def test_a_gradient_of_any_size_makes_steps_by_its_signs(value, on_grid):
    w = jnp.array([0.5, -0.5, 0.25])
    g = jnp.array([value, -value, 0.0], jnp.float32)
    tx = transforms.wage(4.0, on_grid=on_grid)
    steps = -128 * np.asarray(tx.update(g, tx.init(w), w)[0])
    assert np.isfinite(steps).all()
    assert steps[2] == 0
    if value < 1e-37:  # XLA may flush what is subnormal
        assert (np.abs(steps) <= 6).all()
        assert value > 0 or (steps == 0).all()
    else:  # between 4 / sqrt(2) and 4 sqrt(2)
        assert 2 <= steps[0] <= 6
        assert 2 <= -steps[1] <= 6


@pytest.mark.parametrize("on_grid", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_passed_on_and_spoils_nothing_beside_it(bad, on_grid):
    g = numbers(40)
    w = jnp.asarray(np.rint(numbers(40, seed=1) * 30) / 128, jnp.float32)
    tx = transforms.wage(3.0, on_grid=on_grid)
    clean, sick = g.copy(), g.copy()
    clean[7], sick[7] = 0, bad
    expected, _ = tx.update(jnp.asarray(clean), tx.init(w), w)
    found, state = tx.update(jnp.asarray(sick), tx.init(w), w)
    others = np.arange(40) != 7
    np.testing.assert_array_equal(found[others], expected[others])
    np.testing.assert_array_equal(found[7], -bad)
    assert state.calls == 1


# In a program


def test_runs_of_a_pack_may_have_a_seed_each():
    g = jnp.asarray(numbers(5, 9))
    w = jnp.zeros(9)

    def whole(seed):
        tx = transforms.wage(0.6, seed=seed)

        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (w, tx.init(w)), g)

    (packed, _), updates = jax.jit(jax.vmap(whole))(jnp.arange(3))
    assert (packed[0] != packed[1]).any()
    for seed in range(3):
        tx = transforms.wage(0.6, seed=seed)
        params, state = w, tx.init(w)
        for index in range(5):
            found, state = tx.update(g[index], state, params)
            params = optax.apply_updates(params, found)
            np.testing.assert_array_equal(updates[seed, index], found)
        np.testing.assert_array_equal(packed[seed], params)


def test_its_numbers_may_be_injected():
    make = optax.inject_hyperparams(transforms.wage)
    rate = optax.linear_schedule(8.0, 0.0, 2)
    tx = make(learning_rate=rate, bits=6, weight_bits=2)
    w, g = jnp.zeros((2, 2)), jnp.ones((2, 2))
    state = tx.init(w)
    with jax.numpy_dtype_promotion("standard"):  # as optax counts
        for expected in (8, 4, 0):
            updates, state = jax.jit(tx.update)(g, state, w)
            np.testing.assert_array_equal(updates, -expected / 32 * jnp.ones((2, 2)))
    bits = optax.tree_utils.tree_set(state, learning_rate=3.0, bits=jnp.int32(4))
    assert optax.tree_utils.tree_get(bits, "bits") == 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_gradients_keep_their_dtype(dtype):
    w = jnp.array([0.5, -0.25], dtype)
    tx = transforms.wage(1.0)
    updates, _ = tx.update(jnp.array([1.0, -1.0], dtype), tx.init(w), w)
    assert updates.dtype == dtype
    np.testing.assert_array_equal(updates.astype(F) * 128, [-1, 1])


def test_the_optimum_of_a_parabola_is_found_to_a_unit_of_the_grid():
    optimum = jnp.asarray(np.rint(numbers(30) * 30) / 128, jnp.float32)
    tx = optax.inject_hyperparams(transforms.wage)(
        learning_rate=optax.linear_schedule(8.0, 0.125, 200)
    )

    def step(carry, _):
        w, state = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(w - optimum, state, w)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.zeros(30)
    (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), None, 250)
    assert np.abs(w - jnp.clip(optimum, -127 / 128, 127 / 128)).max() <= 1 / 128


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (functools.partial(transforms.wage, -1.0), "learning_rate from 0 to 65536, "),
        (functools.partial(transforms.wage, float("nan")), "got nan."),
        (functools.partial(transforms.wage, float("inf")), "got inf."),
        (functools.partial(transforms.wage, 1.0, bits=1), "bits from 2 to 16, got 1."),
        (functools.partial(transforms.wage, 1.0, bits=17), "bits from 2 to 16, got"),
        (
            functools.partial(transforms.wage, 1.0, weight_bits=0),
            "weight_bits from 2 to 16, got 0.",
        ),
        (
            lambda: transforms.wage(1.0).update(
                jnp.zeros(1), transforms.wage(1.0).init(jnp.zeros(1))
            ),
            "wage needs params in update.",
        ),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_sentence(make, fault):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        make()
    assert fault in str(refused.value)
