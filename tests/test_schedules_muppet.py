"""Gradient diversity: the published threshold, and a replay from the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import plan as plans
from adaprec_jax.contractions.table import Table
from adaprec_jax.contractions.weights import Weight
from adaprec_jax.schedules import muppet, observed
from adaprec_jax.schedules.muppet import threshold
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.recorded_run import layer_sum, record

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

WIDTHS = [8, 12, 14, 16, 32]


@pytest.mark.parametrize(
    ("epoch", "tau"), [(0, 2.5), (1, 2.357256), (5, 1.909796), (50, 1.010107)]
)
def test_the_threshold_is_the_published_one(epoch, tau):
    rule = muppet(every=1).init(Table((), ())).rule
    assert float(threshold(jnp.int32(epoch), rule)) == pytest.approx(tau, abs=1e-6)


def replay(gradients, resolution, violations, alpha, beta, decay):
    """Stage after each epoch and diversities of each look, from the words of the rule.

    `gradients` has for each epoch, by path, the gradient of its last step.
    """
    stage, largest, seen, window, stages, looks = 0, 0.0, 0, [], [], []
    for epoch, gradient in enumerate(gradients):
        window.append(gradient)
        if len(window) == resolution:
            diversity = {
                path: sum(
                    layer_sum(np.square(np.float64(g[path])), path) for g in window
                )
                / layer_sum(
                    np.square(np.sum([np.float64(g[path]) for g in window], 0)), path
                )
                for path in gradient
            }
            mean = np.mean(np.concatenate([np.ravel(d) for d in diversity.values()]))
            looks.append(diversity)
            window = []
            largest = max(largest, mean)
            seen += largest / mean > alpha + beta * np.exp(-decay * epoch)
            if seen >= violations and stage < len(WIDTHS) - 1:
                stage, largest, seen = stage + 1, 0.0, 0
        stages.append(stage)
    return stages, looks


@pytest.mark.slow
def test_a_run_climbs_when_a_replay_of_its_gradients_does():
    rule = {"resolution": 2, "violations": 1, "alpha": 1.0, "beta": 0.1, "decay": 0.5}
    every, steps, skipped = 2, 60, (7, 12)
    run = record(muppet(every=every, **rule), steps, skipped)
    ends = [t for t in range(steps) if (t + 1) % every == 0 and t not in skipped]
    gradients = [{p: w.gradient for p, w in run[t].weights.items()} for t in ends]
    stages, looks = replay(gradients, **rule)
    epochs = np.searchsorted(ends, np.arange(steps), side="left")  # seen before step t
    expected = [WIDTHS[stages[e - 1] if e else 0] for e in epochs]
    for path in ("blocks", "last"):
        for operand in ("activation", "weight", "gradient"):
            found = [step.bits[path][operand] for step in run]
            assert all((b == e).all() for b, e in zip(found, expected, strict=True))
    assert set(expected) == set(WIDTHS)
    for k, diversity in enumerate(looks):
        logged = run[ends[2 * k + 1]].signals["gradient_diversity"]
        for path, value in diversity.items():
            np.testing.assert_allclose(logged[path], value, rtol=1e-4)
    # The sums in the state, in the middle of two looks.
    t = ends[2 * len(looks)] if len(ends) % 2 else ends[2 * len(looks) - 2]
    for path, weight in run[t].weights.items():
        sums = run[t].state.sums[path]
        np.testing.assert_array_equal(sums.vector, weight.gradient)
        squares = layer_sum(np.square(np.float64(weight.gradient)), path)
        np.testing.assert_allclose(sums.squares, squares, rtol=1e-5)


def after(schedule, gradients):
    """The state after epochs in which every weight has these gradients everywhere."""
    contractions = table()
    state = schedule.init(contractions)
    look = jax.jit(lambda *args: observed(schedule, *args))
    for step, value in enumerate(gradients):
        weights = {
            c.name: Weight(*[jnp.full(c.parameter_shape, value, jnp.float32)] * 3)
            for c in contractions.contractions
            if c.parameter
        }
        state = look(jnp.int32(step), weights, state)
    return state


def test_gradients_that_say_nothing_change_nothing_but_the_count_of_epochs():
    schedule = muppet(every=1, resolution=2, violations=1, beta=0.0)
    known = after(schedule, [1.0, 0.5])
    for nothing in ([0.0, 0.0], [1.0, -1.0], [3e38, 3e38]):
        state = after(schedule, [1.0, 0.5, *nothing])
        assert int(state.stage.epochs) == 4
        jax.tree.map(
            np.testing.assert_array_equal,
            state.stage._replace(epochs=known.stage.epochs),
            known.stage,
        )
    # Two that are alike have half, the least: less than those before.
    assert int(after(schedule, [1.0, 0.5, 1.0, 1.0]).stage.precision) == 1


def test_it_stays_in_float32():
    schedule = muppet(every=1, bits=[4], resolution=2, violations=1, beta=0.0)
    state = after(schedule, [1.0, 0.1, 1.0, 1.0] * 4)
    assert int(state.stage.precision) == 1
    plan, _ = schedule.update(jnp.int32(0), empty(table()), state)
    float32 = "activation float32, weight float32, gradient float32"
    assert {plans.describe_entry(entry) for entry in plan.values()} == {float32}


@pytest.mark.slow
def test_it_keeps_the_contract():
    check_schedule(muppet(every=1, resolution=2, violations=1, beta=0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": []}, "one or more bits"),
        ({"bits": [8, 8]}, "that rise"),
        ({"bits": [8, 25]}, "must lie in 1 to 24"),
        ({"every": 0}, "every=0"),
        ({"resolution": 1}, "resolution=1"),
        ({"violations": 0}, "violations=0"),
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"decay": -1.0}, "decay=-1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        muppet(**{"every": 1, **arguments})
