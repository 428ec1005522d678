"""Products of blocks with scales of their own: dtypes, layouts, and the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaprec_jax import formats, targets
from adaprec_jax.contractions import (
    Options,
    contraction_table,
    value_and_grad,
    with_precision,
)
from adaprec_jax.contractions.kernels import Kernel, Kernels, Scales
from adaprec_jax.native import choose, kernels_of
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import (
    Recipes,
    Use,
    blockwise,
    current,
    mx,
    mxfp8_recipes,
    nvfp4,
    nvfp4_recipes,
    per_channel,
)
from adaprec_jax.train import record
from tests.small_run import PROGRAM, TABLE, assert_equal
from tests.walk_models import normal

B200, H100 = targets.get("b200"), targets.get("h100")
E4M3, E2M1 = formats.get("float8_e4m3fn"), formats.get("float4_e2m1fn")
BF16 = formats.get("bfloat16")
MX = Kernel("float8_e4m3fn", "float8_e4m3fn", Scales(32, "float8_e8m0fnu"))
NV = Kernel("float4_e2m1fn", "float4_e2m1fn", Scales(16, "float8_e4m3fn"))


def loss(params, x):
    """A product that sums two axes, one with a batch, and sums that fill no block."""
    heads = jnp.einsum("btd,dhk->bhtk", x, params["in"])
    scores = jnp.einsum("bhtk,bhsk->bhts", heads, jnp.tanh(heads))
    out = jnp.einsum("bhts,bhsk->bthk", scores, heads)
    return jnp.mean(jnp.einsum("bthk,hkd->btd", out, params["out"]) ** 2), None


PARAMS = {"in": normal(0, 40, 3, 12), "out": normal(1, 3, 12, 21)}
X = normal(2, 2, 19, 40)
PRODUCTS = contraction_table(loss, PARAMS, X)


def documented(a, b, a_scales, b_scales, dtype):
    """`jax.nn.scaled_matmul`, by the formula of its documentation."""
    wide = [
        jnp.asarray(x, jnp.float32)
        * jnp.repeat(s.astype(jnp.float32), x.shape[-1] // s.shape[-1], axis=-1)
        for x, s in ((a, a_scales), (b, b_scales))
    ]
    return jnp.einsum("bmk,bnk->bmn", *wide, precision="highest").astype(dtype)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is given to the kernel of a GPU is computed as its documentation says."""
    monkeypatch.setattr(jax.nn, "scaled_matmul", documented)
    monkeypatch.setattr(
        lax, "platform_dependent",
        lambda *xs, default, cuda=None, **others: (cuda or default)(*xs),
    )  # fmt: skip


def both(recipes: Recipes, fmt: formats.Format):
    """Returns loss and gradients, emulated and native."""
    program = PROGRAM._replace(table=PRODUCTS, options=Options(recipes))
    plan = uniform(PRODUCTS, SharedPrecision(fmt, fmt, fmt))
    choices = choose(program, record.pack_plan(plan, PRODUCTS), B200)
    kernels = [kernel for choice in choices.values() for kernel in choice.kernels]
    assert not any(kernel.emulated for kernel in kernels), choices
    return (
        jax.jit(value_and_grad(loss, options))(
            PARAMS, X, plan=plan, key=jax.random.key(0)
        )[:2]
        for options in (
            Options(recipes), Options(recipes, kernels=kernels_of(choices)),
        )
    )  # fmt: skip


def assert_near(found, expected, tolerance: float):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def test_powers_of_two_give_the_emulated_gradients_to_the_bit():
    emulated, native = both(mxfp8_recipes(), E4M3)
    assert_equal(native, emulated)


def test_scales_of_two_levels_give_the_emulated_gradients_but_for_float32_roundings():
    # Without rounding of the gradients, which would turn a last bit into a step.
    recipe = Recipes(*[nvfp4()] * 3)
    emulated, native = both(recipe, E2M1)
    # Later products round what the first one gives: a tie may go another way there.
    assert_near(native[0], emulated[0], 1e-2)


@pytest.mark.parametrize(
    ("recipes", "fmt"), [(mxfp8_recipes(), E4M3), (nvfp4_recipes(), E2M1)]
)
def test_the_kernel_is_given_each_block_with_its_scale(recipes, fmt, as_on_a_gpu):
    w = {"w": normal(0, 3, 40, 5)}
    x = normal(1, 7, 3, 40)
    fn = lambda p, x: jnp.einsum("nck,ckm->nm", x, p["w"])
    square = lambda p, x: (jnp.sum(fn(p, x) ** 2), None)
    plan = {"w": SharedPrecision(fmt, fmt, fmt)}
    kernel = MX if fmt is E4M3 else NV
    options = [Options(recipes),
               Options(recipes, kernels={"w": Kernels(*[kernel] * 3)})]  # fmt: skip
    emulated, native = (
        jax.jit(value_and_grad(lambda p, x: square(p, x), each))(
            {"w": w["w"]}, x, plan=plan, key=jax.random.key(3)
        )[:2]
        for each in options
    )
    assert_near(native, emulated, 1e-5)


@pytest.mark.parametrize(
    ("recipe", "fmt", "kernel", "roundings"),
    [(mx(), E4M3, MX, 0), (nvfp4(), E2M1, NV, 4)],
)
@pytest.mark.parametrize("k", [5, 32, 72])
def test_a_product_is_the_sum_of_the_recipes_numbers(recipe, fmt, kernel, roundings, k):
    x, w = normal(0, 6, k), normal(1, k, 7)
    plan = {"w": SharedPrecision(fmt, fmt, fmt)}
    options = Options(Recipes(*[recipe] * 3), kernels={"w": Kernels(*[kernel] * 3)})
    out = with_precision(lambda p, x: x @ p["w"], options)(plan, {"w": w}, x)

    def numbers(x, axis):
        use = Use("forward", (axis,))
        found = recipe.round(x, fmt, (), axes=(0, 1), key=None, use=use)
        rounded, scale = (np.asarray(part, np.float64) for part in found)
        return rounded * scale

    a, b = numbers(x, 1), numbers(w, 0)
    bound = 2 * (k + roundings) * 2.0**-24 * (np.abs(a) @ np.abs(b))
    assert np.all(np.abs(np.asarray(out, np.float64) - a @ b) <= bound)


@pytest.mark.parametrize(
    ("fmt", "kernel", "recipe"), [(E4M3, MX, mx()), (E2M1, NV, nvfp4())]
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_no_number_is_not_lost(fmt, kernel, recipe, bad):
    plan = {"w": SharedPrecision(fmt, fmt, fmt)}
    options = Options(Recipes(*[recipe] * 3), kernels={"w": Kernels(*[kernel] * 3)})
    fn = with_precision(lambda p, x: x @ p["w"], options)
    x = jnp.ones((2, 40)).at[0, 3].set(bad)
    assert not np.isfinite(fn(plan, {"w": jnp.ones((40, 2))}, x)[0]).any()
    zero = fn(plan, {"w": jnp.zeros((40, 2))}, jnp.zeros((2, 40)))
    assert not np.any(np.asarray(zero))


def of_last(recipes: Recipes, entry: SharedPrecision, target=B200):
    program = PROGRAM._replace(options=Options(recipes))
    packed = record.pack_plan(uniform(TABLE, entry), TABLE)
    return choose(program, packed, target)["last"]


def test_blocks_run_where_the_device_has_them_and_else_say_why():
    four, eight = SharedPrecision(*[E2M1] * 3), SharedPrecision(*[E4M3] * 3)
    assert of_last(mxfp8_recipes(), eight).kernels == Kernels(MX, MX, MX)
    assert of_last(nvfp4_recipes(), four).kernels == Kernels(NV, NV, NV)
    # Blocks of a multiple of the size, whose scales are powers of two as well.
    large = Recipes(*[blockwise(128)] * 3)
    assert of_last(large, eight).kernels == Kernels(MX, MX, MX)
    # MXFP4 in the dtype that holds it; layers that are left in bfloat16.
    assert of_last(mxfp8_recipes(), four).kernels == Kernels(MX, MX, MX)
    wide = SharedPrecision(BF16, BF16, BF16)
    assert of_last(nvfp4_recipes(), wide).kernels.wgrad.dtypes == ("bfloat16",) * 2

    def reasons(recipes, entry, target=B200):
        choice = of_last(recipes, entry, target)
        assert all(
            each.emulated == bool(why)
            for each, why in zip(choice.kernels, choice.reasons, strict=True)
        )
        return choice.reasons

    no_blocks = "NVIDIA H100 SXM has no native dot_general of blocks with scales"
    assert no_blocks.split(" has ")[1] in reasons(mxfp8_recipes(), eight, H100)[0]
    assert reasons(Recipes(nvfp4(hadamard=True), nvfp4(), nvfp4()), four) == (
        "", "", "its operands are rotated differently",
    )  # fmt: skip
    assert reasons(Recipes(mx(), current(), mx()), eight) == (
        "only the activation has blocks with scales",
        "only the gradient has blocks with scales", "",
    )  # fmt: skip
    assert reasons(Recipes(mx(8), mx(8), mx()), eight)[0] == (
        "NVIDIA B200 multiplies no dtypes that hold float8_e4m3fn in blocks of 8 with "
        "float8_e8m0fnu scales"
    )
    mixed = reasons(Recipes(mx(), nvfp4(), mx()), eight)[0]
    assert mixed.endswith("multiplies no blocks with different kinds of scales")
    rows = Recipes(*[per_channel()] * 3)
    assert reasons(rows, eight)[1] == "the scale differs within the gradient"
