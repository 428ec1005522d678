"""Activations kept in a narrow format for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats, scaling
from adaprec_jax.contractions import (
    Options,
    Stored,
    contraction_table,
    value_and_grad,
)
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.runs import overrides
from adaprec_jax.runs.build import make_stored
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load

FLOAT32 = SharedPrecision(*[formats.get("float32")] * 3)


def int4(x: np.ndarray) -> np.ndarray:
    """Rounds to -7 ... 7 times a power of two that brings the largest within 7."""
    unit = 2.0 ** np.ceil(np.log2(np.abs(x).max() / 7))
    return (np.rint(x / unit) * unit).astype(np.float32)


def gradients(loss, params, x, stored: Stored | None):
    table = contraction_table(loss, params, x)
    step = value_and_grad(loss, Options(stored=stored))
    (value, _), found, _ = jax.jit(step)(params, x, plan=uniform(table, FLOAT32))
    return value, found


def test_the_weight_gradient_sees_what_was_stored_and_nothing_else_does():
    rng = np.random.default_rng(0)
    x, v, w = (rng.normal(size=s).astype(np.float32) for s in ((6, 5), (5, 5), (5, 3)))

    def loss(params, x):
        return jnp.sum(((x @ params["v"]) @ params["w"]) ** 2), None

    params = {"v": jnp.asarray(v), "w": jnp.asarray(w)}
    value, found = gradients(loss, params, x, Stored(formats.get("int4")))
    plain, _ = gradients(loss, params, x, None)
    h = x @ v
    cotangent = 2 * (h @ w)
    np.testing.assert_array_equal(value, plain)
    np.testing.assert_allclose(found["w"], int4(h).T @ cotangent, rtol=1e-5)
    np.testing.assert_allclose(found["v"], int4(x).T @ (cotangent @ w.T), rtol=1e-5)


def test_both_operands_of_a_product_of_activations_are_stored():
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((4, 5), (5, 5)))

    def loss(params, x):
        y = x @ params["w"]
        return jnp.sum(y @ y.T), None

    _, found = gradients(loss, {"w": jnp.asarray(w)}, x, Stored(formats.get("int4")))
    y = x @ w
    ones = np.ones((4, 4), np.float32)
    # d/dy of sum(y y') reads y twice, both times what was stored of it.
    cotangent = ones @ int4(y) + ones.T @ int4(y)
    np.testing.assert_allclose(found["w"], int4(x).T @ cotangent, rtol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_it_goes_through_layers_and_blocks(remat: bool):
    rng = np.random.default_rng(2)
    layers = jnp.asarray(rng.normal(size=(3, 8, 8)), jnp.float32) / 3
    x = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)

    def loss(params, x):
        def layer(h, w):
            return jnp.tanh(h @ w), None

        body = jax.checkpoint(layer) if remat else layer
        return jnp.sum(jax.lax.scan(body, x, params["w"])[0] ** 2), None

    how = Stored(formats.get("float8_e4m3fn"), scaling.blockwise(4))
    _, found = gradients(loss, {"w": layers}, x, how)
    _, exact = gradients(loss, {"w": layers}, x, None)
    difference = np.linalg.norm(found["w"] - exact["w"], axis=(1, 2))
    size = np.linalg.norm(exact["w"], axis=(1, 2))
    # Half of E4M3's spacing relative to a number is at most 2^-4.
    assert (difference > 0).all()
    assert (difference / size < 2**-4).all()


def test_a_config_names_format_and_recipe():
    recipe = '"recipe":{"kind":"current","power_of_two":false}'
    experiment = overrides.apply(
        load("digits-int8"), [f'stored_activations={{"format":"int4",{recipe}}}']
    )
    stored = make_stored(experiment.stored_activations)
    assert stored is not None
    x = jnp.float32([70.0, 11.0])
    found = stored.recipe.round(x, stored.format, (), axes=(0,), key=None)
    np.testing.assert_allclose(found[0] * found[1], [70.0, 10.0])


def test_a_recipe_with_a_state_is_refused():
    with pytest.raises(InputError, match="must be one without a state, got delayed"):
        overrides.apply(
            load("digits-int8"),
            ['stored_activations={"format":"int4","recipe":{"kind":"delayed"}}'],
        )
