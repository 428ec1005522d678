"""Noise in the place of rounding: as large, without mean, and independent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adaprec_jax import formats
from adaprec_jax.scaling import Use, blockwise, current, delayed, noise, none
from adaprec_jax.testing import check_recipe

N = 100_000
X = jnp.asarray(np.random.default_rng(0).normal(size=N) ** 3, jnp.float32)
INT4 = formats.integer(4)


def noisy(x, fmt=INT4, seed=0, recipe=None, **settings):
    made = recipe or noise(current(), **settings)
    key = jax.random.key(seed)
    return made.round(x, fmt, (), axes=tuple(range(x.ndim)), key=key)


def error_of(x, fmt=INT4):
    """The error of rounding to the nearest multiple of a power-of-two scale."""
    x = np.asarray(x, np.float64)
    scale = 2.0 ** np.ceil(np.log2(np.abs(x).max() / float(fmt.max_value)))
    return np.round(x / scale) * scale - x


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_the_noise_is_as_large_as_rounding_and_says_nothing_of_the_tensor(distribution):
    values, scale = noisy(X, distribution=distribution)
    assert scale.tolist() == [1.0]
    added = np.asarray(values, np.float64) - np.asarray(X, np.float64)
    power = np.mean(error_of(X) ** 2)
    # Of n draws a mean square has the relative deviation sqrt((kurtosis - 1) / n).
    kurtosis = {"uniform": 1.8, "normal": 3.0}[distribution]
    bound = 4 * np.sqrt((kurtosis - 1) / N)
    assert np.mean(added**2) == pytest.approx(power, rel=bound)
    assert abs(added.mean()) < 4 * np.sqrt(power / N)
    for other in (X, jnp.abs(X), X**2):
        assert abs(np.corrcoef(added, other)[0, 1]) < 4 / np.sqrt(N)
    assert abs(np.corrcoef(added[1:], added[:-1])[0, 1]) < 4 / np.sqrt(N)
    drawn = {"uniform": stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)),
             "normal": stats.norm()}[distribution]  # fmt: skip
    assert stats.kstest(added / np.sqrt(power), drawn.cdf).pvalue > 1e-4
    # Rounding is another thing: its error follows from the tensor.
    assert abs(np.corrcoef(error_of(X), X)[0, 1]) > 4 / np.sqrt(N)


def test_the_draw_depends_on_the_key_alone():
    first, again, other = (noisy(X, seed=s)[0] - X for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 4 / np.sqrt(N)
    shifted = noisy(X[::-1])[0] - X[::-1]  # as large, whatever stands where
    np.testing.assert_allclose(shifted, first, atol=1e-5)
    with pytest.raises(ValueError, match="Noise needs a key"):
        noise(current()).round(X, INT4, (), axes=(0,), key=None)


def test_what_rounding_does_not_change_noise_does_not_either():
    for x, fmt in (
        (X, formats.get("float32")),
        (jnp.zeros(8), INT4),
        (jnp.full(8, 2.0), INT4),
    ):
        np.testing.assert_array_equal(noisy(x, fmt)[0], x)


def test_the_gradient_goes_straight_through():
    slope = jax.grad(lambda x: jnp.sum(noisy(x)[0] * jnp.arange(5.0)))(X[:5])
    assert slope.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_huge_tiny_and_bad_numbers():
    largest = float(np.finfo(np.float32).max)
    huge = jnp.linspace(-1.0, 1.0, 99) * largest
    assert jnp.isfinite(noisy(huge)[0]).all()
    share = (np.asarray(noisy(huge)[0], float) - np.asarray(huge, float)) / largest
    assert 0.01 < np.std(share) < 0.1
    assert jnp.isfinite(noisy(1e-38 * X)[0]).all()
    bad = noisy(X[:4].at[1].set(jnp.nan).at[2].set(jnp.inf), recipe=noise(none()))[0]
    assert np.isnan(bad[1])
    assert np.isinf(bad[2])


@pytest.mark.parametrize("inner", [current(), delayed(3), blockwise(4)])
def test_it_keeps_the_contract_of_recipes(inner):
    made = noise(inner)
    # As contractions call it; without, the sum of squares has another last digit.
    static = ("axes", "axis_names", "use") if made.per_product else ("axes",)
    jitted = jax.jit(made.round, static_argnames=static)
    check_recipe(made._replace(round=jitted), key=jax.random.key(0))


def test_tensors_of_a_batch_have_each_their_own_noise():
    x = jnp.stack([X[:5000], 100 * X[5000:10_000]])
    keys = jax.random.split(jax.random.key(0))
    one = functools.partial(noise(current()).round, axes=(0,))
    together = jax.jit(jax.vmap(lambda x, key: one(x, INT4, (), key=key)[0]))(x, keys)
    for row, key, got in zip(x, keys, together, strict=True):
        alone = one(row, INT4, (), key=key)[0]
        np.testing.assert_allclose(got, alone, rtol=1e-5, atol=1e-4)
    spread = np.std(np.asarray(together - x), axis=1)
    wanted = [np.sqrt(np.mean(error_of(row) ** 2)) for row in x]
    np.testing.assert_allclose(spread, wanted, rtol=0.05)


def test_blocks_have_one_variance_for_the_whole_tensor():
    x = jnp.concatenate([X[:4000], 1000 * X[4000:8000]]).reshape(2, 4000)
    made = noise(blockwise(4000))
    values, scale = made.round(
        x, INT4, (), axes=(0, 1), key=jax.random.key(0), use=Use("forward", (1,))
    )
    spread = np.std(np.asarray(values * scale - x), axis=1)
    assert spread[0] == pytest.approx(spread[1], rel=0.05)
