"""Rounded functions go through the transformations of JAX like any other."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Options,
    Watch,
    contraction_table,
    value_and_grad,
    with_precision,
)
from adaprec_jax.plan import integers, uniform
from adaprec_jax.precision import SharedPrecision, separate
from adaprec_jax.scaling import Recipes, current
from tests.walk_models import MODELS, Mlp, linen, normal

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

F32, E4M3 = formats.get("float32"), formats.get("float8_e4m3fn")
MODEL = linen(Mlp(), normal(0, 6, 4))
X = MODEL.inputs[0]
TABLE = contraction_table(MODEL.fn, MODEL.params, X)
LOW = uniform(TABLE, integers(4, 8))
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)


def loss(p: Any, x: Any) -> Any:
    return jnp.mean(jnp.square(MODEL.fn(p, x))), None


def low_loss(plan: Any, p: Any, x: Any) -> Any:
    return with_precision(loss)(plan, p, x)[0]


def plans(*bits: int) -> Any:
    """Plans of different bits, stacked along a leading axis."""
    each = [uniform(TABLE, integers(b, b + 2)) for b in bits]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def test_gradient_from_outside_is_that_of_value_and_grad():
    outside = jax.jit(jax.value_and_grad(low_loss, argnums=1))
    (value, _), gradients, _ = jax.jit(value_and_grad(loss))(MODEL.params, X, plan=LOW)
    jax.tree.map(close, outside(LOW, MODEL.params, X), (value, gradients))


def test_remat_around_recomputes_the_same():
    plain = jax.jit(jax.grad(low_loss, argnums=1))
    around = jax.jit(jax.grad(jax.checkpoint(low_loss), argnums=1))
    jax.tree.map(close, around(LOW, MODEL.params, X), plain(LOW, MODEL.params, X))


def test_vmap_over_examples_rounds_each_by_itself():
    low = with_precision(MODEL.fn)
    mapped = jax.jit(jax.vmap(low, in_axes=(None, None, 0)))
    one = jax.jit(low)
    outs = mapped(LOW, MODEL.params, X[:, None])
    for i in range(3):
        close(outs[i], one(LOW, MODEL.params, X[i][None]))


def test_vmap_over_plans_is_a_pack_of_runs():
    """Parameters, plans and keys are mapped; statistics come out per run."""
    stochastic = current(rounding="stochastic")
    options = Options(Recipes(stochastic, stochastic, stochastic))
    fn = value_and_grad(loss, options, Watch(("sqnr_db", "amax")))
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.tree.map(lambda w: jnp.stack([w, 2 * w, -w]), MODEL.params)
    one = jax.jit(lambda p, plan, key: fn(p, X, plan=plan, key=key))
    pack = jax.jit(jax.vmap(one))(params, plans(3, 5, 8), keys)
    for i in range(3):
        run = jax.tree.map(lambda leaf, i=i: leaf[i], (params, plans(3, 5, 8), keys))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            pack, one(*run),
        )  # fmt: skip
    assert one._cache_size() == 1


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_plans_do_not_compile_again(kind: str):
    step = jax.jit(lambda plan: value_and_grad(loss)(MODEL.params, X, plan=plan))
    of = (lambda entry: entry) if kind == "shared" else separate
    entries = [integers(2, 8), SharedPrecision(E4M3, F32, formats.get("float8_e5m2"))]
    losses = {float(step(uniform(TABLE, of(entry)))[0][0]) for entry in entries}
    assert (len(losses), step._cache_size()) == (2, 1)


def test_scan_around_trains_as_a_python_loop_does():
    def step(p: Any, plan: Any) -> Any:
        (value, _), gradients, _ = value_and_grad(loss)(p, X, plan=plan)
        return jax.tree.map(lambda w, g: w - 0.1 * g, p, gradients), value

    schedule = plans(3, 4, 6, 8)
    _, losses = jax.jit(lambda p: lax.scan(step, p, schedule))(MODEL.params)
    p, once = MODEL.params, jax.jit(step)
    for i in range(4):
        p, value = once(p, jax.tree.map(lambda leaf, i=i: leaf[i], schedule))
        close(losses[i], value)


@pytest.mark.parametrize("name", ["cnn", "scanned transformer", "ensemble"])
def test_vmap_over_plans_goes_through_every_kind_of_layer(name: str):
    model = MODELS[name]()
    table = contraction_table(model.fn, model.params, *model.inputs)
    each = [uniform(table, integers(b, 8)) for b in (3, 8)]
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    low = lambda plan: with_precision(model.fn)(plan, model.params, *model.inputs)
    outs, one = jax.jit(jax.vmap(low))(stack), jax.jit(low)
    for i, plan in enumerate(each):
        np.testing.assert_allclose(outs[i], one(plan), rtol=1e-4, atol=1e-5)


def test_keys_and_other_values_that_are_no_floats_pass_through():
    def fn(p: Any, key: jax.Array, flag: jax.Array) -> Any:
        def body(carry: Any, w: Any) -> Any:
            key, x = carry
            key, use = jax.random.split(key)
            noise = jax.random.normal(use, x.shape)
            return (key, jnp.where(flag, x @ w, x) + noise), jnp.argmax(x)

        return lax.scan(body, (key, X), p)

    p, args = normal(1, 3, 4, 4), (jax.random.key(7), jnp.bool_(True))
    plan = uniform(contraction_table(fn, p, *args), SharedPrecision(F32, F32, F32))
    found = jax.jit(with_precision(fn))(plan, p, *args)
    expected = jax.jit(fn)(p, *args)
    assert found[0][0] == expected[0][0]
    np.testing.assert_array_equal(found[0][1], expected[0][1])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_plan_that_is_a_constant_of_the_program_rounds_alike():
    traced = jax.jit(low_loss)(LOW, MODEL.params, X)
    constant = jax.jit(functools.partial(low_loss, LOW))(MODEL.params, X)
    close(constant, traced)
