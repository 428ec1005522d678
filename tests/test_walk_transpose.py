"""Gradients in the layouts that XLA:CPU is fast in equal JAX's own."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from adaprec_jax.contractions.transpose import linear_transpose

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


PRODUCTS = {
    "dense": ("bi,io->bo", (6, 4), (4, 5)),
    "sequence": ("bti,io->bto", (2, 6, 4), (4, 5)),
    "heads": ("bti,ihd->bthd", (2, 6, 4), (4, 3, 5)),
    "heads to width": ("bthd,hdo->bto", (2, 6, 3, 4), (3, 4, 5)),
    "weight on the left": ("io,bi->ob", (4, 5), (6, 4)),
    "members": ("mbi,mio->mbo", (3, 6, 4), (3, 4, 5)),
    "scores": ("bqhd,bkhd->bhqk", (2, 3, 4, 5), (2, 6, 4, 5)),
    "outer": ("i,j->ij", (3,), (4,)),
}


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_product_equals_the_transpose_of_jax(case: tuple, side: int, key: jax.Array):
    keys = jax.random.split(key, 3)
    operands = [jax.random.normal(k, s) for k, s in zip(keys, case[1:], strict=False)]
    out = jnp.einsum(case[0], *operands)
    g = jax.random.normal(keys[2], out.shape)

    def product(x: jax.Array) -> jax.Array:
        both = (x, operands[1]) if side == 0 else (operands[0], x)
        return jnp.einsum(case[0], *both)

    (expected,) = jax.jit(jax.linear_transpose(product, operands[side]))(g)
    ours = jax.jit(linear_transpose(product, operands[side]))(g)
    assert jnp.max(jnp.abs(ours - expected)) <= 1e-6 * jnp.max(jnp.abs(expected))


def test_the_gradient_of_a_dense_weight_is_formed_as_the_weight_lies():
    x, w, g = jnp.ones((8, 3)), jnp.ones((3, 4)), jnp.ones((8, 4))
    jaxpr = jax.make_jaxpr(linear_transpose(lambda w: x @ w, w))(g)
    (eqn,) = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert eqn.outvars[0].aval.shape == w.shape
    text = jax.jit(linear_transpose(lambda w: x @ w, w)).lower(g).compile().as_text()
    assert " transpose(" not in text.split("ENTRY")[1]


def test_the_weight_gradient_in_a_loop_has_the_canonical_layout():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    layout = LAYOUTS[2]

    def conv(w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)

    jaxpr = jax.make_jaxpr(linear_transpose(conv, w))(jnp.ones((2, 8, 8, 4)))
    (eqn,) = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    spec = eqn.params["dimension_numbers"]
    assert spec == lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
