"""LDP: learned bits, by hand and in a run against a replay from the weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.schedules import ldp
from adaprec_jax.schedules.ldp import descended
from adaprec_jax.testing import check_schedule, table
from tests.closed_runs import follow, integer_rounded, layers, rows
from tests.small_run import CLASSES, FEATURES, LAYERS

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

MACS = np.array([FEATURES * FEATURES] * LAYERS + [FEATURES * CLASSES], float)
ARGUMENTS = {
    "min_bits": 2,
    "max_bits": 6,
    "start_bits": 6,
    "gradient_bits": 8,
    "target_bits": 4.0,
    "penalty": 2.0,
    "rate": 0.7,
    "largest_move": 0.4,
}


@pytest.fixture(scope="module")
def turns():
    return follow(ldp(**ARGUMENTS, every=2), 30, skipped=(7,))


@pytest.mark.slow
def test_a_run_descends_along_the_slopes_of_its_weights_and_gradients(turns):
    bits, seen, clipped = np.full(3, 6.0), set(), 0
    for step, turn in enumerate(turns):
        width = formats.bits(formats.Format(*turn.formats))
        whole = np.rint(bits)
        np.testing.assert_array_equal(width[:, :2], np.transpose([whole, whole]))
        assert (width[:, [2, 4]] == 8).all()
        seen.add(tuple(whole))
        if (step + 1) % 2 == 0 and turn.finite:
            values = layers({name: w.value for name, w in turn.weights.items()})
            gradients = layers({name: w.gradient for name, w in turn.weights.items()})
            slope = []
            for w, g, n in zip(values, gradients, whole, strict=True):
                n = int(min(n, 5))
                finer, coarser = integer_rounded(w, n + 1), integer_rounded(w, n)
                slope.append(np.sum(g * (finer - coarser)))
            np.testing.assert_allclose(turn.signals["slope"], slope, atol=1e-5)
            share = MACS / MACS.sum()
            cost = 2.0 * (share @ bits - 4.0) * share
            move = 0.7 * (np.array(slope) + cost)
            clipped += np.sum(np.abs(move) > 0.4)
            bits = np.clip(bits - np.clip(move, -0.4, 0.4), 2, 6)
        np.testing.assert_allclose(rows(turn.state.bits), bits, atol=1e-4)
        np.testing.assert_array_equal(
            turn.signals["learned_bits"], rows(turn.state.bits)
        )
        bits = rows(turn.state.bits).astype(np.float64)
    assert len(seen) >= 3
    assert clipped > 0
    np.testing.assert_array_equal(rows(turns[7].state.bits), rows(turns[6].state.bits))


NUMBERS = ldp(**ARGUMENTS).init(table()).descent


def moved(bits, slope, macs, **numbers):
    changed = {name: jnp.float32(value) for name, value in numbers.items()}
    found = descended(
        *(jnp.asarray(x, jnp.float32) for x in (bits, slope, macs)),
        NUMBERS._replace(**changed),
    )
    return np.asarray(found)


def test_without_a_penalty_the_bits_go_down_the_slope():
    found = moved([4.0, 4.0], [0.1, -0.2], [1, 1], penalty=0.0, rate=1.0)
    np.testing.assert_allclose(found, [3.9, 4.2], rtol=1e-6)


def test_the_penalty_draws_the_weighted_mean_to_its_target():
    bits = np.array([6.0, 5.0])
    for _ in range(200):
        bits = moved(bits, [0.0, 0.0], [3, 1], target_bits=4.0, rate=0.05)
    np.testing.assert_allclose(bits @ [0.75, 0.25], 4.0, atol=1e-3)
    # The mean's derivative is three times as large for the first.
    np.testing.assert_allclose(6.0 - bits[0], 3 * (5.0 - bits[1]), rtol=1e-2)


def test_moves_and_bits_are_bounded():
    found = moved([4.0, 5.9, 2.1], [9.0, -9.0, 9.0], [1, 1, 1], penalty=0.0)
    np.testing.assert_allclose(found, [3.6, 6.0, 2.0], rtol=1e-6)


def test_a_slope_that_is_not_known_moves_nothing_and_costs_nothing():
    found = moved([6.0, 5.0], [np.nan, 0.0], [9, 1], target_bits=5.0)
    np.testing.assert_array_equal(found, [6.0, 5.0])
    assert moved([6.0, 4.0], [np.inf, 0.0], [1, 1])[0] == 6.0


@pytest.mark.slow
def test_the_contract_is_kept():
    check_schedule(ldp(**ARGUMENTS, every=3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start_bits": 7}, "Expected 1 <= min_bits <= start_bits <= max_bits, and"),
        ({"target_bits": 1.0}, "Expected min_bits <= target_bits <= max_bits"),
        ({"penalty": -1.0}, "penalty must be a number from 0 on, got -1.0"),
        ({"rate": 0.0}, "rate must be a number above 0, got 0.0"),
        ({"largest_move": float("nan")}, "largest_move must be a number above 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"gradient_bits": 25}, "must lie in 1 to 24"),
    ],
)
def test_a_number_out_of_range_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        ldp(**{**ARGUMENTS, **changed})
