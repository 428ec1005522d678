"""What cannot be done is said: in an error, or in the table's `not_reached`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Compute,
    Options,
    Watch,
    contraction_table,
    value_and_grad,
    with_precision,
)
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import Recipes, current, delayed
from tests.walk_models import normal

F32 = formats.get("float32")
FULL = SharedPrecision(F32, F32, F32)
P, X = {"w": normal(1, 4, 4)}, normal(0, 4, 4)


def product(p: Any, x: Any) -> Any:
    return x @ p["w"]


def looping(p: Any, x: Any) -> Any:
    return lax.while_loop(
        lambda state: state[0] < 3,
        lambda state: (state[0] + 1, jnp.tanh(state[1] @ p["w"])),
        (jnp.int32(x[0, 0] > 99), x),
    )[1]


def deciding(p: Any, x: Any) -> Any:
    """A loop with a contraction in its test, and one in its body."""
    return lax.while_loop(
        lambda state: (state[0] < 3) & (jnp.sum(state[1] @ p["v"]) < 99),
        lambda state: (state[0] + 1, jnp.tanh(state[1] @ p["w"])),
        (jnp.int32(x[0, 0] > 99), x),
    )[1]


def changed(**fields: Any) -> Any:
    return FULL._replace(weight=F32._replace(**fields))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, r"no entry for the contractions \['w'\]"),
        (
            {"w": FULL, "v": FULL},
            r"'v', which is no contraction; the nearest is \['w'\]",
        ),
        (
            {"w": changed(mantissa_bits=np.full(3, 23))},
            r"weight.mantissa_bits of 'w' has the shape \(3,\).* axes \(\)",
        ),
        ({"w": changed(max_value=np.float32("nan"))}, "weight.max_value of 'w' is nan"),
    ],
    ids=["missing", "unknown", "shape", "not finite"],
)
def test_plan_that_does_not_fit_is_refused(plan: Any, message: str):
    with pytest.raises(ValueError, match=message):
        with_precision(product)(plan, P, X)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda out: out.mean(), r"must return \(loss, aux\).*float32\(\)"),
        (lambda out: None, r"must return \(loss, aux\)"),
        (lambda out: (out.mean(), 1, 2), r"must return \(loss, aux\)"),
        (lambda out: (out, None), r"must be one number, got shape \(4, 4\)"),
    ],
)
def test_a_loss_of_another_form_is_refused(returned: Any, message: str):
    with pytest.raises(TypeError, match=message):
        value_and_grad(lambda p, x: returned(product(p, x)))(P, X, plan={"w": FULL})


def test_a_plain_number_beside_the_loss_comes_back():
    step = value_and_grad(lambda p, x: (product(p, x).mean(), 3))
    (_, aux), _, _ = step(P, X, plan={"w": FULL})
    assert aux == 3


def test_states_of_other_contractions_are_refused():
    options = Options(Recipes(current(), delayed(), current()))
    with pytest.raises(ValueError, match=r"an entry for each of \['w'\]"):
        with_precision(product, options)({"w": FULL}, P, X, states={})


def test_an_empty_batch_has_statistics_of_nothing():
    step = value_and_grad(
        lambda p, x: (product(p, x).sum(), None), watch=Watch(("amax",))
    )
    _, _, seen = step(P, X[:0], plan={"w": FULL})
    assert seen.tensors["w"]["activation"].amax == 0


def test_recipe_with_a_state_asks_for_it():
    options = Options(Recipes(current(), delayed(), current()))
    with pytest.raises(ValueError, match="init_recipes"):
        with_precision(product, options)({"w": FULL}, P, X)


def test_stochastic_rounding_asks_for_a_key():
    stochastic = current(rounding="stochastic")
    options = Options(Recipes(stochastic, stochastic, stochastic))
    with pytest.raises(ValueError, match="needs a key"):
        with_precision(product, options)({"w": FULL}, P, X)
    step = value_and_grad(lambda p, x: (product(p, x).sum(), None), options)
    with pytest.raises(ValueError, match=r"key=.* the function that value_and_grad"):
        step(P, X, plan={"w": FULL})


def test_unknown_quantity_is_refused():
    with pytest.raises(ValueError, match="variance"):
        value_and_grad(product, watch=Watch(("variance",)))(P, X, plan={"w": FULL})


def test_unknown_role_is_refused():
    watch = Watch(("amax",), roles=("activation", "momentum"))
    with pytest.raises(ValueError, match=r"\['momentum'\]; known are \['activation'"):
        value_and_grad(product, watch=watch)(P, X, plan={"w": FULL})


def test_forward_mode_is_refused():
    fn = lambda x: with_precision(product)({"w": FULL}, P, x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(fn, (X,), (X,))


def test_reverse_mode_through_a_while_loop_is_refused():
    loss = lambda p, x: (jnp.sum(looping(p, x)), None)
    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        value_and_grad(loss)(P, X, plan={"w": FULL})


def test_while_loop_runs_forward_and_says_that_it_has_no_gradient():
    (contraction,) = contraction_table(looping, P, X).contractions
    assert (contraction.executions, contraction.differentiated) == (None, False)
    rounded = jax.jit(with_precision(looping))({"w": FULL}, P, X)
    np.testing.assert_array_equal(rounded, jax.jit(looping)(P, X))


DECIDING = {"w": P["w"], "v": normal(2, 4, 4)}


@pytest.mark.parametrize("compute", [None, Compute(jnp.dtype("bfloat16"))])
def test_the_test_of_a_while_loop_is_listed_and_evaluated_as_it_stands(compute: Any):
    options = Options(compute_dtype=compute)
    table = contraction_table(deciding, DECIDING, X, options=options)
    assert table.names == ("w",)
    (passed,) = table.not_reached
    assert passed.what == "dot_general ab,bc->ac"
    assert "test of a while loop" in passed.reason
    rounded = jax.jit(with_precision(deciding, options))({"w": FULL}, DECIDING, X)
    tolerance = 0.05 if compute else 0
    expected = jax.jit(deciding)(DECIDING, X)
    np.testing.assert_allclose(rounded, expected, atol=tolerance)


def test_a_watch_sees_all_of_the_table_where_a_while_loop_tests_a_contraction():
    def loss(p: Any, x: Any) -> Any:
        large = lambda x: jnp.max(jnp.abs(x @ p["v"])) > 0.1
        return jnp.sum(lax.while_loop(large, lambda x: x / 2, x) @ p["w"]), None

    table = contraction_table(loss, DECIDING, X)
    fn = jax.jit(value_and_grad(loss, watch=Watch(("amax",))))
    seen = fn(DECIDING, X, plan=uniform(table, FULL))[2].tensors
    assert tuple(seen) == table.names == ("w",)


def kernel(x_ref: Any, y_ref: Any) -> None:
    y_ref[...] = jnp.dot(x_ref[...], x_ref[...])


def in_pallas(p: Any, x: Any) -> Any:
    call = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True
    )
    return call(x) @ p["w"]


def solve(p: Any, x: Any) -> Any:
    return lax.custom_linear_solve(
        lambda v: p["w"] @ v, x, lambda _, b: b, symmetric=True
    )


def callback(p: Any, x: Any) -> Any:
    return jax.pure_callback(np.dot, jax.ShapeDtypeStruct((4, 4), x.dtype), x, p["w"])


@pytest.mark.parametrize(
    ("fn", "what", "reason"),
    [
        (lambda p, x: jnp.linalg.cholesky(x @ p["w"]), "cholesky", "not know"),
        (lambda p, x: jnp.linalg.svd(x @ p["w"])[1], "svd", "not know"),
        (callback, "pure_callback", "not know"),
        (in_pallas, "dot_general ab,bc->ac", "inside pallas_call"),
        (solve, "dot_general ab,bc->ac", "inside custom_linear_solve"),
        (lambda p, x: x.astype(int) @ p["w"].astype(int), "dot_general ab,bc->ac",
         "int32 and int32"),
    ],
    ids=["cholesky", "svd", "callback", "pallas", "solve", "integers"],
)  # fmt: skip
def test_what_no_plan_reaches_is_listed_and_evaluated_as_it_stands(fn, what, reason):
    table = contraction_table(fn, P, X)
    assert any(n.what == what and reason in n.reason for n in table.not_reached)
    rounded = jax.jit(with_precision(fn))(uniform(table, FULL), P, X)
    np.testing.assert_array_equal(rounded, jax.jit(fn)(P, X))


def test_elementwise_and_shape_primitives_are_not_listed():
    def fn(p: Any, x: Any) -> Any:
        x = jnp.sort(jnp.exp(x) / jnp.sqrt(1 + x**2), axis=0)[::-1]
        x = jnp.where(x > 0, jnp.cumsum(x, 0), jnp.pad(x, 1)[1:-1, 1:-1])
        x = x.at[0].add(1.0).at[:, 1].set(0.0)
        noise = jax.random.normal(jax.random.key(0), x.shape)
        return jnp.take_along_axis(x + noise, jnp.argsort(x, axis=0), axis=0) * p["w"]

    assert contraction_table(fn, P, X).not_reached == ()


def test_float64_contraction_is_listed_and_stays_float64():
    with jax.enable_x64(True):
        p, x = {"w": jnp.ones((4, 4), jnp.float64)}, jnp.ones((4, 4), jnp.float64)
        table = contraction_table(product, p, x)
        assert table.contractions == ()
        assert "float64" in table.not_reached[0].reason
        assert with_precision(product)({}, p, x).dtype == jnp.float64


def test_compute_dtype_names_a_primitive_that_it_does_not_know():
    fn = lambda p, x: jnp.linalg.cholesky(x @ p["w"])
    compute = Compute(jnp.dtype("bfloat16"))
    with pytest.raises(ValueError, match=r"'cholesky'.*extra"):
        with_precision(fn, Options(compute_dtype=compute))({"w": FULL}, P, X)
    typo = compute._replace(extra={"cholesky": "float"})
    with pytest.raises(ValueError, match=r"'cholesky' in the class 'float'; .*'as is'"):
        with_precision(fn, Options(compute_dtype=typo))({"w": FULL}, P, X)
    known = compute._replace(extra={"cholesky": "float32"})
    out = with_precision(fn, Options(compute_dtype=known))({"w": FULL}, P, X)
    assert out.dtype == jnp.float32
