"""Stochastic rounding: every rounding has a key of its own, copies share theirs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaprec_jax import formats
from adaprec_jax.contractions import Options, contraction_table, with_precision
from adaprec_jax.plan import uniform
from adaprec_jax.precision import Precision, SharedPrecision, separate
from adaprec_jax.scaling import Recipes, none
from tests.walk_models import normal

F32, INT8 = formats.get("float32"), formats.get("int8")
STOCHASTIC = none(rounding="stochastic")
OPTIONS = Options(Recipes(STOCHASTIC, STOCHASTIC, STOCHASTIC))
ACTIVATION, WEIGHT = SharedPrecision(INT8, F32, F32), SharedPrecision(F32, INT8, F32)
# A tensor whose rounding shows the noise, and one that lets it pass unchanged.
X, EYE = 10 * normal(0, 8, 8), jnp.eye(8)


def rounded(fn: Any, p: Any, entry: Any, key: Any, *args: Any) -> Any:
    plan = uniform(contraction_table(fn, p, *args), entry)
    low = jax.jit(
        lambda plan, key: with_precision(fn, OPTIONS)(plan, p, *args, key=key)
    )
    return np.asarray(low(plan, key))


def product(p: Any, x: Any) -> Any:
    return x @ p["w"]


def test_the_key_alone_decides(key: jax.Array):
    other = jax.random.key(1)
    results = [
        rounded(product, {"w": EYE}, ACTIVATION, k, X) for k in (key, key, other)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert np.any(results[0] != results[2])
    assert np.max(np.abs(results[0] - X)) < 1


def test_activation_and_weight_are_rounded_apart(key: jax.Array):
    left = rounded(product, {"w": EYE}, ACTIVATION, key, X)
    right = rounded(product, {"w": X}, WEIGHT, key, EYE)
    assert np.any(left != right)


def twins(p: Any, x: Any) -> Any:
    return jnp.stack([x @ p["one"], x @ p["two"]])


def layers(p: Any, x: Any) -> Any:
    return lax.scan(lambda c, w: (c, x @ w), 0.0, p["w"])[1]


def steps(p: Any, x: Any) -> Any:
    return lax.scan(lambda c, _: (c, x @ p["w"]), 0.0, None, length=2)[1]


def members(p: Any, x: Any) -> Any:
    return jax.vmap(jnp.dot)(jnp.stack([x, x]), p["w"])


def rounds(p: Any, x: Any) -> Any:
    def body(state: Any) -> Any:
        i, outs = state
        return i + 1, lax.dynamic_update_slice(outs, (x @ p["w"])[None], (i, 0, 0))

    start = (jnp.int32(0), jnp.zeros((2, 8, 8)))
    return lax.while_loop(lambda state: state[0] < 2, body, start)[1]


@pytest.mark.parametrize(
    ("fn", "p"),
    [
        (twins, {"one": EYE, "two": EYE}),
        (layers, {"w": jnp.stack([EYE, EYE])}),
        (steps, {"w": EYE}),
        (members, {"w": jnp.stack([EYE, EYE])}),
        (rounds, {"w": EYE}),
    ],
    ids=["contractions", "layers", "steps of time", "members", "rounds of a while"],
)
def test_equal_tensors_are_rounded_apart(fn: Any, p: Any, key: jax.Array):
    one, two = rounded(fn, p, ACTIVATION, key, X)
    assert np.any(one != two)


@pytest.mark.parametrize(
    ("entry", "shares"), [(ACTIVATION, True), (separate(ACTIVATION), False)]
)
def test_products_share_a_copy_only_if_the_entry_says_so(
    entry: Any, shares: bool, key: jax.Array
):
    """With identities elsewhere, out and dW are the two rounded copies of x."""

    def both(p: Any, x: Any) -> Any:
        out, backward = jax.vjp(lambda w: low({"w": entry}, {"w": w}, x, key=key), p)
        return out, backward(EYE)[0].T

    low = with_precision(product, OPTIONS)
    out, copy = jax.jit(both)(EYE, X)
    assert isinstance(entry, Precision) != shares
    assert np.array_equal(out, copy) == shares


def test_products_are_unbiased(key: jax.Array):
    """The mean over keys comes as near to the exact product as chance lets it."""
    entry = SharedPrecision(INT8, INT8, INT8)
    x, w, count = 3 * normal(0, 4, 8), 3 * normal(1, 8, 4), 4000
    low = with_precision(product, OPTIONS)
    each = jax.vmap(lambda key: low({"w": entry}, {"w": w}, x, key=key))
    outs = np.asarray(jax.jit(each)(jax.random.split(key, count)), np.float64)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    sigma = outs.std(0) / np.sqrt(count)
    assert np.all(np.abs(outs.mean(0) - exact) < 4.5 * sigma)
