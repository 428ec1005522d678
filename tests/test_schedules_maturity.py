"""Maturity: the rule on made-up ratios, and a replay from a run's own updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import plan as plans
from adaprec_jax.contractions.weights import Weight
from adaprec_jax.plan import integers
from adaprec_jax.precision import separate
from adaprec_jax.schedules import maturity, observed
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.recorded_run import layer_sum, record

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

HIGH, LOW = integers(8, 8), integers(4, 8)


def replay(looks, window, decay, tolerance, patience):
    """Whether each layer is mature after each look, in float64, from the words."""
    ratio, before, settled, found = {}, {}, {}, []
    for k, weights in enumerate(looks, 1):
        changes = {}
        for path, weight in weights.items():
            norms = [
                np.sqrt(layer_sum(np.square(np.float64(x)), path))
                for x in (weight.update, weight.value)
            ]
            now = norms[0] / norms[1]
            ratio[path] = decay * ratio.get(path, now) + (1 - decay) * now
            if k % window == 0:
                if path in before:
                    change = np.abs(ratio[path] - before[path]) / before[path]
                    streak = settled.get(path, 0)
                    settled[path] = np.where(change <= tolerance, streak + 1, 0)
                    changes[path] = change
                before[path] = ratio[path]
        mature = {path: settled.get(path, 0) >= np.int32(patience) for path in weights}
        found.append((mature, dict(ratio), changes))
    return found


@pytest.mark.slow
def test_a_run_is_low_where_a_replay_of_its_updates_is_mature():
    rule = {"window": 3, "decay": 0.5, "tolerance": 0.3, "patience": 2}
    every, steps, skipped = 2, 72, (9, 20)
    run = record(maturity(HIGH, LOW, **rule, every=every), steps, skipped)
    ends = [t for t in range(steps) if (t + 1) % every == 0 and t not in skipped]
    found = replay([run[t].weights for t in ends], **rule)
    seen = np.searchsorted(ends, np.arange(steps), side="left")
    plans_seen = set()
    for t, step in enumerate(run):
        for path in ("blocks", "last"):
            mature = found[seen[t] - 1][0][path] if seen[t] else np.False_
            for operand in ("activation", "weight"):
                assert (step.bits[path][operand] == np.where(mature, 4, 8)).all()
        plans_seen.add(str([each["weight"] for each in step.bits.values()]))
    assert len(plans_seen) >= 2
    for t, (_, ratio, changes) in zip(ends, found, strict=True):
        for path, value in ratio.items():
            logged = run[t].signals["update_ratio"][path]
            np.testing.assert_allclose(logged, value, rtol=1e-4)
        for path, value in changes.items():
            logged = run[t].signals["ratio_change"][path]
            np.testing.assert_allclose(logged, value, rtol=1e-2, atol=1e-4)


def follow(schedule, ratios):
    """Bits of the weights of `Block/Dense_0` after each look, and the last state."""
    contractions = table()
    state, found = schedule.init(contractions), []
    update = jax.jit(schedule.update)
    look = jax.jit(lambda *args: observed(schedule, *args))
    for step, ratio in enumerate(ratios):
        weights = {}
        for c in contractions.contractions:
            if c.parameter:
                one = jnp.ones(c.parameter_shape)
                moved = one * np.resize(np.float32(ratio), (*c.axes, 1, 1))
                weights[c.name] = Weight(one, one, moved)
        state = look(jnp.int32(step), weights, state)
        plan, state = update(jnp.int32(step), empty(contractions), state)
        bits = plans.bits(plan)
        found.append(separate(bits["Block/Dense_0"]).forward.weight.tolist())
        assert separate(bits["Attention"]).forward.weight == 8
    return found, state


@pytest.mark.parametrize("reverse", [False, True])
def test_a_layer_is_mature_after_patience_and_young_when_it_moves_again(reverse):
    schedule = maturity(
        HIGH, LOW, window=1, decay=0.0, tolerance=0.1, patience=2, reverse=reverse
    )
    ratios = [[1, 1, 0], [1.05, 2, 0], [1, 4, 0], [1, 8, 0], [2, 8, 0], [2, 8, 0]]
    found, _ = follow(schedule, ratios)
    young, mature = (4, 8) if reverse else (8, 4)
    expected = [
        [False, False, False],
        [False, False, False],
        [True, False, True],
        [True, False, True],
        [False, False, True],
        [False, True, True],
    ]
    assert found == [[mature if each else young for each in row] for row in expected]


def test_a_ratio_that_is_not_finite_is_left_out():
    schedule = maturity(HIGH, LOW, window=1, decay=0.5, patience=1)
    _, known = follow(schedule, [[1, 1, 1]] * 2)
    found, state = follow(schedule, [[1, 1, 1], [1, 1, 1], [3e38, np.nan, np.inf]])
    np.testing.assert_array_equal(
        state.ages["Block/Dense_0"].ratio, known.ages["Block/Dense_0"].ratio
    )
    assert found[-1] == [4, 4, 4]


@pytest.mark.slow
def test_it_keeps_the_contract():
    check_schedule(maturity(HIGH, LOW, window=2, patience=1, tolerance=0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"every": 0}, "every=0"),
        ({"patience": 0}, "patience=0"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"low": separate(LOW)}, "entries of one type"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        maturity(**{"high": HIGH, "low": LOW, "window": 1, **arguments})
