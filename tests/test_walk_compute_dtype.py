"""Between contractions: few bits where they suffice, float32 where they do not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Compute,
    Options,
    contraction_table,
    value_and_grad,
    with_precision,
)
from adaprec_jax.contractions.compute_dtype import FLOAT32
from adaprec_jax.contractions.jax_internals import sub_jaxprs
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from tests.walk_models import MODELS, filled, normal

F32 = formats.get("float32")
FULL = SharedPrecision(F32, F32, F32)
LOW = jnp.bfloat16
X = normal(0, 6, 8)
P = {"w": normal(1, 8, 8), "scale": normal(2, 8), "v": normal(3, 8, 8)}


def options(dtype: Any = LOW) -> Options:
    return Options(compute_dtype=Compute(jnp.dtype(dtype)))


def lowered(fn: Any, p: Any, *args: Any, dtype: Any = LOW) -> Any:
    plan = uniform(contraction_table(fn, p, *args), FULL)
    low = with_precision(fn, options(dtype))
    # XLA may otherwise keep more than the low dtype's bits between two operations.
    exactly = {"xla_allow_excess_precision": False}
    return jax.jit(low, compiler_options=exactly)(plan, p, *args)


def module(layer: nn.Module) -> Any:
    variables = filled(jax.eval_shape(layer.init, jax.random.key(0), X))
    variables = jax.tree.map(lambda w: jnp.abs(w) + 0.5, variables)  # variances
    return lambda x: layer.apply(variables, x)


def trained(x: Any) -> Any:
    """Batch normalisation by the statistics of the batch."""
    layer = nn.BatchNorm(use_running_average=False)
    variables = {"params": {"scale": P["scale"], "bias": P["w"][0]}}
    stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}
    return layer.apply(variables | {"batch_stats": stats}, x, mutable="batch_stats")


LABELS = jnp.array([1, 0, 7, 3, 3, 2])
# What follows a contraction, and the relative error it may have, given the bfloat16
# results of the contraction: none beyond float32's, unless it returns bfloat16 itself.
GOLDEN = {
    "LayerNorm": (module(nn.LayerNorm()), 1e-5),
    "RMSNorm": (module(nn.RMSNorm()), 1e-5),
    "BatchNorm": (lambda x: trained(x)[0], 1e-5),
    "BatchNorm by running averages": (
        module(nn.BatchNorm(use_running_average=True)), 2**-6,
    ),
    "GroupNorm": (module(nn.GroupNorm(2)), 1e-5),
    "cross-entropy": (
        lambda x: optax.softmax_cross_entropy_with_integer_labels(x, LABELS), 1e-5,
    ),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, axis=-1), 2**-8),
    "softmax": (lambda x: jax.nn.softmax(x), 2**-8),
    "log_softmax": (lambda x: jax.nn.log_softmax(x), 1e-5),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), 2**-7),
    "silu": (lambda x: jax.nn.silu(x), 2**-7),
    "relu": (lambda x: jax.nn.relu(x), 0),
    "mean": (lambda x: jnp.mean(x, axis=0), 1e-5),
    "residual": (lambda x: x + x, 0),
}  # fmt: skip


@pytest.mark.parametrize(("tail", "tolerance"), GOLDEN.values(), ids=GOLDEN)
def test_result_is_that_of_float32_on_a_low_contraction(tail: Any, tolerance: float):
    found = lowered(lambda p, x: tail(x @ p["w"]), P, X)
    low = jnp.dot(X, P["w"], precision="highest").astype(LOW)
    expected = jax.jit(tail)(low.astype(jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def dtypes_of(jaxpr: Any) -> set[tuple[str, str]]:
    """Every (primitive, float dtype of an input) in a jaxpr."""
    found = set()
    for eqn in jaxpr.eqns:
        for inner in sub_jaxprs(eqn):
            found |= dtypes_of(inner)
        found |= {(eqn.primitive.name, str(x.aval.dtype)) for x in eqn.invars}
    return found


def zoo(p: Any, x: Any, mask: Any) -> Any:
    """Ordinary things that models do with the results of contractions."""
    x = x @ p["w"]
    x = jnp.where(mask, x, 0.0) * jnp.astype(mask, jnp.float32)
    x = x + p["scale"][None]
    kept = jax.random.bernoulli(jax.random.key(0), 0.9, x.shape)
    x = jnp.where(kept, x / 0.9, 0.0)
    images = nn.max_pool(x.reshape(1, 6, 8, 1), (2, 2), strides=(2, 2))
    images = lax.reduce_window(images, 0.0, lax.add, (1, 3, 1, 1), (1,) * 4, "VALID")
    x = jnp.concatenate([x, x[::-1]], axis=-1)[:, 4:12]
    x = jnp.pad(x, ((1, 0), (0, 0)))[1:].at[0].set(0.0)
    best, _ = lax.top_k(x, 3)
    order = jnp.take_along_axis(x, jnp.argsort(x, axis=-1), axis=-1)
    x = x.at[:, 2].add(1.0)
    x = jnp.tanh(order) + jnp.clip(x, -1.0, 1.0) + jnp.cumsum(x, 0) + jnp.var(x)
    x = lax.erf(x) + jnp.exp(-jnp.abs(x)) + lax.rsqrt(1 + x**2) + jnp.log1p(x**2)
    return x @ p["v"] + best.sum() + images.sum() + jax.nn.one_hot(LABELS, 8)


def test_sums_and_transcendentals_run_in_float32_elementwise_in_low():
    mask = X > -1
    plan = uniform(contraction_table(zoo, P, X, mask), FULL)
    low = lambda p: with_precision(zoo, options())(plan, p, X, mask)
    found = dtypes_of(jax.make_jaxpr(low)(P).jaxpr)
    wide = {name for name, dtype in found if dtype == "bfloat16"} & FLOAT32
    assert wide == set()
    assert {"exp", "erf", "tanh", "rsqrt", "log1p", "reduce_sum", "cumsum"} <= {
        name for name, dtype in found if dtype == "float32"
    }
    elementwise = {"add", "mul", "div", "select_n", "concatenate", "pad", "reshape",
                   "reduce_window_max", "scatter", "sort", "gather"}  # fmt: skip
    assert elementwise <= {name for name, dtype in found if dtype == "bfloat16"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_are_near_those_of_float32(dtype: Any):
    mask = X > -1
    loss = lambda p: (jnp.mean(jnp.square(zoo(p, X, mask))), None)
    plan = uniform(contraction_table(loss, P), FULL)
    fn = value_and_grad(loss, options(dtype))
    (value, _), gradients, _ = jax.jit(lambda p: fn(p, plan=plan))(P)
    (plain, _), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(P)
    np.testing.assert_allclose(value, plain, rtol=0.02)
    for name, g in expected.items():
        assert gradients[name].dtype == jnp.float32
        error = np.linalg.norm(gradients[name] - g) / np.linalg.norm(g)
        assert 0 < error < 0.05, name


def test_float32_as_low_dtype_changes_nothing():
    mask = X > -1
    found = lowered(zoo, P, X, mask, dtype=jnp.float32)
    np.testing.assert_array_equal(found, jax.jit(zoo)(P, X, mask))


def test_look_up_in_a_parameter_is_low_and_in_data_is_not():
    def fn(p: Any, x: Any, at: Any) -> Any:
        return p["w"][at] + p["scale"][None], jnp.log(x)[at]

    at, x = jnp.array([2, 0]), jnp.abs(X) + 1
    embedded, taken = lowered(fn, P, x, at)
    sums = P["w"].astype(LOW)[at] + P["scale"].astype(LOW)[None]
    np.testing.assert_array_equal(embedded, sums.astype(jnp.float32))
    assert np.any(np.asarray(taken) != np.asarray(taken.astype(LOW), np.float32))
    np.testing.assert_allclose(taken, jnp.log(x)[at], rtol=1e-6)


def post_norm(x: Any, w: Any) -> Any:
    """The sum is low at first, and float32 after the first norm."""
    x = x + jax.nn.relu(x @ w)
    return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True))


def pre_norm(x: Any, w: Any) -> Any:
    rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True))
    return x + (x / rms) @ w


@pytest.mark.parametrize(("layer", "tolerance"), [(pre_norm, 1e-6), (post_norm, 2**-6)])
def test_scanned_layers_compute_in_the_dtypes_of_unrolled_ones(
    layer: Any, tolerance: float
):
    """Where a layer gives float32, the scan takes the first input as float32 too."""
    p = {"in": normal(1, 8, 8), "layers": normal(2, 3, 8, 8)}

    def scanned(p: Any, x: Any) -> Any:
        body = jax.checkpoint(lambda x, w: (layer(x, w), None))
        return lax.scan(body, x @ p["in"], p["layers"])[0]

    def unrolled(p: Any, x: Any) -> Any:
        x = x @ p["in"]
        for i in range(3):
            x = layer(x, p["layers"][i])
        return x

    np.testing.assert_allclose(
        lowered(scanned, p, X), lowered(unrolled, p, X), rtol=tolerance
    )
    low = with_precision(scanned, options())
    plan = uniform(contraction_table(scanned, p, X), FULL)
    jaxpr = jax.make_jaxpr(low)(plan, p, X).jaxpr
    (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    carried = "bfloat16" if layer is pre_norm else "float32"
    assert scan.outvars[0].aval.dtype == carried


def test_branches_give_the_wider_of_their_dtypes():
    def fn(p: Any, x: Any) -> Any:
        x = x @ p["w"]
        return lax.cond(x[0, 0] < 99, lambda x: x, lambda x: jnp.exp(x), x) + 0.0

    found = lowered(fn, P, X)
    low = jnp.dot(X, P["w"], precision="highest").astype(LOW)
    np.testing.assert_array_equal(found, low.astype(jnp.float32))


def test_while_and_untouched_contractions_and_shared_inputs():
    def fn(p: Any, x: Any) -> Any:
        x = lax.fori_loop(0, jnp.int32(x[0, 0] < 99), lambda _, x: x @ p["w"], x)
        return jnp.tanh(x) @ p["v"]

    untouched = options()._replace(untouched=lambda c: c.name == "v")
    plan = uniform(contraction_table(fn, P, X, options=untouched), FULL)
    found = jax.jit(with_precision(fn, untouched))(plan, P, X)
    expected = jax.jit(fn)(P, X)
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["cnn", "scanned transformer", "GRUCell", "nnx mlp"])
def test_whole_models_run_and_stay_near_float32(name: str):
    model = MODELS[name]()
    found = lowered(model.fn, model.params, *model.inputs)
    expected = jax.jit(model.fn)(model.params, *model.inputs)
    assert found.dtype == expected.dtype
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.05
