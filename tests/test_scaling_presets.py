"""Recipes of publications: their blocks, and training under them."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.contractions import Options
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.runs import build, load
from adaprec_jax.scaling import (
    Use,
    deepseek_recipes,
    mxfp8_recipes,
    nvfp4_recipes,
)
from adaprec_jax.schedules import constant
from adaprec_jax.train import make_train_step
from tests import small_run
from tests.scaling_reference import (
    DENSE,
    EXACT,
    assert_products,
    by_part,
    found,
    products,
)
from tests.walk_models import normal

E4M3, E2M1 = formats.get("float8_e4m3fn"), formats.get("float4_e2m1fn")


@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_products_of_deepseek(power_of_two):
    """Tiles of 1 x 128, for weights 128 x 128, each by its amax / 448."""

    def round_part(part):
        scale = np.abs(part).max() / np.float64(448)
        scale = np.float32(2 ** np.ceil(np.log2(scale)) if power_of_two else scale)
        low = np.clip(part * (np.float32(448) / np.abs(part).max()), -448, 448)
        low = part / scale if power_of_two else low
        return low.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    def low(product, role, x, summed):
        side = 128 if role == "weight" else 1
        return by_part(round_part, x, summed, side, 128)

    a, w, g = (
        normal(i, *shape) * jnp.exp(normal(9 + i, *shape))
        for i, shape in enumerate([(150, 200), (200, 140), (150, 140)])
    )
    product = lambda a, w: jnp.dot(a, w, precision=EXACT)
    entry = SharedPrecision(E4M3, E4M3, E4M3)
    recipes = deepseek_recipes(power_of_two=power_of_two)
    out, _ = found(lambda w, a: product(a, w), a, w, g, recipes, entry)
    expected = products(product, a, w, g, DENSE, low)
    if power_of_two:
        assert_products(out, expected)
    for one, other in zip(out, expected, strict=True):  # a tie may go the other way
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert error < 1e-3


PRESETS = {
    "mxfp8": (mxfp8_recipes(), E4M3),
    "deepseek": (deepseek_recipes(), E4M3),
    "nvfp4": (nvfp4_recipes(), E2M1),
}


@functools.cache
def losses(name: str) -> np.ndarray:
    """The losses of a short run; that of the formats of the widest name is plain."""
    recipes, fmt = PRESETS.get(name, (mxfp8_recipes(), formats.get("float32")))
    program = small_run.PROGRAM._replace(
        schedule=constant(SharedPrecision(fmt, fmt, fmt)), options=Options(recipes)
    )
    step = jax.jit(make_train_step(program))
    state, seen = small_run.first_state(program), []
    batches = small_run.batches(40)
    for i in range(40):
        state, metrics = step(state, small_run.one(batches, i))
        seen.append(float(metrics.scalars["loss"]))
    return np.array(seen)


@pytest.mark.parametrize("name", PRESETS)
def test_a_short_run_learns_as_in_float32(name):
    plain, low = losses("float32"), losses(name)
    learnt = plain[:5].mean() - plain[-5:].mean()
    assert learnt > 0.3
    assert low[:5].mean() - low[-5:].mean() > 0.7 * learnt
    assert not np.array_equal(plain, low)


@pytest.mark.parametrize("arm", PRESETS)
@pytest.mark.parametrize("product", ["forward", "wgrad"])
def test_the_bundled_arms_are_the_presets(arm, product):
    expected, fmt = PRESETS[arm]
    experiment = load.load(f"shakespeare-{arm}")
    x = normal(0, 150, 40) * jnp.exp(normal(1, 150, 40))
    for one, other in zip(
        build.make_recipes(experiment.scaling), expected, strict=True
    ):
        rounded = [
            jax.jit(functools.partial(
                recipe.round, fmt=fmt, state=(), axes=(0, 1), key=jax.random.key(0),
                use=Use(product, (0,)),
            ))(x)
            for recipe in (one, other)
        ]  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, *rounded)
