"""Scaling recipes: the scale they choose, and that they never hide a defect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import fp8_ops

from adaprec_jax import formats
from adaprec_jax.quantizers import quantize
from adaprec_jax.scaling import Recipe, current, delayed, largest_magnitude, none

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

SCALED = ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int8", "int2", "uint4"]
UNSCALED = ["float32", "tf32", "bfloat16", "float16"]
FLOAT32 = np.finfo(np.float32)
E4M3 = formats.get("float8_e4m3fn")

RECIPES = {
    "none": none(),
    "current": current(),
    "current, any scale": current(power_of_two=False),
    "delayed": delayed(history=3),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
each_scaled = pytest.mark.parametrize("name", SCALED)
each_unscaled = pytest.mark.parametrize("name", UNSCALED)


@functools.partial(jax.jit, static_argnames=("recipe", "axes"))
def round_with(recipe: Recipe, x, fmt, axes=None, key=None):
    """Rounds a tensor with a state that has seen it before."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    amax = jnp.max(jnp.abs(x.astype(jnp.float32)), axes)
    state = recipe.update(recipe.init(shape), amax)
    return recipe.round(x, fmt, state, axes=axes, key=key)


@each_scaled
def test_a_power_of_two_scale_fills_the_upper_half_of_the_range(name):
    fmt = formats.get(name)
    rng = np.random.default_rng(0)
    for size in 10.0 ** rng.uniform(-30, 30, 50):
        x = jnp.asarray(rng.uniform(-1, 1, 64) * size, jnp.float32)
        rounded, scale = round_with(RECIPES["current"], x, fmt)
        assert np.frexp(scale.item())[0] == 0.5  # a power of two
        largest = np.abs(np.asarray(x)).max() / scale.item()
        assert fmt.max_value / 2 < largest <= fmt.max_value
        np.testing.assert_array_equal(rounded, quantize(x / scale, fmt))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8"])
def test_a_power_of_two_scale_is_the_smallest_that_does_not_saturate(name):
    fmt = formats.get(name)
    for exponent in (-20, 0, 7):
        fits = fmt.max_value * np.float32(2.0**exponent)
        above = np.nextafter(fits, np.float32(np.inf))
        for amax, expected in ((fits, 2.0**exponent), (above, 2.0 ** (exponent + 1))):
            _, scale = round_with(RECIPES["current"], jnp.array([amax, 0.0]), fmt)
            assert scale == expected


@each_scaled
def test_the_exact_scale_maps_the_largest_magnitude_to_the_largest_value(name):
    fmt, x = formats.get(name), jnp.array([[0.1, 3.7], [-0.9, 0.0]])
    for recipe in (RECIPES["current, any scale"], RECIPES["delayed"]):
        rounded, scale = round_with(recipe, x, fmt)
        np.testing.assert_allclose(scale, 3.7 / fmt.max_value, rtol=1e-6)
        assert rounded.max() == fmt.max_value


@each_recipe
@each_unscaled
def test_an_unscaled_format_is_rounded_as_it_is(recipe, name):
    patterns = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    x = jnp.asarray(patterns.view(np.float32))  # with subnormals, infinities and NaN
    fmt = formats.get(name)
    rounded, scale = round_with(recipe, x, fmt)
    expected = quantize(x, fmt, overflow="format")
    np.testing.assert_array_equal(rounded.view(jnp.int32), expected.view(jnp.int32))
    assert scale == 1


@each_recipe
def test_whether_a_recipe_acts_is_traced_and_mapped(recipe):
    names = [*SCALED, *UNSCALED]
    fmts = jax.tree.map(lambda *f: np.stack(f), *(formats.get(n) for n in names))
    x = jax.random.normal(jax.random.key(0), (5, 6)) * 100
    mapped = jax.jit(jax.vmap(lambda fmt: round_with(recipe, x, fmt)))(fmts)
    one = jax.jit(lambda fmt: round_with(recipe, x, fmt))
    for i, name in enumerate(names):
        for a, b in zip(one(formats.get(name)), mapped, strict=True):
            np.testing.assert_array_equal(a, b[i])
    assert one._cache_size() == 1


@each_scaled
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-37, 1e37, float(FLOAT32.max)])
def test_a_zero_tiny_or_huge_tensor_never_gives_nan(name, size):
    x = jnp.array([size, -size / 2, 0.0], jnp.float32)
    for recipe in RECIPES.values():
        if recipe is not RECIPES["none"]:
            rounded, scale = round_with(recipe, x, formats.get(name))
            assert np.isfinite(rounded).all()
            assert np.isfinite(scale).all()
            assert (scale > 0).all()


@each_scaled
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_no_clip_hides_what_is_not_finite(name, bad):
    x = jnp.array([0.5, bad, 1.0], jnp.float32)
    for recipe in RECIPES.values():
        if recipe is not RECIPES["none"]:
            rounded, scale = round_with(recipe, x, formats.get(name))
            assert not np.isfinite(rounded * scale).all()


@pytest.mark.parametrize("place", [0, 9_999, 19_999])
def test_rounding_keeps_a_nan_of_a_large_tensor(place):
    """The largest magnitude of so many elements may not tell of it on a CPU."""
    x = jnp.ones(20_000).at[place].set(jnp.nan)
    for recipe in RECIPES.values():
        rounded, _ = round_with(recipe, x, E4M3)
        assert np.isnan(rounded[place])


def test_an_infinity_of_a_large_tensor_is_its_largest_magnitude():
    for place in (0, 9_999, 19_999):
        x = jnp.ones(20_000).at[place].set(-jnp.inf)
        assert largest_magnitude(x, (0,)) == np.inf


def test_without_scaling_the_dtype_itself_overflows():
    x = jnp.array([448.0, 1000.0])
    rounded, scale = round_with(none(), x, E4M3)
    np.testing.assert_array_equal(rounded, [448, np.nan])
    assert scale == 1


@each_recipe
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2)])
def test_one_scale_is_shared_over_the_axes(recipe, axes):
    x = jax.random.normal(jax.random.key(1), (3, 4, 5)) * jnp.exp(
        jax.random.normal(jax.random.key(2), (3, 4, 5))
    )
    rounded, scale = round_with(recipe, x, E4M3, axes)
    kept = [axis for axis in range(3) if axis not in axes]
    assert scale.shape == tuple(1 if a in axes else x.shape[a] for a in range(3))
    for index in np.ndindex(*(x.shape[axis] for axis in kept)):
        part = tuple(
            index[kept.index(a)] if a in kept else slice(None) for a in range(3)
        )
        of_part, scale_of_part = round_with(recipe, x[part], E4M3)
        np.testing.assert_array_equal(of_part, rounded[part])
        np.testing.assert_array_equal(scale_of_part.ravel(), scale[part].ravel())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_tensors_are_rounded_in_float32(dtype):
    x = (jax.random.normal(jax.random.key(0), (64,)) * 30).astype(dtype)
    for recipe in RECIPES.values():
        for name in ("int16", "float8_e5m2"):
            narrow = round_with(recipe, x, formats.get(name))
            wide = round_with(recipe, x.astype(jnp.float32), formats.get(name))
            for a, b in zip(narrow, wide, strict=True):
                assert a.dtype == jnp.float32
                np.testing.assert_array_equal(a, b)


def test_devices_share_one_scale_and_one_nan():
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    spec = jax.P("data")

    def round_part(x):
        rounded, scale = current().round(
            x, E4M3, (), axes=(0,), key=None, axis_names=("data",)
        )
        return rounded, scale

    split = jax.jit(
        jax.shard_map(round_part, mesh=mesh, in_specs=spec, out_specs=(spec, jax.P()))
    )
    x = jnp.array([1.0, 2.0, 30.0, 4.0, 500.0, 6.0, 7.0, 8.0])
    for a, b in zip(split(x), round_with(RECIPES["current"], x, E4M3), strict=True):
        np.testing.assert_array_equal(a, b)
    for place in range(8):
        assert not np.isfinite(split(x.at[place].set(jnp.nan))[1]).any()


def test_delayed_scaling_follows_transformer_engines_golden_sequence():
    recipe, rounded = delayed(history=4), []
    state, multipliers = recipe.init(()), []
    for amax in (2.0, 4.0, 1.0, 0.5, 0.5, 0.5, 0.5):
        x = jnp.array([amax, 0.0])
        values, scale = recipe.round(x, E4M3, state, axes=(0,), key=None)
        state = recipe.update(state, largest_magnitude(x, (0,))[0])
        multipliers.append(1 / scale.item())
        rounded.append(values[0].item())
    # The 4 is in force until it leaves the history of four.
    expected = [1, 224, 112, 112, 112, 112, 448]
    np.testing.assert_allclose(multipliers, expected, rtol=1e-6)
    assert rounded[1] == 448  # 4 * 224 = 896 saturates


@pytest.mark.parametrize("history", [1, 3, 16])
def test_flax_uses_the_same_delayed_scales(history):
    """It finds a scale at the beginning of a step, from the amax of those before."""
    rng = np.random.default_rng(0)
    recipe = delayed(history=history)
    state = recipe.init(())
    scale, past = jnp.ones(1), jnp.zeros(history)
    for step in range(12):
        x = rng.normal(size=20) * 10.0 ** rng.uniform(-4, 4) * (step not in (0, 6, 7))
        x = jnp.asarray(x, jnp.float32)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            expected, scale, past = fp8_ops.quantize_dequantize_update(
                x, jnp.float8_e4m3fn, scale, past, jnp.float32
            )
        values, ours = recipe.round(x, E4M3, state, axes=(0,), key=None)
        np.testing.assert_allclose(ours, scale, rtol=1e-6)
        np.testing.assert_allclose(values * ours, expected, rtol=1e-6)
        state = recipe.update(state, largest_magnitude(x, (0,))[0])


def test_the_most_recent_magnitude_alone_may_set_the_delayed_scale():
    recipe = delayed(history=4, amax="most_recent")
    state, multipliers = recipe.init(()), []
    for amax in (2.0, 4.0, 1.0, 0.0, 0.5, np.inf, 1.0):
        x = jnp.array([1.0, 0.0])
        _, scale = recipe.round(x, E4M3, state, axes=(0,), key=None)
        state = recipe.update(state, jnp.float32(amax))
        multipliers.append(1 / scale.item())
    # Zeros and what is not finite leave it.
    expected = [1, 224, 112, 448, 448, 896, 896]
    np.testing.assert_allclose(multipliers, expected, rtol=1e-6)


def test_delayed_scaling_leaves_the_margin_free():
    recipe = delayed(history=2, margin=3)
    rounded, scale = round_with(recipe, jnp.array([7.0, 1.0]), E4M3)
    assert rounded[0] == 448 / 8
    np.testing.assert_allclose(scale, [7 * 8 / 448])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_amax_leaves_the_state_as_it_was(bad):
    recipe = delayed(history=3)
    state = recipe.update(recipe.init(()), jnp.float32(2.0))
    after = recipe.update(state, jnp.float32(bad))
    jax.tree.map(np.testing.assert_array_equal, after, state)
    moved = recipe.update(after, jnp.float32(8.0))
    assert moved.amax == 8


def test_zeros_alone_keep_the_scale_that_was_in_force():
    recipe = delayed(history=2)
    state = recipe.init(())
    for amax, in_force in ((0.0, 0.0), (3.0, 3.0), (0.0, 3.0), (0.0, 3.0), (1.0, 1.0)):
        state = recipe.update(state, jnp.float32(amax))
        assert state.amax == in_force


@pytest.mark.parametrize("margin", [-64, -3, 3, 64])
@pytest.mark.parametrize("amax", [1e-45, 2.0**-126, 1.0, 3e38])
def test_no_margin_takes_the_scale_out_of_its_range(margin, amax):
    recipe = delayed(history=2, margin=margin)
    x = jnp.array([amax, -amax / 2, 0.0])
    for name in ("float8_e4m3fn", "int8", "int24"):
        fmt = formats.integer(24) if name == "int24" else formats.get(name)
        rounded, scale = round_with(recipe, x, fmt)
        assert 2.0**-126 <= scale.item() <= 2.0**126
        assert np.isfinite(rounded).all()
        exact = amax * 2.0**margin / float(fmt.max_value)
        if 2.0**-126 < exact < 2.0**126 and amax >= 2.0**-126:
            np.testing.assert_allclose(scale.item(), exact, rtol=1e-6)


def test_delayed_scaling_survives_a_change_of_format():
    recipe, x = delayed(history=2), jnp.array([3.0, -1.0])
    state = recipe.update(recipe.init(()), jnp.float32(3.0))
    for name in SCALED:
        fmt = formats.get(name)
        rounded, _ = recipe.round(x, fmt, state, axes=(0,), key=None)
        assert rounded[0] == fmt.max_value


def test_the_state_of_a_stack_is_that_of_its_layers():
    recipe = delayed(history=3)
    amax = jnp.array([[1.0, 2.0], [jnp.nan, 5.0], [0.0, 1.0], [4.0, 0.0]])
    _, stack = jax.lax.scan(
        lambda state, a: (recipe.update(state, a),) * 2, recipe.init((2,)), amax
    )
    for layer in range(2):
        state = recipe.init(())
        for step in range(4):
            state = recipe.update(state, amax[step, layer])
            jax.tree.map(
                np.testing.assert_array_equal,
                state,
                jax.tree.map(lambda leaf, t=step, i=layer: leaf[t, i], stack),
            )


def test_stochastic_recipes_take_the_key():
    x = jnp.full(1000, 0.3).at[0].set(127.0)
    fmt = formats.get("int8")
    for make in (none, current, delayed):
        recipe = make(rounding="stochastic")
        rounded, _ = round_with(recipe, x, fmt, key=jax.random.key(0))
        assert 0.2 < rounded[1:].mean() < 0.4
        with pytest.raises(ValueError, match="needs a key"):
            round_with(recipe, x, fmt)


@pytest.mark.parametrize("margin", [-2000, -65, 65, 2000])
def test_a_margin_out_of_its_range_is_refused(margin):
    with pytest.raises(ValueError, match=f"margin must lie in -64 to 64, got {margin}"):
        delayed(margin=margin)


def test_an_unknown_choice_of_magnitude_is_refused():
    with pytest.raises(ValueError, match="amax must be 'max' or 'most_recent', got"):
        delayed(amax="least")


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="history must be at least 1, got 0"):
        delayed(history=0)
