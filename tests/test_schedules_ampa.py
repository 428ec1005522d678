"""AMPA: bits under a budget, by hand and in a run against a replay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adaprec_jax import formats
from adaprec_jax.schedules import ampa
from adaprec_jax.schedules.ampa import Budget, allocate
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.closed_runs import follow, integer_rounded, layers, rows
from tests.small_run import CLASSES, FEATURES, LAYERS

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

MACS = np.array([FEATURES * FEATURES] * LAYERS + [FEATURES * CLASSES], float)
ARGUMENTS = {
    "min_bits": 2,
    "max_bits": 6,
    "start_bits": 4,
    "gradient_bits": 8,
    "mean_bits": 4.2,
}
SCHEDULE = ampa(**ARGUMENTS, every=3)


@pytest.fixture(scope="module")
def turns():
    return follow(SCHEDULE, 31, skipped=(8,))


def exchanged(bits, sensitivity, macs, *, low, high, mean, moves):
    """One exchange, layer by layer as the description says it."""
    bits, rising = list(bits), sorted(range(len(bits)), key=lambda i: sensitivity[i])
    raised = [i for i in rising[::-1] if bits[i] < high][:moves]
    can_fall = [i for i in rising if bits[i] > low and i not in raised]
    for i in raised:
        bits[i] += 1
    before = [b - (i in raised) for i, b in enumerate(bits)]
    for place, i in enumerate(can_fall):
        if place < moves or np.dot(bits, macs) > mean * sum(macs) * (1 + 1e-6):
            bits[i] -= 1
    return bits if np.dot(bits, macs) <= mean * sum(macs) * (1 + 1e-6) else before


@pytest.mark.slow
def test_a_run_exchanges_bits_as_the_weights_and_gradients_say(turns):
    bits, seen = [4, 4, 4], set()
    for step, turn in enumerate(turns):
        if turn.stats.finite and step % 3 == 0:
            shown = turns[step - 1].weights
            values = layers({name: w.value for name, w in shown.items()})
            gradients = layers({name: w.gradient for name, w in shown.items()})
            sensitivity = [
                np.abs(w - integer_rounded(w, b)).sum() * np.abs(g).mean()
                for w, g, b in zip(values, gradients, bits, strict=True)
            ]
            logged = turns[step - 1].signals["sensitivity"]
            np.testing.assert_allclose(logged, sensitivity, rtol=1e-4)
            bits = exchanged(bits, sensitivity, MACS, low=2, high=6, mean=4.2, moves=1)
        np.testing.assert_array_equal(rows(turn.state.bits), bits)
        width = formats.bits(formats.Format(*turn.formats))
        np.testing.assert_array_equal(width[:, :2], np.transpose([bits, bits]))
        assert (width[:, [2, 4]] == 8).all()
        assert np.dot(bits, MACS) <= 4.2 * MACS.sum() * (1 + 1e-6)
        seen.add(tuple(bits))
    assert len(seen) >= 3
    assert turns[9].stats.finite == np.False_
    np.testing.assert_array_equal(rows(turns[9].state.bits), rows(turns[8].state.bits))


NUMBERS = Budget(
    min_bits=jnp.int32(2),
    max_bits=jnp.int32(8),
    gradient_bits=jnp.int32(8),
    mean_bits=jnp.float32(5.0),
    moves=jnp.int32(1),
    every=jnp.int32(1),
)


def moved(bits, sensitivity, macs, counts=None, **numbers):
    numbers = {
        name: jnp.asarray(value, getattr(NUMBERS, name).dtype)
        for name, value in numbers.items()
    }
    return jax.jit(allocate)(
        jnp.asarray(bits, jnp.int32),
        jnp.asarray(sensitivity, jnp.float32),
        jnp.asarray(macs, jnp.float32),
        jnp.ones(len(bits), jnp.bool_) if counts is None else jnp.asarray(counts),
        NUMBERS._replace(**numbers),
    ).tolist()


def test_the_most_sensitive_rises_and_the_least_sensitive_falls():
    assert moved([5, 5, 5], [3.0, 1.0, 2.0], [1, 1, 1]) == [6, 4, 5]


def test_a_heavy_layer_rises_only_if_enough_others_can_fall():
    assert moved([5, 5, 5, 5], [9.0, 1.0, 2.0, 3.0], [2, 1, 1, 1]) == [6, 4, 4, 5]
    assert moved([5, 5, 5], [9.0, 1.0, 2.0], [4, 1, 1]) == [5, 5, 5]


def test_bounds_hold_and_the_next_in_order_moves_instead():
    assert moved([8, 5, 2, 5], [9.0, 5.0, 1.0, 2.0], [1] * 4) == [8, 6, 2, 4]


def test_without_a_limit_that_binds_as_many_rise_as_are_told():
    assert moved([3] * 4, [4.0, 3.0, 2.0, 1.0], [1] * 4, moves=2) == [4, 4, 2, 2]


def test_a_layer_without_a_parameter_takes_no_part():
    found = moved([5, 5, 5], [np.nan, 1.0, 2.0], [9, 1, 1], [False, True, True])
    assert found == [5, 4, 6]
    assert moved([5, 5, 5], [np.nan, 1.0, 2.0], [1, 1, 1]) == [5, 5, 5]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 8), st.integers(1, 9)), min_size=5, max_size=5),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_the_budget_is_kept_whatever_the_sensitivities(items, moves, random):
    bits, macs = (list(x) for x in zip(*items, strict=True))
    mean = np.ceil(np.dot(bits, macs) / sum(macs))
    sensitivity = random.sample(range(100), len(bits))
    found = moved(bits, sensitivity, macs, mean_bits=mean, moves=moves)
    assert np.dot(found, macs) <= mean * sum(macs) * (1 + 1e-5)
    assert np.abs(np.subtract(found, bits)).max() <= 1
    assert found == exchanged(
        bits, sensitivity, macs, low=2, high=8, mean=mean, moves=moves
    )


@pytest.mark.slow
def test_contractions_without_a_parameter_keep_their_bits():
    schedule = ampa(**ARGUMENTS)
    plan, _ = schedule.update(jnp.int32(0), empty(table()), schedule.init(table()))
    assert int(formats.bits(plan["Attention"].activation)) == 4


@pytest.mark.slow
def test_the_contract_is_kept():
    check_schedule(ampa(**ARGUMENTS, every=2, moves=2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start_bits": 7}, "Expected 1 <= min_bits <= start_bits <= max_bits"),
        ({"mean_bits": 3.0}, "Expected start_bits <= mean_bits <= max_bits"),
        ({"mean_bits": float("nan")}, "Expected start_bits <= mean_bits"),
        ({"moves": 0}, "Expected moves and every of at least 1, got moves=0"),
        ({"gradient_bits": 25}, "must lie in 1 to 24"),
    ],
)
def test_a_number_out_of_range_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        ampa(**{**ARGUMENTS, **changed})
