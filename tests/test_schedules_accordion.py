"""Critical regimes: the rule on made-up gradients, and a replay from a run's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import plan as plans
from adaprec_jax.contractions.weights import Weight
from adaprec_jax.plan import integers
from adaprec_jax.precision import separate
from adaprec_jax.schedules import accordion, observed
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.recorded_run import layer_sum, record

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

HIGH, LOW = integers(8, 8), integers(4, 8)


def replay(run, window, threshold, decays):
    """Whether each layer is high at each step, from the words of the rule."""
    paths = run[0].weights
    high = dict.fromkeys(paths, True)
    norm = dict.fromkeys(paths)
    gathered, found, changes = [], [], []
    for t, step in enumerate(run):
        if t in decays:
            gathered, high = [], dict.fromkeys(paths, True)
        found.append(dict(high))
        if step.applied:
            gathered.append({p: w.gradient for p, w in step.weights.items()})
        if len(gathered) == window:
            change = {}
            for path in paths:
                total = np.sum([np.float64(g[path]) for g in gathered], 0)
                new, old = np.sqrt(layer_sum(total**2, path)), norm[path]
                if old is None:
                    high[path] = True
                else:
                    change[path] = np.abs(old - new) / old
                    high[path] = change[path] >= threshold
                norm[path] = new
            changes.append((t, change))
            gathered = []
    return found, changes


@pytest.mark.slow
def test_a_run_is_high_where_a_replay_of_its_gradients_is():
    rule = {"window": 4, "threshold": 0.4, "decays": (30,)}
    run = record(accordion(HIGH, LOW, **rule), 60, (7, 18, 19))
    found, changes = replay(run, **rule)
    plans_seen = set()
    for step, high in zip(run, found, strict=True):
        for path, is_high in high.items():
            expected = np.where(is_high, 8, 4)
            for operand in ("activation", "weight"):
                assert (step.bits[path][operand] == expected).all()
            assert (step.bits[path]["gradient"] == 8).all()
        plans_seen.add(str([step.bits[path]["weight"] for path in high]))
    assert len(plans_seen) >= 3
    assert all(np.all(high["blocks"]) for high in found[:8] + found[30:34])
    assert not all(np.all(high["blocks"]) for high in found[8:30])
    for t, change in changes:
        for path, value in change.items():
            logged = run[t].signals["norm_change"][path]
            np.testing.assert_allclose(logged, value, rtol=1e-3, atol=1e-5)
    # The sum in the state, in the middle of the first window.
    for path, weight in run[1].weights.items():
        total = run[0].weights[path].gradient + weight.gradient
        np.testing.assert_array_equal(run[1].state.windows[path].gradient, total)


def follow(schedule, gradients):
    """Bits of the weights of `Block/Dense_0` before each step, and the last state."""
    contractions = table()
    state, found = schedule.init(contractions), []
    update = jax.jit(schedule.update)
    look = jax.jit(lambda *args: observed(schedule, *args))
    for step, value in enumerate(gradients):
        plan, state = update(jnp.int32(step), empty(contractions), state)
        bits = plans.bits(plan)
        found.append(separate(bits["Block/Dense_0"]).forward.weight.tolist())
        assert separate(bits["Attention"]).forward.weight == 8
        weights = {
            c.name: Weight(
                *[jnp.ones(c.parameter_shape) * np.resize(value, (*c.axes, 1, 1))] * 3
            )
            for c in contractions.contractions
            if c.parameter
        }
        state = look(jnp.int32(step), weights, state)
    return found, state


def test_a_layer_is_high_while_its_norm_changes_by_half():
    three = [np.float32([1, 1, 1]), np.float32([1, 1.4, 1.6]), np.float32([1, 1.4, 0])]
    found, _ = follow(accordion(HIGH, LOW, window=1), [*three, three[2], three[2]])
    # Twice for want of a window before; the third falls to zero, and then is at it.
    assert found == [[8, 8, 8], [8, 8, 8], [4, 4, 8], [4, 4, 8], [4, 4, 8]]


def test_after_a_decay_all_are_high_for_a_whole_window():
    schedule = accordion(HIGH, LOW, window=2, decays=[7])
    found, _ = follow(schedule, [np.float32([1, 1, 1])] * 12)
    high = [bits == [8, 8, 8] for bits in found]
    assert high == [True] * 4 + [False] * 3 + [True] * 2 + [False] * 3


def test_a_window_that_is_not_finite_changes_nothing():
    one = np.float32([1, 1, 1])
    schedule = accordion(HIGH, LOW, window=1)
    _, known = follow(schedule, [one, one])
    _, state = follow(schedule, [one, one, one * np.float32(3e38)])
    jax.tree.map(np.testing.assert_array_equal, state.windows, known.windows)


@pytest.mark.slow
def test_it_keeps_the_contract():
    check_schedule(accordion(HIGH, LOW, window=2, decays=[5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window of at least 1"),
        ({"threshold": 0.0}, "threshold above 0"),
        ({"decays": [-1]}, "from 0 on"),
        ({"low": separate(LOW)}, "entries of one type"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        accordion(**{"high": HIGH, "low": LOW, "window": 1, **arguments})
