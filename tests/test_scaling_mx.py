"""Microscaling: blocks that share a power of two."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gfloat import RoundMode, compute_scale_amax, quantize_block
from gfloat.formats import all_block_formats

from adaprec_jax import formats
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import (
    Recipes,
    Use,
    blockwise,
    current,
    mx,
    mxfp8_recipes,
    nvfp4,
    rotated,
)
from adaprec_jax.testing import check_recipe
from tests.scaling_reference import (
    CONV,
    DENSE,
    EXACT,
    assert_products,
    by_part,
    found,
    products,
)
from tests.walk_models import normal

# Ours, by the name of gfloat's block format. MXINT8 counts in 1/64.
FORMATS = {
    "mxfp8_e4m3": ("float8_e4m3fn", 1), "mxfp8_e5m2": ("float8_e5m2", 1),
    "mxfp6_e2m3": ("float6_e2m3fn", 1), "mxfp6_e3m2": ("float6_e3m2fn", 1),
    "mxfp4_e2m1": ("float4_e2m1fn", 1), "mxint8": ("int8", 64),
}  # fmt: skip
DTYPES = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
    "float6_e2m3fn": ml_dtypes.float6_e2m3fn, "float6_e3m2fn": ml_dtypes.float6_e3m2fn,
    "float4_e2m1fn": ml_dtypes.float4_e2m1fn, "int8": np.int8,
}  # fmt: skip
# The exponent of the largest number, and that number.
LARGEST = {
    "float8_e4m3fn": (8, 448.0), "float8_e5m2": (15, 57344.0),
    "float6_e2m3fn": (2, 7.5), "float6_e3m2fn": (4, 28.0),
    "float4_e2m1fn": (2, 6.0), "int8": (6, 127.0),
}  # fmt: skip
BLOCK = np.array([
    0, 1e-4, -2e-3, .01, .05, -.11, .23, .3, -.37, .49, .5, -.62, .75, .9, -1, 1.1,
    1.25, -1.4, 1.5, 1.75, 2, -2.3, 2.5, 3, -3.3, 3.5, 4.1, -4.7, 5, 5.5, -6.2, 7.3,
], np.float32)  # fmt: skip
E4M3_FLOOR = [
    0, 9.1552734e-5, -.001953125, .009765625, .05078125, -.109375, .234375, .3125,
    -.375, .5, .5, -.625, .75, .875, -1, 1.125, 1.25, -1.375, 1.5, 1.75, 2, -2.25, 2.5,
    3, -3.25, 3.5, 4, -4.5, 5, 5.5, -6, 7,
]  # fmt: skip
E4M3_UP = [0, 1.2207031e-4, *E4M3_FLOOR[2:-1], 7.5]
E2M1_FLOOR = [
    0, 0, -0.0, 0, 0, -0.0, 0, .5, -.5, .5, .5, -.5, 1, 1, -1, 1, 1, -1.5, 1.5, 2, 2,
    -2, 2, 3, -3, 4, 4, -4, 4, 6, -6, 6,
]  # fmt: skip


def restored(recipe, x, name, summed=None, key=None):
    """Returns the rounded tensor, and its scale."""
    x = jnp.asarray(x, jnp.float32)
    summed = (x.ndim - 1,) if summed is None else summed
    values, scale = recipe.round(
        x, formats.get(name), (), axes=tuple(range(x.ndim)), key=key,
        use=Use("forward", summed),
    )  # fmt: skip
    return np.asarray(values * scale), np.asarray(scale)


@pytest.mark.parametrize(
    ("name", "rule", "expected", "exponent", "error"),
    [
        ("float8_e4m3fn", "floor", E4M3_FLOOR, -6, 5.850043e-3),
        ("float8_e4m3fn", "up", E4M3_UP, -5, 4.287537e-3),
        ("float4_e2m1fn", "floor", E2M1_FLOOR, 0, 0.1411408),
    ],
)
def test_golden_blocks(name, rule, expected, exponent, error):
    found, scale = restored(mx(shared_exponent=rule), BLOCK, name)
    assert (scale == 2.0**exponent).all()
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    np.testing.assert_allclose(np.mean(np.square(BLOCK - found)), error, rtol=1e-6)


@pytest.mark.parametrize("mode", ["nearest_even", "nearest_away", "toward_zero"])
@pytest.mark.parametrize("of_gfloat", all_block_formats, ids=str)
def test_gfloat_rounds_the_same_blocks(of_gfloat, mode):
    modes = {"nearest_even": RoundMode.TiesToEven, "nearest_away": RoundMode.TiesToAway,
             "toward_zero": RoundMode.TowardZero}  # fmt: skip
    name, unit = FORMATS[of_gfloat.name]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 32)) * 2.0 ** rng.integers(-8, 8, (12, 32))
    x *= 2.0 ** rng.integers(-90, 90, (12, 1))
    x[3], x[4, 5:] = 0, 0
    x[5] = np.round(x[5] / np.abs(x[5]).max() * 64) / 32  # ties
    x = x.astype(np.float32)
    found, scale = restored(mx(rounding=mode), x, name)
    for row, out, one in zip(x, found, scale, strict=True):
        expected = quantize_block(
            of_gfloat, row.astype(np.float64), compute_scale_amax, modes[mode]
        )
        np.testing.assert_array_equal(out, expected)
        if row.any():
            exact = compute_scale_amax(of_gfloat.etype.emax, row.astype(np.float64))
            assert (one * unit == exact).all()


TINY = np.full(32, 1.75 * 2.0**-125, np.float32)  # asks for the scale 2^-127


def test_the_lowest_scale_is_the_lowest_normal_number():
    found, scale = restored(mx(), TINY, "float4_e2m1fn")
    assert (scale == 2.0**-126).all()
    np.testing.assert_array_equal(found, np.float32(2.0**-124))  # 3.5 goes to 4


@pytest.mark.xfail(strict=True, reason="2^-127 is subnormal in float32; XLA flushes it")
def test_the_lowest_scale_of_e8m0():
    stored = np.full(32, 1.5 * 2.0**-125)  # 7 saturates at 6
    (of_gfloat,) = (f for f in all_block_formats if f.name == "mxfp4_e2m1")
    block = quantize_block(of_gfloat, TINY.astype(np.float64), compute_scale_amax)
    if not np.array_equal(block, stored):
        pytest.fail("gfloat has another answer")
    found, _ = restored(mx(), TINY, "float4_e2m1fn")
    np.testing.assert_array_equal(found, stored.astype(np.float32))


@pytest.mark.parametrize("rule", ["floor", "up"])
@pytest.mark.parametrize("name", DTYPES)
def test_an_independent_reference_on_hard_tensors(name, rule):
    """Odd sizes, several summed axes, zeros, one huge element."""
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((5, 3, 7)) * 2.0 ** rng.integers(-9, 9, (5, 3, 7))).astype(
        np.float32
    )
    x[2], x[0, 0, 0], x[1, 1, 1] = 0, 1e30, 3e-30
    emax, largest = LARGEST[name]

    def round_part(part):
        amax = np.abs(part).max()
        if amax == 0:
            return part
        if rule == "floor":
            exponent = np.floor(np.log2(np.float64(amax))) - emax
        else:
            exponent = np.ceil(np.log2(np.float64(amax) / largest))
        scaled = np.clip(np.float64(part) / 2.0**exponent, None, largest)
        scaled = np.maximum(scaled, -128.0 if name == "int8" else -largest)
        low = np.rint(scaled) if name == "int8" else scaled.astype(DTYPES[name])
        return (low.astype(np.float64) * 2.0**exponent).astype(np.float32)

    for size, square in ((32, False), (4, False), (4, True)):
        recipe = mx(size, shared_exponent=rule, square=square)
        for summed in ((1,), (0, 2), (0, 1, 2)):
            found, _ = restored(recipe, x, name, summed)
            expected = by_part(round_part, x, summed, size if square else 1, size)
            np.testing.assert_array_equal(found, expected)


def test_away_from_zero_is_what_microxcaling_does():
    """sign(x) floor(|x| / spacing + 1/2) spacing, the spacing that of |x|'s binade."""
    x = np.concatenate([np.arange(-48, 49) / 8, [7.9]]).astype(np.float32)
    x = np.resize(x, (4, 32))
    found, scale = restored(mx(rounding="nearest_away"), x, "float4_e2m1fn")
    scaled = x / scale
    spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(scaled), 1))) - 1)
    expected = np.floor(np.abs(scaled) / spacing + 0.5) * spacing
    expected = np.sign(x) * np.minimum(expected, 6) * scale
    np.testing.assert_array_equal(found, expected)
    even, _ = restored(mx(), x, "float4_e2m1fn")
    assert (found != even).any()


def test_rounding_up_is_the_least_power_of_two_without_saturation():
    for name, (_, largest) in LARGEST.items():
        for exponent in (-30, 0, 17):
            fits = np.float32(largest * 2.0**exponent)
            above = np.nextafter(fits, np.float32(np.inf))
            for amax, expected in ((fits, exponent), (above, exponent + 1)):
                _, scale = restored(mx(shared_exponent="up"), [amax, 0.0], name)
                assert (scale == 2.0**expected).all(), (name, amax)


def test_beyond_e8m0_a_block_is_nan():
    """Only a format of fractions needs such a scale."""
    fmt = formats.fixed_point(8, 9)  # up to 127/512, the exponent -3
    for size, lost in ((2.0**124, False), (2.0**125, True), (np.inf, True)):
        x = jnp.ones(64).at[5].set(size)
        values, scale = mx().round(
            x, fmt, (), axes=(0,), key=None, use=Use("forward", (0,))
        )
        finite = np.isfinite(np.asarray(values * scale))
        assert finite[32:].all()
        assert finite[:32].any() != lost


def relative_error(recipe, x, name):
    if recipe.per_product:
        found, _ = restored(recipe, x, name)
    else:
        values, scale = recipe.round(
            jnp.asarray(x), formats.get(name), (), axes=(0, 1), key=None
        )
        found = np.asarray(values * scale)
    return np.mean(np.square(x - found)) / np.mean(np.square(x))


@pytest.mark.slow
def test_the_errors_of_a_gaussian():
    x = np.random.default_rng(0).standard_normal((4096, 32)).astype(np.float32)
    whole = current(power_of_two=False)
    errors = {
        "e4m3": relative_error(whole, x, "float8_e4m3fn"),
        "e5m2": relative_error(whole, x, "float8_e5m2"),
        "int8": relative_error(whole, x, "int8"),
        "mxfp8": relative_error(mx(), x, "float8_e4m3fn"),
        "mxfp8 up": relative_error(mx(shared_exponent="up"), x, "float8_e4m3fn"),
        "mxfp4": relative_error(mx(), x, "float4_e2m1fn"),
        "nvfp4": relative_error(nvfp4(), x, "float4_e2m1fn"),
    }
    for name, value in {"e4m3": 6.98e-4, "e5m2": 2.79e-3, "int8": 1.16e-4,
                        "mxfp8": 8.73e-4}.items():  # fmt: skip
        np.testing.assert_allclose(errors[name], value, rtol=5e-3, err_msg=name)
    assert errors["int8"] < errors["e4m3"] < errors["e5m2"]
    assert errors["mxfp8 up"] < errors["mxfp8"]
    assert errors["nvfp4"] < errors["mxfp4"]


def test_the_products_under_mxfp8():
    def round_part(part):
        amax = np.float64(np.abs(part).max())
        scale = 2.0 ** np.ceil(np.log2(amax / 448)) if amax else 1.0
        return (part / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale

    low = lambda product, role, x, summed: by_part(round_part, x, summed, 1, 32)
    entry = SharedPrecision(*[formats.get("float8_e4m3fn")] * 3)
    dense = lambda a, w: jnp.dot(a, w, precision=EXACT)
    conv = lambda a, w: jax.lax.conv_general_dilated(
        a, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=EXACT,
    )  # fmt: skip
    for product, summed, *shapes in (
        (dense, DENSE, (37, 70), (70, 40)),
        (conv, CONV, (2, 5, 5, 40), (3, 3, 40, 33)),
    ):
        a, w = (normal(i, *shape) * jnp.exp(normal(9 + i, *shape))
                for i, shape in enumerate(shapes))  # fmt: skip
        g = normal(5, *jax.eval_shape(product, a, w).shape)
        layer = lambda w, a, product=product: product(a, w)
        out, _ = found(layer, a, w, g, mxfp8_recipes(), entry)
        assert_products(out, products(product, a, w, g, summed, low))


@pytest.mark.parametrize(
    "recipe", [mx(), mx(16, shared_exponent="up", square=True), rotated(mx())]
)
def test_the_contract(recipe):
    check_recipe(recipe)


def test_what_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        mx(0)
    with pytest.raises(ValueError, match="must be 'floor' or 'up', got 'down'"):
        mx(shared_exponent="down")
    with pytest.raises(ValueError, match=r"nearest_away.* no effect beside"):
        mx(rounding="nearest_away", quantizer=lambda x, fmt, key: x)


def test_up_in_blocks_is_blockwise_within_the_bounds_of_e8m0():
    x = np.asarray(normal(0, 3, 100))
    a = restored(mx(shared_exponent="up"), x, "float8_e4m3fn")
    b = restored(blockwise(32), x, "float8_e4m3fn")
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_recipes_of_a_name_are_one():
    recipes = mxfp8_recipes()
    assert recipes == Recipes(*[mx(shared_exponent="up")] * 3)
