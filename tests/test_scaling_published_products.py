"""Quantisers of published methods in the products of a network, and in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaprec_jax import formats, plan as plans
from adaprec_jax.contractions import Options, Watch, contraction_table, value_and_grad
from adaprec_jax.contractions.summed import sliced_axes
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import Recipes, dorefa, muppet, sbm, swalp, wage
from adaprec_jax.schedules import constant
from adaprec_jax.train import make_train_step
from tests import small_run
from tests.published_quantizers import (
    RECIPES,
    F,
    np_dorefa_activation,
    np_dorefa_weight,
    np_muppet,
    np_sbm,
    np_swalp,
    np_wage,
    np_wage_error,
    np_wage_weight,
    of_slices,
)
from tests.walk_models import normal

# Which axes tell slices apart.


def sliced_in(product, left, right, weight_side=1, members=False):
    eqns = jax.make_jaxpr(product)(jnp.zeros(left), jnp.zeros(right)).eqns
    (eqn,) = (
        e for e in eqns if e.primitive.name in ("dot_general", "conv_general_dilated")
    )
    found = sliced_axes(eqn, weight_side, members=members)
    return found["activation"], found["weight"], found["gradient"]


def test_slices_are_examples_and_outputs():
    dense = lambda x, w: lax.dot_general(x, w, (((2,), (0,)), ((), ())))
    assert sliced_in(dense, (5, 3, 4), (4, 6)) == ((0,), (1,), (0,))
    heads = lambda x, w: lax.dot_general(x, w, (((1,), (1,)), ((), ())))
    assert sliced_in(heads, (5, 4), (2, 4, 3)) == ((0,), (0, 2), (0,))
    turned = lambda w, x: lax.dot_general(w, x, (((0,), (1,)), ((), ())))
    assert sliced_in(turned, (4, 6), (5, 4), weight_side=0) == ((0,), (1,), (1,))
    batched = lambda x, w: lax.dot_general(x, w, (((2,), (1,)), ((0,), (0,))))
    assert sliced_in(batched, (3, 5, 4), (3, 4, 6)) == ((0,), (0, 2), (0,))
    experts = sliced_in(batched, (3, 5, 4), (3, 4, 6), members=True)
    assert experts == ((1,), (0, 2), (1,))
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers
    )
    assert sliced_in(conv, (5, 8, 8, 3), (3, 3, 3, 6)) == ((0,), (3,), (0,))


# The three products of a convolution and a dense layer.

ENTRY = SharedPrecision(*map(formats.integer, (4, 3, 5)))
BITS = {"activation": 4, "weight": 3, "gradient": 5}
SETS = {
    "sbm": (
        Recipes(sbm(), sbm("slice"), sbm()),
        (np_sbm, of_slices(np_sbm, -1), np_sbm),
    ),
    "sbm by example": (
        Recipes(sbm("slice"), sbm(), sbm("slice")),
        (of_slices(np_sbm, 0), np_sbm, of_slices(np_sbm, 0)),
    ),
    "dorefa, muppet": (
        Recipes(dorefa("activation"), dorefa("weight"), RECIPES["muppet nearest"]),
        (np_dorefa_activation, np_dorefa_weight, np_muppet),
    ),
    "wage": (
        Recipes(wage("activation"), wage("weight"), wage("gradient")),
        (np_wage, np_wage_weight, np_wage_error),
    ),
    "swalp": (
        Recipes(*[RECIPES["swalp slice"]] * 3),
        (of_slices(np_swalp, 0), of_slices(np_swalp, -1), of_slices(np_swalp, 0)),
    ),
}


def convolve(x, w):
    return lax.conv_general_dilated(
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )  # fmt: skip


def multiply(x, w):
    return jnp.matmul(x, w, precision=lax.Precision.HIGHEST)


def network(p, x, convolve=convolve, multiply=multiply):
    h = jnp.tanh(convolve(x, p["conv"])).reshape(x.shape[0], -1)
    return jnp.sum(jnp.sin(multiply(h, p["dense"]) * jnp.arange(1.0, 4.0)[None]))


def lowered(product, references):
    """The product of rounded operands, and both gradients of rounded operands."""
    on_host = {}
    for role, reference in zip(Recipes._fields, references, strict=True):
        rounded = functools.partial(reference, bits=BITS[role])
        on_host[role] = lambda x, f=rounded: jax.pure_callback(
            lambda x: f(np.asarray(x)), jax.ShapeDtypeStruct(x.shape, F), x,
            vmap_method="sequential",
        )  # fmt: skip

    @jax.custom_vjp
    def low(a, w):
        return product(on_host["activation"](a), on_host["weight"](w))

    def backward(kept, g):
        pair = on_host["activation"](kept[0]), on_host["weight"](kept[1])
        return jax.vjp(product, *pair)[1](on_host["gradient"](g))

    low.defvjp(lambda a, w: (low(a, w), (a, w)), backward)
    return low


@pytest.mark.parametrize(("recipes", "references"), SETS.values(), ids=SETS)
def test_the_products_of_both_layers_are_those_of_rounded_operands(recipes, references):
    x = normal(0, 4, 6, 6, 3)
    p = {"conv": normal(1, 3, 3, 3, 5), "dense": normal(2, 45, 3)}
    plan = dict.fromkeys(contraction_table(network, p, x).names, ENTRY)
    watch = Watch(("saturation_fraction",), ("weight",))
    step = value_and_grad(lambda p: (network(p, x), None), Options(recipes), watch)
    (value, _), gradients, stats = jax.jit(lambda p: step(p, plan=plan))(p)
    low = functools.partial(
        network,
        convolve=lowered(convolve, references),
        multiply=lowered(multiply, references),
    )
    expected = jax.jit(jax.value_and_grad(low))(p, x)
    assert value == pytest.approx(float(expected[0]), rel=1e-5)
    for name, gradient in expected[1].items():
        assert np.any(gradient)
        np.testing.assert_allclose(
            gradients[name], gradient, rtol=1e-4, atol=2e-6, err_msg=name
        )
    if recipes.weight in (sbm(), sbm("slice")):  # the ends are levels
        for seen in stats.tensors.values():
            assert seen["weight"].saturations == 0


def test_layers_of_a_stack_and_experts_are_rounded_one_by_one():
    x = normal(0, 6, 4)
    p = {"stack": normal(1, 3, 4, 4), "experts": normal(2, 2, 4, 5)}
    recipes, references = SETS["sbm by example"]
    multiplied = lowered(multiply, references)

    def stacked(p, x):
        layer = lambda x, w: (jnp.tanh(jnp.matmul(x, w)), None)
        h = lax.scan(layer, x, p["stack"])[0]
        out = jnp.einsum("etd,edf->etf", jnp.stack([h, 3 * h]), p["experts"])
        return jnp.sum(jnp.sin(out))

    def one_by_one(p, x):
        for w in p["stack"]:
            x = jnp.tanh(multiplied(x, w))
        out = [multiplied(h, w) for h, w in zip((x, 3 * x), p["experts"], strict=True)]
        return jnp.sum(jnp.sin(jnp.stack(out)))

    table = contraction_table(stacked, p, x)
    plan = plans.uniform(table, ENTRY)
    assert {c.axes for c in table.contractions} == {(3,), (2,)}
    step = value_and_grad(lambda p, x: (stacked(p, x), None), Options(recipes))
    (value, _), gradients, _ = jax.jit(lambda p: step(p, x, plan=plan))(p)
    expected = jax.jit(jax.value_and_grad(one_by_one))(p, x)
    assert value == pytest.approx(float(expected[0]), rel=1e-5)
    for name, gradient in expected[1].items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-4, atol=2e-6)


TRAINED = {
    "sbm": Recipes(sbm(), sbm("slice"), sbm(rounding="stochastic")),
    "dorefa": Recipes(sbm(), dorefa("weight"), dorefa("gradient")),
    "wage": SETS["wage"][0],
    "swalp": Recipes(*[swalp()] * 3),
    "muppet": Recipes(*[muppet()] * 3),
}


@pytest.mark.parametrize(
    "recipes",
    [
        pytest.param(recipes, id=name, marks=[pytest.mark.slow] * (name != "sbm"))
        for name, recipes in TRAINED.items()
    ],
)
def test_a_small_run_learns(recipes):
    entry = plans.integers(6, 8)
    program = small_run.PROGRAM._replace(
        schedule=constant(entry), options=Options(recipes)
    )
    state = small_run.first_state(program)
    steps = 200
    run = jax.jit(lambda state, xs: lax.scan(make_train_step(program), state, xs))
    state, metrics = run(state, small_run.batches(steps))
    losses = np.asarray(metrics.scalars["loss"])
    assert np.isfinite(losses).all()
    assert losses[-20:].mean() < 0.75 * losses[:20].mean()
