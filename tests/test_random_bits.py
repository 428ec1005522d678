"""The generator behind stochastic rounding: uniform, independent, a pure function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from adaprec_jax.random_bits import random_bits

N = 2**19
draw = jax.jit(random_bits, static_argnums=1)
KEYS = [(0, 0), (0, 1), (1, 0), (0, 2), (2**31, 0), (0, 2**31), (12345, 67890)]
KEYS = [np.array(words, np.uint32) for words in KEYS]


@functools.cache
def words(index: int) -> np.ndarray:
    return np.asarray(draw(KEYS[index], (N,)))


@jax.jit
def correlations(left, right):
    """Returns the correlation of each bit of the one with each bit of the other.

    In units of its deviation if there is none: 1024 standard normal numbers, of which
    the largest is below 5.5 with a probability of 1 - 4e-5.
    """
    places = jnp.arange(32, dtype=jnp.uint32)[None]
    left, right = (
        ((words[:, None] >> places) & 1).astype(jnp.float32) * 2 - 1
        for words in (left, right)
    )
    return left.T @ right / jnp.sqrt(jnp.float32(left.shape[0]))


@pytest.mark.parametrize("index", range(len(KEYS)))
def test_bytes_and_pairs_of_bytes_are_uniform(index):
    drawn = words(index)
    for shift in (0, 8, 16, 24):
        byte = (drawn >> shift) & 255
        pair = byte[:-1].astype(np.int64) * 256 + byte[1:]
        for values, cells in ((byte, 2**8), (pair, 2**16)):
            counts = np.bincount(values, minlength=cells)
            assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("lag", [0, 1, 64])
def test_bits_of_neighbouring_counters_are_uncorrelated(lag):
    for index in (1, 6):
        products = correlations(words(index)[: N - lag], words(index)[lag:])
        own = np.eye(32, dtype=bool) & (lag == 0)
        assert np.abs(products)[~own].max() < 5.5


def test_bits_of_neighbouring_keys_are_uncorrelated():
    for index in range(1, len(KEYS)):
        assert np.abs(correlations(words(0), words(index))).max() < 5.5


def test_the_same_words_come_eagerly_jitted_mapped_and_in_any_shape():
    keys = jax.random.split(jax.random.key(1), 3)
    shape = (4, 5, 6)
    eager = jnp.stack([random_bits(key, shape) for key in keys])
    mapped = jax.vmap(lambda key: random_bits(key, shape))(keys)
    jitted = jnp.stack([draw(key, shape) for key in keys])
    flat = jnp.stack([draw(key, (120,)).reshape(shape) for key in keys])
    for other in (mapped, jitted, flat):
        np.testing.assert_array_equal(other, eager)
    assert len(np.unique(eager)) == eager.size


def test_raw_and_typed_keys_of_every_generator_are_taken():
    for name in ("threefry2x32", "rbg"):
        key = jax.random.key(3, impl=name)
        raw = jax.random.key_data(key)
        np.testing.assert_array_equal(draw(key, (9,)), draw(raw, (9,)))
        other = draw(jax.random.fold_in(key, 1), (9,))
        assert not np.array_equal(draw(key, (9,)), other)


def test_sharding_does_not_change_the_words():
    mesh = jax.make_mesh((4, 2), ("a", "b"), (jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.NamedSharding(mesh, jax.P("a", "b"))
    split = jax.jit(random_bits, static_argnums=1, out_shardings=sharding)
    np.testing.assert_array_equal(split(KEYS[1], (8, 6)), draw(KEYS[1], (8, 6)))


@pytest.mark.parametrize(
    "key", [np.uint32(3), np.zeros(2, np.int32), np.zeros((3, 2), np.uint32)]
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match="key must be one JAX key or its uint32 words"):
        random_bits(key, (3,))
