"""Adaptive loss scaling: its numbers, shifted float16, and a run against a replay."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from adaprec_jax import formats, quantize
from adaprec_jax.contractions.statistics import TensorStats, Watch
from adaprec_jax.schedules import adaptive_loss_scale
from adaprec_jax.schedules.adaptive_loss_scale import (
    backward_order,
    shifted_float16,
    underflow_quantile,
)
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.closed_runs import follow, rows
from tests.small_run import CLASSES, FEATURES

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

# Small enough for the products of the small run to underflow in float16.
LOSS_SCALE = 2.0**-11
# dgrad sums over the outputs of a layer.
LENGTHS = np.array([FEATURES, FEATURES, CLASSES], float)


@pytest.fixture(scope="module")
def turns():
    return follow(adaptive_loss_scale(every=2), 30, skipped=(5,), loss_scale=LOSS_SCALE)


@pytest.mark.slow
def test_a_run_scales_as_its_gradients_and_weights_say(turns):
    own, seen = np.ones(3), set()
    accumulated = np.ones(3)
    for step, turn in enumerate(turns):
        if turn.stats.finite and step % 2 == 0:

            def of(role, field):
                tensors = turn.stats.tensors  # noqa: B023
                return rows({p: np.float64(getattr(t[role], field))
                             for p, t in tensors.items()})  # fmt: skip

            mean_squares = [
                of(role, "sum_squares") / of(role, "elements")
                for role in ("gradient", "weight")
            ]
            largest = of("gradient", "amax") * of("weight", "amax")
            product = 1.0
            for layer in (2, 1, 0):
                accumulated[layer] = product
                deviation = product * np.sqrt(
                    mean_squares[0][layer] * mean_squares[1][layer] * LENGTHS[layer] / 2
                )
                wanted = 6.0e-8 / (1.25331e-3 * deviation)
                bound = 65504 / LENGTHS[layer] / (product * largest[layer])
                limited = min(wanted, bound, 16.0, 1024 / product)
                own[layer] = 2.0 ** np.floor(np.log2(max(limited, 1.0)))
                product *= own[layer]
        np.testing.assert_array_equal(turn.state.own, own)
        np.testing.assert_array_equal(turn.signals["gradient_scale"], accumulated)
        for operand in (2, 4):
            exponents = turn.formats.min_exponent[:, operand]
            np.testing.assert_array_equal(exponents, -14 - np.log2(accumulated))
            highest = turn.formats.max_value[:, operand]
            np.testing.assert_array_equal(highest, 65504 / accumulated)
        assert not turn.formats.scaled.any()
        assert (formats.bits(formats.Format(*turn.formats)) == 16).all()
        seen.add(tuple(accumulated))
    assert len(seen) >= 2
    assert max(map(max, seen)) > 1
    np.testing.assert_array_equal(turns[6].state.own, turns[5].state.own)


def test_the_quantile_is_the_golden_one():
    assert underflow_quantile(1e-3) == pytest.approx(1.25331e-3, abs=5e-9)
    for share in (1e-6, 0.01, 0.5, 0.9):
        expected = np.sqrt(2) * scipy.special.erfinv(share)
        assert underflow_quantile(share) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shift", [0, 1, 4, 10, 14])
def test_a_shifted_float16_is_float16_of_the_scaled_number(shift):
    rng = np.random.default_rng(shift)
    x = rng.normal(size=4096) * 2.0 ** rng.integers(-40, 14, 4096)
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = (x * 2.0**shift).astype(np.float16).astype(np.float32) / 2.0**shift
    found = quantize(x, shifted_float16(jnp.int32(shift)), overflow="format")
    np.testing.assert_array_equal(found, expected)


def test_the_backward_pass_meets_a_loop_over_layers_body_by_body():
    here = table()
    first, attention, block = here.contractions
    twice = block._replace(name="Block/Dense_1")
    stack = here._replace(contractions=(first, block, twice, attention))
    # end to end: 0, block 1 2 3, twice 4 5 6, attention 7
    assert backward_order(stack) == (7, 6, 3, 5, 2, 4, 1, 0)


def measured(gradient, weight=1.0, *, amax=None, finite=True):
    """Statistics of gradients and weights alike in all elements and contractions."""
    here = table()
    stats = empty(here, Watch(("amax", "rms"), ("weight", "gradient")))

    def fill(c, value, largest):
        return TensorStats(
            elements=jnp.full(c.axes, 4.0, jnp.float32),
            amax=jnp.full(c.axes, largest, jnp.float32),
            sum_squares=jnp.full(c.axes, 4 * value**2, jnp.float32),
        )

    tensors = {
        c.name: {
            "weight": fill(c, weight, weight),
            "gradient": fill(c, gradient, gradient if amax is None else amax),
        }
        for c in here.contractions
    }
    return stats._replace(tensors=tensors, finite=jnp.bool_(finite))


def scales(stats, **settings) -> list[float]:
    """The accumulated scales, the three layers of the block first, as backward goes."""
    schedule = adaptive_loss_scale(every=1, **settings)
    _, state = schedule.update(jnp.int32(0), stats, schedule.init(table()))
    return np.asarray(state.accumulated)[::-1].tolist()


def test_each_layer_is_bounded_and_so_is_the_product():
    assert scales(measured(1e-12)) == [1, 16, 256, 1024, 1024]
    assert scales(measured(1e-12), largest_scale=3.9) == [1, 2, 4, 8, 8]
    assert scales(measured(1e-12), largest_product=20.0) == [1, 16, 16, 16, 16]


def test_large_products_are_not_scaled():
    assert scales(measured(1.0)) == [1] * 5
    assert scales(measured(1e18)) == [1] * 5


def test_the_scale_is_what_lifts_the_deviation_and_no_more():
    """sqrt(4 / 2) g W Phi = u_min / 5: the first layer takes 4, the next 5 / 4 -> 1."""
    gradient = 6.0e-8 / (5 * 1.25331e-3 * np.sqrt(2))
    assert scales(measured(gradient)) == [1, 4, 4, 4, 4]


def test_a_large_element_holds_the_scale_down():
    """65504 / 4 over a product of 3000 leaves 5.4, hence 4; then 1."""
    assert scales(measured(1e-12, amax=3000.0)) == [1, 4, 4, 4, 4]


def test_what_is_not_known_changes_nothing():
    schedule = adaptive_loss_scale(every=1)
    state = schedule.init(table())
    _, state = schedule.update(jnp.int32(0), measured(1e-12), state)
    for unknown in (measured(np.nan), measured(1.0, finite=False)):
        _, after = schedule.update(jnp.int32(1), unknown, state)
        np.testing.assert_array_equal(after.own, state.own)


def test_activations_and_weights_keep_their_format():
    schedule = adaptive_loss_scale(formats.get("bfloat16"))
    plan, _ = schedule.update(jnp.int32(0), measured(1.0), schedule.init(table()))
    assert formats.describe(plan["Dense_0"].weight) == "bfloat16"
    assert formats.describe(plan["Dense_0"].gradient) == "float16"


@pytest.mark.slow
def test_the_contract_is_kept():
    check_schedule(adaptive_loss_scale(every=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"underflow": 0.0}, "underflow must lie between 0 and 1, got 0.0"),
        ({"largest_scale": 0.5}, "largest_scale must be a number from 1 on, got 0.5"),
        ({"largest_product": 2.0**15}, "largest_product must lie in 1 to 16384.0"),
        ({"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        adaptive_loss_scale(**settings)


def test_statistics_that_were_not_gathered_are_missed():
    schedule = adaptive_loss_scale()
    nothing = empty(table(), Watch(("rms",), ("weight", "gradient")))
    with pytest.raises(ValueError, match="reads amax of the gradient of"):
        schedule.update(jnp.int32(0), nothing, schedule.init(table()))
