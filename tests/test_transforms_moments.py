"""Moments in narrow formats: each rule against a replay in NumPy."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from adaprec_jax import formats, scaling, transforms
from adaprec_jax.transforms.rounding import as_arrays
from tests.test_transforms import numbers, power_of_two_scale

E4M3 = formats.get("float8_e4m3fn")
INT4 = formats.get("int4")
MOMENTS = (transforms.coat(4)["mu"], *transforms.fp8_lm().values())


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
