"""The exported contract tests pass what keeps its promises and name what does not."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from adaprec_jax import formats, quantize, scaling
from adaprec_jax.plan import fill, integers
from adaprec_jax.schedules import Schedule, Scope, constant
from adaprec_jax.testing import check_quantizer, check_recipe, check_schedule
from tests.test_schedules import SCHEDULES

QUICK = ("cpt", "two_threshold")


# Compiling takes long; a schedule of each kind of state is not slow.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in SCHEDULES
    ],
)
def test_every_schedule_of_the_library_passes(name):
    check_schedule(SCHEDULES[name].schedule)


@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero"])
@pytest.mark.parametrize("name", ["int4", "uint8", "float8_e5m2", "float4_e2m1fn"])
def test_every_rounding_passes(name, rounding):
    check_quantizer(
        lambda x: quantize(jnp.asarray(x), formats.get(name), rounding=rounding)
    )


def test_stochastic_rounding_passes():
    check_quantizer(
        lambda x: quantize(
            x, formats.get("int8"), rounding="stochastic", key=jax.random.key(0)
        ),
        idempotent=False,
    )


@pytest.mark.parametrize(
    "recipe",
    [
        scaling.none(),
        scaling.current(),
        scaling.current(power_of_two=False),
        scaling.delayed(4),
        scaling.per_channel(),
        scaling.blockwise(5, square=True),
    ],
)
@pytest.mark.slow
def test_every_recipe_passes(recipe):
    check_recipe(recipe)


def deciding(bits, init=lambda table: Scope(table)) -> Schedule:
    """A schedule whose forward bits are `bits(step, stats)`."""

    def update(step, stats, state):
        entry = integers(bits(step, stats), 8)
        return {c.name: fill(c, entry) for c in state.table.contractions}, state

    return Schedule(init, update)


def test_a_schedule_by_a_large_loss_is_caught_as_one_by_a_small_one():
    for bound in (1e-4, 0.5, 2.0, 1e4):
        schedule = deciding(
            lambda step, stats, b=bound: jnp.where(stats.loss > b, 4, 8)
        )
        with pytest.raises(AssertionError, match="was not finite change a decision"):
            check_schedule(schedule)


def test_the_schedule_of_the_installed_package_passes():
    source = Path(__file__).parent / "own_package" / "src" / "somebodys"
    names = runpy.run_path(str(source / "schedule.py"))
    check_schedule(names["by_loss"](4, 8, steps=10))


def forgetting_one_layer() -> Schedule:
    def update(step, stats, state):
        plan, state = constant(integers(4, 8)).update(step, stats, state)
        return {"Dense_0": plan["Dense_0"]}, state

    return Schedule(constant(integers(4, 8)).init, update)


def counting_in_floats() -> Schedule:
    def update(step, stats, state):
        scope, count = state
        plan = {c.name: fill(c, integers(4, 8)) for c in scope.table.contractions}
        return plan, (scope, count.astype(jnp.float32))

    return Schedule(lambda table: (Scope(table), jnp.int32(0)), update)


BROKEN = {
    "no entry for": forgetting_one_layer(),
    "before": counting_in_floats(),
    "not finite change a decision": deciding(
        lambda step, stats: jnp.where(stats.loss > 0.5, 8, 4)
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_schedule_that_breaks_a_promise_is_told_which(promise):
    with pytest.raises(AssertionError, match=promise):
        check_schedule(BROKEN[promise])


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (jnp.nan_to_num, "NaN did not stay NaN"),
        (lambda x: x.astype(jnp.bfloat16), "bfloat16"),
        (lambda x: x * 0.5, "Rounding again changes the result"),
        (lambda x: -jnp.round(x), "not monotone"),
        (lambda x: jnp.where(jnp.abs(x) > 64, jnp.nan, x), "became NaN"),
    ],
)
def test_a_quantizer_that_breaks_a_promise_is_told_which(broken, promise):
    with pytest.raises(AssertionError, match=promise):
        check_quantizer(broken)


def hiding(x, fmt, state, *, axes, key, axis_names=()):
    return scaling.current().round(
        jnp.nan_to_num(x), fmt, state, axes=axes, key=key, axis_names=axis_names
    )


def dividing(x, fmt, state, *, axes, key, axis_names=()):
    scale = jnp.max(jnp.abs(x), axes, keepdims=True) / fmt.max_value
    return quantize(x / scale, fmt), scale


@pytest.mark.parametrize(
    ("round_tensor", "promise"),
    [(hiding, "was hidden"), (dividing, "gave NaN")],
)
def test_a_recipe_that_breaks_a_promise_is_told_which(round_tensor, promise):
    with pytest.raises(AssertionError, match=promise):
        check_recipe(scaling.current()._replace(round=round_tensor))


def flat_scale(x, fmt, state, *, axes, key, axis_names=(), use):
    values, scale = scaling.per_channel().round(
        x, fmt, state, axes=axes, key=key, use=use
    )
    return values, scale.reshape(-1)


def always_scaled(x, fmt, state, *, axes, key, axis_names=(), use):
    fmt = fmt._replace(scaled=jnp.bool_(True))
    return scaling.per_channel().round(x, fmt, state, axes=axes, key=key, use=use)


@pytest.mark.parametrize(
    ("round_tensor", "promise"),
    [
        (flat_scale, "must be float32 of a shape that broadcasts to"),
        (always_scaled, "Float32 is .* for Use"),
    ],
)
def test_a_recipe_by_product_that_breaks_a_promise_is_told_which(round_tensor, promise):
    with pytest.raises(AssertionError, match=promise):
        check_recipe(scaling.per_channel()._replace(round=round_tensor))
