"""Tests of the data order: exact, stable, and a permutation in every epoch."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adaprec_jax.tasks import order

MASK = 2**64 - 1


def splitmix64(seed):
    """The published generator, in whole numbers without bound."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def reference_permutation(size, seed, counter):
    stream = splitmix64(seed)
    for _ in range(counter + 1):
        key = next(stream)
    stream = splitmix64(key)
    keys = [next(stream) for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)


def test_the_reference_gives_the_published_numbers():
    # Test vector of the reference implementation in C, seed 1234567.
    stream = splitmix64(1234567)
    assert [next(stream) for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(size=st.integers(1, 60), seed=st.integers(0, MASK), counter=st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_a_permutation_is_the_order_of_splitmix64(size, seed, counter):
    expected = reference_permutation(size, seed, counter)
    assert order.permutation(size, seed, counter).tolist() == expected


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 50),
    share=st.floats(0.01, 1),
    steps=st.integers(1, 40),
)
@settings(max_examples=50, deadline=None)
def test_each_epoch_reads_every_example_once(seed, size, share, steps):
    batch = max(1, round(share * size))
    read = order.indices(seed, np.arange(steps), batch, size)
    assert read.shape == (steps, batch)
    stream = read.ravel()
    whole = len(stream) // size * size
    for epoch in stream[:whole].reshape(-1, size):
        assert sorted(epoch.tolist()) == list(range(size))
    rest = stream[whole:].tolist()
    assert len(set(rest)) == len(rest)


def test_any_step_is_computed_directly():
    steps = np.array([[0, 7], [3, 10_000_000]])
    together = order.indices(5, steps, 24, 100)
    for place in np.ndindex(steps.shape):
        alone = order.indices(5, int(steps[place]), 24, 100)
        np.testing.assert_array_equal(together[place], alone)


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(order.permutation(50, seed, epoch).tolist())
        for seed in range(20)
        for epoch in range(20)
    }
    assert len(orders) == 400


def test_every_example_is_equally_likely_at_every_place():
    size, repeats = 8, 4000
    counts = np.zeros((size, size))
    for epoch in range(repeats):
        counts[np.arange(size), order.permutation(size, 0, epoch)] += 1
    expected = repeats / size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # 49 degrees of freedom: mean 49, standard deviation 9.9.
    assert chi_squared < 49 + 4 * 9.9


def test_the_order_does_not_change_between_versions():
    # Stored when the order was first written: results depend on it for ever.
    stored = [1015, 384, 379, 468, 838, 453, 642, 928]
    assert order.indices(3, 41, 8, 1079).tolist() == stored


@pytest.mark.parametrize(
    ("seed", "step", "batch", "message"),
    [
        (0, 0, 0, "1 to 10 examples"),
        (0, 0, 11, "1 to 10 examples"),
        (-1, 0, 2, "must be 0 to 2"),
        (2**64, 0, 2, "must be 0 to 2"),
        (0, -1, 2, "must be 0 to 2"),
    ],
)
def test_an_impossible_order_is_refused(seed, step, batch, message):
    with pytest.raises(ValueError, match=message):
        order.indices(seed, step, batch, 10)


@pytest.mark.parametrize(("size", "batch"), [(1, 4), (4, 4), (5, 4), (9, 2)])
def test_chunks_hold_every_row_once_and_then_filling(size, batch):
    rows = np.arange(10, 10 + size, dtype=np.int32)
    chunks = order.chunks(rows, batch)
    assert chunks.shape == (-(-size // batch), batch)
    np.testing.assert_array_equal(chunks.ravel()[:size], rows)
    assert set(chunks.ravel()[size:].tolist()) <= {10 + size - 1}
