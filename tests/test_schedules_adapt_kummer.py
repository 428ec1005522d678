"""AdaPT: its rules by hand, and a run against a replay from gradients and weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats, quantize
from adaprec_jax.formats import fixed_point
from adaprec_jax.schedules import adapt_kummer
from adaprec_jax.schedules.adapt_kummer import Limits, push_down, push_up
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.closed_runs import follow, layers, rows

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

MAX_BITS, BUFFER, BINS, TOLERANCE, SEED = 16, 3, (10, 20), 0.05, 7
MOST_WEIGHTS = 40
ARGUMENTS = {
    "start_word": 12,
    "start_fraction": 9,
    "max_bits": MAX_BITS,
    "buffer_bits": BUFFER,
    "min_lookback": 2,
    "max_lookback": 6,
    "lookback_rate": 0.5,
    "min_resolution": BINS[0],
    "max_resolution": BINS[1],
    "divergence": TOLERANCE,
    "most_weights": MOST_WEIGHTS,
    "seed": SEED,
}
STEPS, SKIPPED = 20, (9,)


@pytest.fixture(scope="module", params=[False, True], ids=["paper", "quirks"])
def run(request):
    schedule = adapt_kummer(**ARGUMENTS, quirks=request.param)
    return request.param, follow(schedule, STEPS, rate=1.0, skipped=SKIPPED)


def kullback_leibler(rounded, x, bins) -> float:
    """Of the histograms over the range of x, one added to each bin."""
    edges = np.linspace(x.min(), x.max(), bins + 1)
    p, q = (
        (np.histogram(v.clip(x.min(), x.max()), edges)[0] + 1) / (x.size + bins)
        for v in (rounded, x)
    )
    return float(np.sum(p * np.log(p / q)))


@functools.cache
def stochastic():
    return jax.jit(
        lambda x, w, f, key: quantize(
            x, fixed_point(w, f), rounding="stochastic", key=key
        )
    )


def pushed_down(x, word, fraction, bins, key, *, failing):
    """The shortest fraction, then word, that pass, one candidate after the other."""

    def passes(w, f):
        rounded = stochastic()(x, jnp.int32(w), jnp.int32(f), key)
        return kullback_leibler(np.asarray(rounded, float), x, bins) <= TOLERANCE

    def shortest(low, now, test):
        for bits in range(low, now):
            if test(bits):
                return max(bits - failing, low)
        return max(now - failing, low)

    fraction = shortest(min(4, fraction), fraction, lambda f: passes(word, f))
    return shortest(max(fraction, 1), word, lambda w: passes(w, fraction)), fraction


def pushed_up(word, fraction, diversity, strategy, *, most=MAX_BITS, buffer=BUFFER):
    d = np.log(diversity) - 1
    more = 1
    if d > 0:
        s1 = max(int(np.ceil(1 / d**2)), 1)
        s2 = max(min(int(np.ceil(32 * d**2)), 32) - fraction, 0)
        more = (min(s1, s2), int(np.ceil((s1 + s2) / 2)), max(s1, s2))[strategy]
    fraction = min(fraction + more, most)
    word = min(max(word, fraction) + 1, most)
    fraction = min(fraction, most - buffer)
    return max(min(fraction + buffer, most), word), fraction


@pytest.mark.slow
def test_a_run_is_what_its_gradients_weights_and_losses_say(run):
    quirks, turns = run
    word, fraction = [12] * 3, [9] * 3
    lookback, bins = [6] * 3, [BINS[1]] * 3
    count, norms = [0] * 3, [0.0] * 3
    total: list = [0.0] * 3
    losses: list = []
    strategy, seen, decided, sizes = 0, set(), 0, set()
    for step, turn in enumerate(turns):
        if turn.stats.finite:
            loss, window = abs(float(turn.stats.loss)), int(np.mean(lookback))
            if len(losses) >= window:
                stalls = np.mean(losses[-window:]) <= loss
                strategy = min(strategy + 1, 2) if stalls else 0
            losses.append(loss)
        width = formats.bits(formats.Format(*turn.formats))
        np.testing.assert_array_equal(width[:, :2], np.transpose([word, word]))
        spacing = turn.formats.min_exponent - turn.formats.mantissa_bits
        np.testing.assert_array_equal(-spacing[:, 1], fraction)
        assert not turn.formats.scaled[:, :2].any()
        seen.add((*word, *fraction))
        if turn.finite:
            gradients = layers({n: w.gradient for n, w in turn.weights.items()})
            values = layers({n: w.value for n, w in turn.weights.items()})
            for i, (g, x) in enumerate(zip(gradients, values, strict=True)):
                size = np.linalg.norm(g)
                if quirks:
                    g, size = g / size, 1.0
                total[i], norms[i] = total[i] + g, norms[i] + size
                count[i] += 1
                diversity = norms[i] / np.linalg.norm(total[i])
                logged = turn.signals["diversity"][i]
                np.testing.assert_allclose(logged, diversity, rtol=1e-4)
                new = np.ceil(np.clip(6 / diversity, 2, 6) - 1e-6)
                lookback[i] = int(np.ceil(0.5 * new + 0.5 * lookback[i]))
                bins[i] += (lookback[i] == 6) - (lookback[i] == 2)
                bins[i] = int(np.clip(bins[i], *BINS))
                if count[i] < lookback[i]:
                    continue
                contraction, layer = ((0, 0), (0, 1), (1, 0))[i]
                key = jnp.array([SEED, step, contraction, layer], jnp.uint32)
                inspected = (x[0] if quirks else x).ravel().astype(np.float32)
                apart = -(-inspected.size // MOST_WEIGHTS)
                inspected = inspected[:: apart + (apart > 1 and apart % 2 == 0)]
                sizes.add(inspected.size)
                word[i], fraction[i] = pushed_down(
                    inspected, word[i], fraction[i], bins[i], key, failing=quirks
                )
                word[i], fraction[i] = pushed_up(
                    word[i], fraction[i], diversity, strategy
                )
                total[i], norms[i], count[i] = 0.0, 0.0, 0
                decided += 1
        found = turn.state.words
        for field, expected in (
            ("word", word),
            ("fraction", fraction),
            ("lookback", lookback),
            ("resolution", bins),
            ("gathered", count),
        ):
            held = rows({path: getattr(w, field) for path, w in found.items()})
            np.testing.assert_array_equal(held, expected, err_msg=f"{field} {step}")
        assert int(turn.state.strategy) == strategy
        sums = layers({path: w.total for path, w in found.items()})
        for held, expected in zip(sums, total, strict=True):
            np.testing.assert_allclose(held, expected + 0 * held, atol=2e-5)
    assert decided >= 6
    assert len(seen) >= 3
    assert max(sizes) <= MOST_WEIGHTS
    assert all(1 <= bits <= MAX_BITS for words in seen for bits in words)


@pytest.mark.slow
def test_a_skipped_step_changes_nothing(run):
    _, turns = run
    (skipped,) = SKIPPED
    assert not turns[skipped].finite
    before, after = turns[skipped - 1].state.words, turns[skipped].state.words
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize(
    ("word", "fraction", "d", "strategy", "expected"),
    [
        # One bit more, and one before it; the buffer of 4 holds.
        (8, 6, -0.5, 2, (11, 7)),
        (12, 6, 0.0, 2, (13, 7)),
        # ceil(1 / 0.81) = 2 and min(ceil(25.92), 32) - 6 = 20; 11 in the mean.
        (8, 6, 0.9, 0, (12, 8)),
        (8, 6, 0.9, 1, (21, 17)),
        (8, 6, 0.9, 2, (24, 20)),
        # ceil(1 / 0.04) = 25 and min(ceil(1.28), 32) - 6 < 0; 13 in the mean.
        (8, 6, 0.2, 0, (10, 6)),
        (8, 6, 0.2, 1, (23, 19)),
        (8, 6, 0.2, 2, (24, 20)),
    ],
)
def test_bits_are_pushed_up_as_the_diversity_and_the_strategy_say(
    word, fraction, d, strategy, expected
):
    bounds = (jnp.int32(24), jnp.int32(4))
    numbers = (jnp.int32(n) for n in (word, fraction))
    diversity = jnp.float32(np.exp(1 + d - 1e-6 * (d == 0)))
    found = push_up(*numbers, diversity, jnp.int32(strategy), *bounds)
    assert tuple(int(bits) for bits in found) == expected
    assert pushed_up(word, fraction, np.exp(1 + d - 1e-6 * (d == 0)), strategy,
                     most=24, buffer=4) == expected  # fmt: skip


def test_weights_on_a_grid_keep_the_fraction_of_the_grid_and_the_word_of_their_range():
    """Multiples of 2^-5 within (-2, 2) need 5 bits behind the point and 2 before it."""
    x = jnp.asarray(np.random.default_rng(0).integers(-63, 64, 4000) / 32, jnp.float32)
    found = jax.jit(push_down, static_argnums=6)(
        x,
        jnp.int32(14),
        jnp.int32(10),
        jnp.int32(100),
        jnp.float32(0.0),
        jnp.array([0, 1], jnp.uint32),
        Limits(max_bits=16, max_lookback=1, max_bins=100, most_weights=4000),
    )
    assert [int(bits) for bits in found] == [7, 5]


@pytest.mark.slow
def test_a_contraction_without_a_parameter_keeps_its_first_word():
    schedule = adapt_kummer(**ARGUMENTS)
    plan, _ = schedule.update(jnp.int32(0), empty(table()), schedule.init(table()))
    assert formats.describe(plan["Attention"].weight) == "fixed<12,9,unscaled>"


@pytest.mark.slow  # the candidates are compiled for every way that it is called
def test_the_contract_is_kept():
    check_schedule(adapt_kummer(**{**ARGUMENTS, "max_lookback": 3}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start_word": 17}, "Expected 1 <= start_word <= max_bits <= 24"),
        ({"max_bits": 25}, "Expected 1 <= start_word <= max_bits <= 24"),
        ({"start_fraction": 13}, "Expected 0 <= start_fraction <= start_word"),
        ({"buffer_bits": 16}, "Expected 0 <= buffer_bits < max_bits"),
        ({"min_lookback": 7}, "Expected 1 <= min_lookback <= max_lookback, got 7 and"),
        ({"max_resolution": 9}, "Expected 1 <= min_resolution <= max_resolution"),
        ({"lookback_rate": 0.0}, "lookback_rate must lie above 0 to 1, got 0.0"),
        ({"most_weights": 0}, "most_weights must be at least 1, got 0"),
        ({"divergence": -1.0}, "divergence must be a number from 0 on, got -1.0"),
        ({"gradient_bits": 0}, "must lie in 1 to 24"),
    ],
)
def test_a_number_out_of_range_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        adapt_kummer(**{**ARGUMENTS, **changed})
