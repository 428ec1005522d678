"""NVFP4: two levels of scales, a rotation, and a choice between 4 and 6."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.linalg

from adaprec_jax import formats
from adaprec_jax.precision import Dgrad, Forward, Precision, SharedPrecision, Wgrad
from adaprec_jax.scaling import (
    Recipes,
    Use,
    blockwise,
    current,
    hadamard,
    nvfp4,
    nvfp4_recipes,
    rotated,
)
from adaprec_jax.testing import check_recipe
from tests.scaling_reference import (
    CONV,
    DENSE,
    EXACT,
    as_matrix,
    by_part,
    found,
    products,
)
from tests.walk_models import normal

E2M1 = formats.get("float4_e2m1fn")
SIGNS = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
F = np.float32


def rounded(recipe, x, summed=None, product="forward", key=None, fmt=E2M1):
    x = jnp.asarray(x, jnp.float32)
    summed = (x.ndim - 1,) if summed is None else summed
    values, scale = jax.jit(
        lambda x, key: recipe.round(
            x, fmt, (), axes=tuple(range(x.ndim)), key=key, use=Use(product, summed)
        )
    )(x, key)
    return np.asarray(values), np.asarray(scale)


def restored(*args, **settings):
    values, scale = rounded(*args, **settings)
    return values * scale


def through(x, dtype, bound):
    return np.clip(x, -bound, bound).astype(dtype).astype(F)


def replay(x, summed, size=16, square=False, top=6.0, scale_max=448.0):
    """The rule of Transformer Engine's reference, float32 operation by operation."""
    x = np.asarray(x, F)
    whole = F(np.abs(x).max())
    encode = F(F(6.0 * scale_max) / whole) if whole else F(1)
    decode = F(F(1) / encode)

    def round_block(part):
        of_block = through(F(np.abs(part).max() / F(top)) * encode,
                           ml_dtypes.float8_e4m3fn, 448)  # fmt: skip
        if of_block == 0:
            return np.zeros_like(part)
        scale = F(of_block * decode)
        values = through(part * F(F(1) / scale), ml_dtypes.float4_e2m1fn, 6)
        return values * scale

    return by_part(round_block, x, summed, size if square else 1, size)


def hard(*shape):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6, shape)
    x[0, :20], x.flat[-5] = 0, 3e3
    x[1] *= 1e-7  # whose block scales E4M3 rounds to zero
    return x.astype(F)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("shape", [(4, 64), (35, 50), (3, 7)])
def test_the_rule_of_the_reference(shape, square):
    x = hard(*shape) if shape != (3, 7) else np.asarray(normal(0, 3, 7))
    for summed in ((0,), (1,), (0, 1)):
        out = restored(nvfp4(square=square), x, summed)
        np.testing.assert_array_equal(out, replay(x, summed, square=square))


def test_the_elements_follow_the_thresholds_of_e2m1():
    x = [6.0, 0.25, 0.26, 0.75, 1.25, 1.26, 1.75, 2.5, 2.51, 3.5, 5.0, 5.01, -5.0, -0.0]
    values, scale = rounded(nvfp4(), np.array(x) * 448)  # amax 2688: the factor 1
    assert (scale == 448).all()
    expected = [6, 0, 0.5, 1, 1, 1.5, 2, 2, 3, 4, 4, 6, -4, -0.0]
    np.testing.assert_array_equal(values, expected)


def test_a_scale_that_e4m3_rounds_down_saturates_the_largest_element():
    x = np.zeros(32)
    x[0], x[16] = 2688, 6 * 1.0625  # E4M3 has 1 and 1.125
    values, scale = rounded(nvfp4(), x)
    assert (values[16], scale[16]) == (6, 1)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1.0, 1e30, 3e38])
def test_any_magnitude(size):
    x = np.asarray(normal(0, 3, 40)) / 5 * F(size)
    out = restored(nvfp4(), x)
    assert np.isfinite(out).all()
    if size > 1e-37:
        np.testing.assert_allclose(out, replay(x, (1,)), rtol=1e-6)
        assert np.sum(np.square(out / size - x / size)) < 0.02 * np.sum((x / size) ** 2)


@pytest.mark.parametrize("kind", ["mse", "mae"])
def test_four_over_six_takes_the_better_of_two(kind):
    x = np.concatenate([hard(8, 48), np.asarray(normal(1, 64, 48))])
    candidates = [replay(x, (1,), top=top, scale_max=256) for top in (6.0, 4.0)]
    power = 2 if kind == "mse" else 1
    errors = [
        (np.abs(out.astype(np.float64) - x) ** power).reshape(-1, 16).sum(1)
        for out in candidates
    ]
    four = errors[1] < errors[0]
    expected = np.where(four[:, None], *(c.reshape(-1, 16) for c in candidates[::-1]))
    out = restored(nvfp4(four_over_six=kind), x)
    decided = np.abs(errors[1] - errors[0]) > 1e-5 * errors[0]
    assert 0.2 < four[decided].mean() < 0.8
    np.testing.assert_array_equal(out.reshape(-1, 16)[decided], expected[decided])
    plain = np.sum(np.square(restored(nvfp4(), x[8:]) - x[8:]))
    assert np.sum(np.square(out[8:] - x[8:])) < plain


def test_stochastic_rounding_is_right_on_average():
    x = np.asarray(normal(0, 2, 32))
    recipe = nvfp4(rounding="stochastic")
    keys = jax.random.split(jax.random.key(0), 4000)
    values, scale = jax.jit(jax.vmap(
        lambda key: recipe.round(
            jnp.asarray(x), E2M1, (), axes=(0, 1), key=key, use=Use("dgrad", (1,))
        )
    ))(keys)  # fmt: skip
    inside = np.abs(x) <= 6 * np.asarray(scale[0])
    mean = np.asarray((values * scale).mean(0))
    spacing = 2 * np.asarray(scale[0])  # the widest
    assert (np.abs(mean - x) < 4 * spacing / np.sqrt(4000))[inside].all()
    assert inside.mean() > 0.9


def test_the_matrix_is_hadamards():
    expected = np.diag(SIGNS) @ scipy.linalg.hadamard(16) / 4
    np.testing.assert_array_equal(hadamard(), expected)
    np.testing.assert_allclose(hadamard() @ hadamard().T, np.eye(16), atol=1e-7)
    with pytest.raises(ValueError, match="power of two, got"):
        hadamard((1, 1, -1))
    with pytest.raises(ValueError, match="must be 1 and -1"):
        hadamard((1, 2))


def turned(x, summed, matrix):
    """Multiplies whole parts of 16 of what is summed by the matrix."""
    m, back = as_matrix(x, summed)
    m = m.copy()
    for start in range(0, m.shape[1] - 15, 16):
        m[:, start : start + 16] = m[:, start : start + 16] @ matrix
    return back(m)


MATRIX = (np.diag(SIGNS) @ scipy.linalg.hadamard(16) / 4).astype(F)


def rotated_replay(x, summed):
    return turned(replay(turned(x, summed, MATRIX), summed), summed, MATRIX.T)


@pytest.mark.parametrize("shape", [(5, 64), (3, 37), (40, 2)])
@pytest.mark.parametrize("summed", [(0,), (1,), (0, 1)])
def test_a_rotated_tensor(shape, summed):
    """Of numbers in 1/64, so that no order of sums changes the rotation."""
    x = np.round(np.asarray(normal(0, *shape)) * 64)
    out = restored(nvfp4(hadamard=True), x, summed, "wgrad")
    np.testing.assert_allclose(out, rotated_replay(x, summed), rtol=1e-5, atol=1e-4)
    for product in ("forward", "dgrad"):
        plain = restored(nvfp4(hadamard=True), x, summed, product)
        np.testing.assert_array_equal(plain, restored(nvfp4(), x, summed, product))


def test_rotating_back_is_the_product_of_the_rotated():
    """For a sum of whole parts, (A H)(B H)^T = A B^T."""
    a, b = (np.round(np.asarray(normal(i, 5, 48)) * 64) for i in range(2))
    recipe = nvfp4(hadamard=True)
    ours = restored(recipe, a, (1,), "wgrad") @ restored(recipe, b, (1,), "wgrad").T
    low = [replay(turned(x, (1,), MATRIX), (1,)) for x in (a, b)]
    np.testing.assert_allclose(ours, low[0] @ low[1].T, rtol=1e-4, atol=1.0)
    assert np.abs(ours).max() > 1e4


def test_a_rotation_saves_an_integers_small_neighbours_of_an_outlier():
    x = np.array(normal(0, 64, 16))
    x[:, 3] = 30.0
    small = np.arange(16) != 3
    plain, turned = (
        restored(recipe, x, (1,), "wgrad", fmt=formats.integer(4))
        for recipe in (blockwise(16), rotated(blockwise(16)))
    )
    assert not plain[:, small].any()
    product = np.sum(turned[:, small] * x[:, small])
    sizes = np.linalg.norm(turned[:, small]) * np.linalg.norm(x[:, small])
    assert product / sizes > 0.5


def test_scales_within_a_part_are_kept_apart_by_a_rotation():
    """Blocks of 5 do not fit into parts of 16."""
    x = np.round(np.asarray(normal(0, 4, 64)) * 64)
    fmt = formats.integer(4)
    out = restored(rotated(blockwise(5)), x, (1,), "wgrad", fmt=fmt)

    def round_part(part):
        amax = np.abs(part).max()
        scale = 2.0 ** np.ceil(np.log2(np.float64(amax) / 7)) if amax else 1.0
        return np.clip(np.rint(part / scale), -8, 7) * scale

    there = by_part(round_part, turned(x, (1,), MATRIX), (1,), 1, 5)
    np.testing.assert_allclose(out, turned(there, (1,), MATRIX.T), atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_products_under_nvfp4(kind):
    recipes = nvfp4_recipes()._replace(gradient=nvfp4(hadamard=True))
    if kind == "dense":
        product = lambda a, w: jnp.dot(a, w, precision=EXACT)
        summed, shapes = DENSE, ((37, 40), (40, 24))
    else:
        product = lambda a, w: jax.lax.conv_general_dilated(
            a, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=EXACT,
        )  # fmt: skip
        summed, shapes = CONV, ((2, 5, 5, 20), (3, 3, 20, 18))
    a, w = (jnp.round(64 * normal(i, *shape)) / 64 for i, shape in enumerate(shapes))
    g = jnp.round(64 * normal(5, *jax.eval_shape(product, a, w).shape)) / 64
    layer = lambda w, a: product(a, w)
    entry = SharedPrecision(E2M1, E2M1, E2M1)
    out, _ = found(layer, a, w, g, recipes, entry)

    def low(which, role, x, axes):
        if which == "wgrad":
            return rotated_replay(x, axes)
        return replay(x, axes, square=role == "weight")

    expected = products(product, a, w, g, summed, low)
    for one, other in zip(out, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_float32_operand_is_not_rotated():
    """Each operand has a format of its own."""
    a, w, g = normal(0, 32, 8), normal(1, 8, 4), normal(2, 32, 4)
    plain = formats.get("float32")
    entry = Precision(Forward(plain, plain), Dgrad(plain, plain), Wgrad(E2M1, plain))
    layer = lambda w, a: a @ w
    recipes = Recipes(*[nvfp4(hadamard=True)] * 3)
    (y, da, dw), _ = found(layer, a, w, g, recipes, entry)
    np.testing.assert_array_equal(y, jnp.dot(a, w, precision=EXACT))
    np.testing.assert_array_equal(da, jnp.dot(g, w.T, precision=EXACT))
    expected = np.asarray(a).T @ rotated_replay(g, (0,))
    np.testing.assert_allclose(dw, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad):
    x = np.asarray(normal(0, 4, 40)).copy()
    x[2, 7] = bad
    for product in ("forward", "wgrad"):
        out = restored(nvfp4(hadamard=True), x, (1,), product)
        assert not np.isfinite(out[2, 7])
    assert not restored(nvfp4(), np.zeros((2, 20))).any()


@pytest.mark.parametrize("recipe", [
    nvfp4(), nvfp4(square=True, four_over_six="mse"),
    nvfp4(hadamard=True, rounding="stochastic"),
])  # fmt: skip
def test_the_contract(recipe):
    check_recipe(recipe, jax.random.key(0))


def test_what_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        nvfp4(0)
    with pytest.raises(ValueError, match="one of none, mse, mae, got 'max'"):
        nvfp4(four_over_six="max")
    with pytest.raises(ValueError, match="Only a recipe that rounds for each product"):
        rotated(current())
    with pytest.raises(ValueError, match=r"forward, dgrad and wgrad, got \['all'\]"):
        rotated(nvfp4(), ("all",))
