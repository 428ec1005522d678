"""Quantisers of published methods: golden vectors, and NumPy to the bit."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.quantizers import quantize
from adaprec_jax.runs import config
from adaprec_jax.runs.build import make_recipes
from adaprec_jax.scaling import Recipe, Recipes, Use, dorefa, sbm, swalp, wage
from adaprec_jax.testing import check_recipe
from tests.published_quantizers import (
    RECIPES,
    REFERENCES,
    F,
    np_sbm,
    np_swalp,
    of_slices,
)
from tests.walk_models import normal

each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
KEY = jax.random.key(7)
WEIGHTS = np.array([-1.2, -0.4, -0.05, 0, 0.1, 0.33, 0.8], F)


def round_with(recipe: Recipe, x: Any, bits: int, sliced: tuple[int, ...] = ()) -> Any:
    """Returns the rounded tensor, and in which scale."""
    x = jnp.asarray(x)
    fmt = formats.integer(jnp.int32(bits))
    values, scale = compiled(recipe, x.ndim, sliced)(x, fmt, (), key=KEY)
    return np.asarray(values * scale), np.asarray(scale)


@functools.cache
def compiled(recipe: Recipe, rank: int, sliced: tuple[int, ...]) -> Any:
    """Returns the rounding of whole tensors; the bits are traced."""
    use = {"use": Use("forward", (), sliced)} if recipe.per_product else {}
    return jax.jit(functools.partial(recipe.round, axes=tuple(range(rank)), **use))


# The others differ from these in what no promise is about.
ONE_OF_EACH = [
    "sbm slice", "sbm stochastic", "dorefa activation", "dorefa weight",
    "dorefa gradient", "wage weight", "wage gradient", "swalp", "muppet",
]  # fmt: skip


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(
            recipe, id=name, marks=[pytest.mark.slow] * (name not in ONE_OF_EACH)
        )
        for name, recipe in RECIPES.items()
    ],
)
def test_every_recipe_keeps_the_contract(recipe):
    check_recipe(recipe, KEY)


@pytest.mark.parametrize("name", REFERENCES)
def test_rounding_is_that_of_the_paper_to_the_bit(name):
    sizes = enumerate((1.0, 1e-4, 300.0))
    for (seed, size), bits in itertools.product(sizes, (2, 3, 4, 8, 12)):
        x = np.asarray(normal(seed, 5, 7, 3)) * F(size)
        x[..., 1] += F(size)  # lies on one side of zero, mostly
        found, _ = round_with(RECIPES[name], x, bits, (2,))
        np.testing.assert_array_equal(found, REFERENCES[name](x, bits))


@pytest.mark.parametrize(
    ("name", "bits", "expected"),
    [
        ("dorefa weight", 2, [-1, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1 / 3, 1]),
        ("dorefa weight", 1, 0.411429 * np.sign(WEIGHTS)),
        ("swalp slice", 4, [-1.25, -0.5, 0, 0, 0, 0.25, 0.75]),
    ],
)
def test_golden_vectors(name, bits, expected):
    found, _ = round_with(RECIPES[name], WEIGHTS, bits)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("bits", "exponent"), [(8, 6), (12, 10)])
def test_the_scaling_factor_of_muppet_is_the_golden_one(bits, exponent):
    for recipe in (RECIPES["muppet"], RECIPES["muppet nearest"]):
        _, scale = round_with(recipe, np.array([-1.2, 0.3, 0.8], F), bits)
        assert scale == 2.0**-exponent


@pytest.mark.parametrize(
    ("ends", "exponent"),
    [((127.5, 0.0), 0), ((127.51, 0.0), -1), ((0.0, -128.5), 0), ((0.0, -128.6), -1),
     ((-1.0, -2.0), 6), ((2.0, 1.0), 5)],
)  # fmt: skip
def test_muppet_looks_at_the_nearer_end(ends, exponent):
    rounded, scale = round_with(RECIPES["muppet nearest"], np.array(ends, F), 8)
    assert scale == 2.0**-exponent
    assert -128 <= (rounded / scale).min() <= (rounded / scale).max() <= 127


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize(
    "name", ["sbm stochastic", "dorefa gradient", "swalp", "muppet"]
)
def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour(name, bits):
    ends = np.array([-1.0, 1.0], F)
    for value in (-0.37, 0.111, 0.73):
        x = np.concatenate([ends, np.full(100_000, value, F)])
        found = round_with(RECIPES[name], x, bits)[0][2:]
        low, high = found.min(), found.max()
        assert len(set(found.tolist())) == 2
        assert low <= value <= high
        error = abs(found.mean(dtype=np.float64) - value)
        assert error < 4 * (high - low) / 2 / np.sqrt(found.size)


def test_noise_takes_the_ends_no_further_than_they_are():
    """The order is noise, clip, round."""
    x = np.concatenate([np.full(1000, -3.0, F), np.full(1000, 3.0, F)])
    for name in ("sbm stochastic", "dorefa gradient"):
        found, _ = round_with(RECIPES[name], x, 2)
        np.testing.assert_array_equal(found, x)


def test_a_slice_has_the_extremes_of_its_own():
    x = np.stack([np.array([0.0, 0.5, 1.0], F), np.array([-90.0, -1.0, 9.0], F)])
    for name, reference in (("sbm slice", np_sbm), ("swalp slice", np_swalp)):
        found, scale = round_with(RECIPES[name], x, 3, (0,))
        assert scale.shape == (2, 1)
        np.testing.assert_array_equal(found, of_slices(reference, 0)(x, 3))
    found, _ = round_with(
        RECIPES["dorefa gradient"], x * 0 + x.max(1)[:, None], 3, (0,)
    )
    assert set(np.abs(found[1]).tolist()) <= {F(9), F(9 * 5 / 7)}


HUGE, SMALL = np.finfo(F).max, np.finfo(F).smallest_subnormal


@each_recipe
def test_no_tensor_gives_nan_and_zeros_stay(recipe):
    tensors = (
        [0.0, 0.0, 0.0], [HUGE, -HUGE, 0.0], [HUGE, HUGE, HUGE], [1e-45, SMALL, 0.0],
        [3.0, 3.0, 3.0], [-1e-38, -1e-38, -2e-38],
    )  # fmt: skip
    for x, bits in itertools.product(tensors, (1, 2, 8, 16)):
        found, scale = round_with(recipe, np.array(x, F), bits)
        assert not np.isnan(found).any(), x  # the last step may reach infinity
        assert np.isfinite(scale).all(), x
        assert np.any(x) or not found.any()
    for bad in (np.inf, -np.inf, np.nan):
        x = np.ones(20_000, F)
        x[9_999] = bad
        assert not np.isfinite(round_with(recipe, x, 4)[0]).all()


@pytest.mark.parametrize("name", ["sbm", "dorefa weight", "wage gradient"])
def test_a_unit_reaches_the_largest_level_and_no_less_than_half_of_it(name):
    x = np.asarray(normal(0, 50)) * 3
    for bits in (2, 4, 8):
        found, scale = round_with(RECIPES[name], x, bits)
        reach = scale * (2 ** (bits - 1) - 1)
        assert np.frexp(scale)[0] == 0.5  # a power of two
        assert np.abs(found).max() <= reach < 2 * np.abs(found).max() * 1.5
        np.testing.assert_array_equal(found / scale * scale, found)


@each_recipe
def test_a_format_without_a_scale_is_rounded_as_it_is(recipe):
    x, use = normal(0, 40), {}
    if recipe.per_product:
        use = {"use": Use("forward", (0,))}
    for name in ("float32", "bfloat16", "float16"):
        fmt = formats.get(name)
        found, scale = recipe.round(x, fmt, (), axes=(0,), key=KEY, **use)
        assert scale == 1
        if recipe not in (RECIPES[n] for n in ("sbm stochastic", "swalp", "muppet")):
            np.testing.assert_array_equal(found, quantize(x, fmt))


def test_devices_share_the_extremes_of_a_tensor():
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    x = jnp.asarray(np.array([1.0, 2, 30, 4, -50, 6, 7, 8], F))
    fmt = formats.integer(4)
    for name in ("sbm", "dorefa weight", "wage gradient", "muppet nearest"):
        recipe = RECIPES[name]

        def restored(x, recipe=recipe, names=("data",)):
            values, scale = recipe.round(
                x, fmt, (), axes=(0,), key=None, axis_names=names
            )
            return values * scale

        spec = jax.P("data")
        split = jax.shard_map(restored, mesh=mesh, in_specs=spec, out_specs=spec)
        np.testing.assert_array_equal(jax.jit(split)(x), restored(x, names=()))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: sbm("row"), "per must be one of tensor, slice, got 'row'"),
        (lambda: swalp("row"), "per must be one of tensor, slice, got 'row'"),
        (lambda: sbm(rounding="up"), "rounding must be nearest_even or stochastic"),
        (lambda: dorefa("bias"), "role must be one of activation, weight, gradient"),
        (lambda: wage("bias"), "role must be one of activation, weight, gradient"),
    ],
)
def test_an_unknown_choice_is_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()


def test_stochastic_levels_need_a_key():
    for recipe in (sbm(rounding="stochastic"), dorefa("gradient")):
        use = {"use": Use("forward", (0,))} if recipe.per_product else {}
        with pytest.raises(ValueError, match="needs a key"):
            recipe.round(
                jnp.ones(3), formats.integer(4), (), axes=(0,), key=None, **use
            )


def test_a_config_names_them_and_the_role_chooses():
    settings = config.Scaling(
        activation=config.SBMScaling(),
        weight=config.SBMScaling(per="slice"),
        gradient=config.SBMScaling(rounding="stochastic"),
    )
    three = sbm(), sbm("slice"), sbm(rounding="stochastic")
    assert_alike(make_recipes(settings), three)
    for kind, make in ((config.DoReFaScaling, dorefa), (config.WAGEScaling, wage)):
        made = make_recipes(config.Scaling(**dict.fromkeys(Recipes._fields, kind())))
        assert_alike(made, map(make, Recipes._fields))
    settings = config.Scaling(
        weight=config.MuPPETScaling(rounding="nearest_even"),
        gradient=config.SWALPScaling(per="slice"),
    )
    expected = RECIPES["muppet nearest"], swalp("slice")
    assert_alike(make_recipes(settings)[1:], expected)


def assert_alike(found, expected):
    x = np.asarray(normal(3, 4, 6))
    for one, other in zip(found, expected, strict=True):
        assert one.per_product == other.per_product
        for a, b in zip(
            round_with(one, x, 4, (1,)), round_with(other, x, 4, (1,)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
