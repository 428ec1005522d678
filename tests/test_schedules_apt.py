"""Gradients in grid steps: the rule on made-up weights, and a replay of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats, plan as plans, scaling
from adaprec_jax.contractions.weights import Weight
from adaprec_jax.schedules import apt, observed
from adaprec_jax.schedules.grid import log_step
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.recorded_run import layer_sum, record

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

BOUNDS = {
    "min_bits": 3, "max_bits": 8, "start_bits": 5, "activation_bits": 7,
    "gradient_bits": 6,
}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("largest", [1e-20, 0.9, 1.0, 7.0, 127.0, 3e20])
def test_the_grid_step_is_the_scale_of_the_recipe_in_force(bits, largest):
    x = jnp.asarray([largest, -largest / 3], jnp.float32)
    _, scale = scaling.current().round(
        x, formats.integer(bits), (), axes=(0,), key=None
    )
    assert 2.0 ** int(log_step(jnp.float32(largest), jnp.int32(bits))) == float(
        scale[0]
    )


def replay(looks, low, high, decay):
    """Bits and Gavg after each look, in float64, from the words of the rule."""
    bits, average, found = {}, {}, []
    for weights in looks:
        gavg = {}
        for path, weight in weights.items():
            size = layer_sum(np.ones_like(weight.value), path)
            mean = layer_sum(np.abs(weight.gradient), path) / size
            axes = tuple(range(np.ndim(size), weight.value.ndim))
            largest = np.abs(np.float64(weight.value)).max(axes)
            k = bits.get(path, np.full(np.shape(size), BOUNDS["start_bits"]))
            average[path] = decay * average.get(path, mean) + (1 - decay) * mean
            step = 2.0 ** np.ceil(np.log2(largest / (2.0 ** (k - 1) - 1)))
            gavg[path] = average[path] / step
            moved = k + (gavg[path] < low) - 1 * (gavg[path] > high)
            bits[path] = np.clip(moved, BOUNDS["min_bits"], BOUNDS["max_bits"])
        found.append((dict(bits), gavg))
    return found


@pytest.mark.slow
def test_a_run_has_the_bits_that_a_replay_of_its_weights_has():
    rule = {"low": 0.02, "high": 0.06, "decay": 0.5}
    every, steps, skipped = 3, 45, (5, 10, 11)
    run = record(apt(**BOUNDS, **rule, every=every), steps, skipped)
    ends = [t for t in range(steps) if (t + 1) % every == 0 and t not in skipped]
    found = replay([run[t].weights for t in ends], **rule)
    seen = np.searchsorted(ends, np.arange(steps), side="left")
    widths = set()
    for t, step in enumerate(run):
        for path in ("blocks", "last"):
            bits = found[seen[t] - 1][0][path] if seen[t] else BOUNDS["start_bits"]
            np.testing.assert_array_equal(step.bits[path]["weight"], bits)
            assert (step.bits[path]["activation"] == 7).all()
            assert (step.bits[path]["gradient"] == 6).all()
            widths |= {*np.ravel(step.bits[path]["weight"]).tolist()}
    for t, (_, gavg) in zip(ends, found, strict=True):
        for path, value in gavg.items():
            np.testing.assert_allclose(run[t].signals["gavg"][path], value, rtol=1e-4)
    assert len(widths) >= 3
    assert widths <= set(range(3, 9))


def after(schedule, looks):
    """The state after looks at (weight, gradient), the same everywhere."""
    contractions = table()
    state = schedule.init(contractions)
    look = jax.jit(lambda *args: observed(schedule, *args))
    for step, values in enumerate(looks):
        w, g = map(jnp.float32, values)
        weights = {
            c.name: Weight(*(jnp.full(c.parameter_shape, x) for x in (w, g, w)))
            for c in contractions.contractions
            if c.parameter
        }
        state = look(jnp.int32(step), weights, state)
    return state


@pytest.mark.parametrize(
    ("gradient", "bits"), [(0.9, 6), (1.1, 5), (3.9, 5), (4.1, 4), (0.0, 5)]
)
def test_bits_rise_below_the_band_and_fall_above_it(gradient, bits):
    """Weights of 1 with 5 bits lie on a grid of 1/8, 15 of which reach them."""
    schedule = apt(**BOUNDS, low=1.0, high=4.0, every=1)
    state = after(schedule, [(1.0, gradient / 8)])
    assert {*np.ravel(state.layers["Block/Dense_0"].bits).tolist()} == {bits}


def test_layers_of_a_stack_are_decided_one_by_one():
    schedule, contractions = apt(**BOUNDS, low=1.0, high=4.0, every=1), table()
    gradient = jnp.asarray([0.5, 2, 8], jnp.float32).reshape(3, 1, 1) / 8
    one = jnp.ones((3, 3, 4))
    weights = {
        "Dense_0": Weight(one[0], one[0], one[0]),
        "Block/Dense_0": Weight(one, one * gradient, one),
    }
    state = observed(schedule, jnp.int32(0), weights, schedule.init(contractions))
    plan, _ = schedule.update(jnp.int32(1), empty(contractions), state)
    assert plans.bits(plan)["Block/Dense_0"].weight.tolist() == [6, 5, 4]


def test_bits_stay_within_their_bounds_and_what_says_nothing_changes_nothing():
    schedule = apt(**BOUNDS, low=1.0, high=4.0, every=1)
    assert int(after(schedule, [(1.0, 1e-9)] * 9).layers["Dense_0"].bits) == 8
    assert int(after(schedule, [(1.0, 1e9)] * 9).layers["Dense_0"].bits) == 3
    known = after(schedule, [(1.0, 1.0)])
    for nothing in ((0.0, 1.0), (1.0, 0.0), (np.inf, 1.0), (1.0, np.nan)):
        found = after(schedule, [(1.0, 1.0), nothing])
        jax.tree.map(np.testing.assert_array_equal, found.layers, known.layers)


@pytest.mark.slow
def test_a_contraction_without_a_weight_has_the_bits_of_activations():
    schedule = apt(**BOUNDS, low=1.0, high=4.0)
    plan, _ = schedule.update(jnp.int32(0), empty(table()), schedule.init(table()))
    assert plans.describe_entry(plan["Attention"]) == (
        "activation int7, weight int7, gradient int6"
    )


@pytest.mark.slow
def test_it_keeps_the_contract():
    check_schedule(apt(**BOUNDS, low=1.0, high=4.0, every=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_bits": 1}, "min_bits=1"),
        ({"start_bits": 9}, "start_bits=9"),
        ({"low": 2.0, "high": 2.0}, "0 <= low < high"),
        ({"low": -1.0}, "low=-1.0"),
        ({"every": 0}, "every=0"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"activation_bits": 25}, "must lie in 1 to 24"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        apt(**{**BOUNDS, "low": 1.0, "high": 4.0, **arguments})
