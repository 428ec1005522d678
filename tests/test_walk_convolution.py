"""Convolution gradients in the canonical layout equal JAX's own, to the bit."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from adaprec_jax.contractions.convolution import linear_transpose

# Input, kernel, and the arguments that are not at their defaults.
CASES = {
    "1d": ((2, 9, 3), (3, 3, 4), {}),
    "2d": ((2, 8, 9, 3), (3, 3, 3, 4), {}),
    "3d": ((2, 5, 6, 5, 2), (2, 3, 2, 2, 4), {}),
    "valid": ((2, 8, 9, 3), (3, 3, 3, 4), {"padding": "VALID"}),
    "strided": ((2, 8, 9, 3), (3, 3, 3, 4), {"window_strides": (2, 3)}),
    "dilated": ((2, 9, 9, 3), (3, 3, 3, 4), {"rhs_dilation": (2, 1)}),
    "transposed": (
        (2, 5, 5, 3),
        (3, 3, 3, 4),
        {"lhs_dilation": (2, 2), "padding": ((1, 2), (2, 1))},
    ),
    "grouped": ((2, 8, 8, 6), (3, 3, 2, 9), {"feature_group_count": 3}),
}
LAYOUTS = {
    1: ("NHC", "HIO", "NHC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NHWDC", "HWDIO", "NHWDC"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_transpose_of_jax(case: tuple, key: jax.Array):
    keys = jax.random.split(key, 3)
    x, w = (jax.random.normal(k, s) for k, s in zip(keys, case[:2], strict=False))
    space = x.ndim - 2
    options = {"window_strides": (1,) * space, "padding": "SAME"} | case[2]

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, dimension_numbers=LAYOUTS[space], **options
        )

    g = jax.random.normal(keys[2], conv(x, w).shape)
    for fn, like in ((lambda a: conv(a, w), x), (lambda a: conv(x, a), w)):
        (expected,) = jax.jit(jax.linear_transpose(fn, like))(g)
        assert jnp.array_equal(jax.jit(linear_transpose(fn, like))(g), expected)


def test_the_weight_gradient_in_a_loop_has_the_canonical_layout():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    layout = LAYOUTS[2]

    def conv(w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)

    jaxpr = jax.make_jaxpr(linear_transpose(conv, w))(jnp.ones((2, 8, 8, 4)))
    (eqn,) = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    spec = eqn.params["dimension_numbers"]
    assert spec == lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
