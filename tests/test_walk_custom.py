"""Functions with derivative rules of their own: passed by, or opened on request."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Compute,
    Options,
    contraction_table,
    value_and_grad,
    with_precision,
)
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from tests.walk_models import normal

F32, INT4 = formats.get("float32"), formats.get("int4")
FULL, LOW = (SharedPrecision(fmt, fmt, fmt) for fmt in (F32, INT4))
OPENED = Options(open_custom=True)
P, X = {"a": normal(1, 4, 4), "b": normal(2, 4, 4)}, normal(0, 3, 4)


@jax.custom_vjp
def doubling(w: Any, x: Any) -> Any:
    """A product whose own backward pass is not its derivative, but twice that."""
    return x @ w


doubling.defvjp(
    lambda w, x: (x @ w, (w, x)),
    lambda kept, g: (2 * kept[1].T @ g, 2 * g @ kept[0].T),
)


@jax.custom_jvp
def tripling(w: Any, x: Any) -> Any:
    return x @ w


@tripling.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (w, x), (dw, dx) = primals, tangents
    return tripling(w, x), 3 * (x @ dw + dx @ w)


def loss_of(product: Any) -> Any:
    return lambda p, x: (jnp.sum(jnp.sin(product(p["b"], x @ p["a"]))), None)


def gradients(loss: Any, plan: Any, options: Options = Options()) -> Any:  # noqa: B008
    fn = value_and_grad(loss, options)
    (value, _), grads, _ = jax.jit(lambda plan: fn(P, X, plan=plan))(plan)
    return value, grads


@pytest.mark.parametrize(
    ("product", "kind"), [(doubling, "custom_vjp"), (tripling, "custom_jvp")]
)
def test_custom_rule_is_kept_untouched_and_listed(product: Any, kind: str):
    loss = loss_of(product)
    table = contraction_table(loss, P, X)
    assert table.names == ("a",)
    (passed,) = table.not_reached
    assert passed.what == "dot_general ab,bc->ac"
    assert kind in passed.reason
    value, grads = gradients(loss, {"a": FULL})
    (plain, _), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(P, X)
    assert value == plain
    jax.tree.map(np.testing.assert_array_equal, grads, expected)


@pytest.mark.parametrize("product", [doubling, tripling])
def test_opened_function_is_rounded_and_differentiated_like_any_other(product: Any):
    loss, ordinary = loss_of(product), loss_of(lambda w, x: x @ w)
    table = contraction_table(loss, P, X, options=OPENED)
    assert (table.names, table.not_reached) == (("a", "b"), ())
    plan = {"a": LOW, "b": LOW}
    opened, expected = gradients(loss, plan, OPENED), gradients(ordinary, plan)
    jax.tree.map(np.testing.assert_array_equal, opened, expected)


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "softmax", "log_softmax"])
@pytest.mark.parametrize("compute", [None, Compute(jnp.dtype("float32"))])
def test_activation_keeps_its_own_derivative_even_where_custom_rules_are_opened(
    name: str, compute: Compute | None
):
    """The derivative of relu at 0 is 0 by its rule, 1/2 by that of the maximum."""
    activation = getattr(jax.nn, name)
    loss = lambda p, x: (jnp.sum(jnp.sin(activation(x * p["s"]) @ p["w"])), None)
    p = {"w": normal(1, 4, 4), "s": jnp.ones((3, 4))}
    x = X.at[0].set(0.0)
    plan = uniform(contraction_table(loss, p, x), FULL)
    fn = value_and_grad(loss, Options(compute_dtype=compute, open_custom=True))
    _, grads, _ = jax.jit(lambda plan: fn(p, x, plan=plan))(plan)
    _, expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(p, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        grads, expected,
    )  # fmt: skip


def test_function_without_contractions_is_the_function():
    fn = lambda p, x: jax.nn.softmax(x * p)
    rounded = jax.jit(lambda p, x: with_precision(fn)({}, p, x))
    np.testing.assert_array_equal(rounded(X, X), jax.jit(fn)(X, X))
