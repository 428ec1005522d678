"""Scales per channel and per block, in every product along its own summed axes."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from adaprec_jax import formats
from adaprec_jax.contractions import Options, Watch, contraction_table, value_and_grad
from adaprec_jax.contractions.jax_internals import conv_general_dilated_p, trace
from adaprec_jax.contractions.statistics import ROLES
from adaprec_jax.contractions.summed import summed_axes
from adaprec_jax.precision import (
    Dgrad,
    Forward,
    Precision,
    SharedPrecision,
    Wgrad,
)
from adaprec_jax.scaling import Recipe, Recipes, Use, blockwise, current, per_channel
from adaprec_jax.scaling.blocks import WITHIN, Blocks
from adaprec_jax.testing import check_recipe
from tests.scaling_reference import (
    CONV,
    DENSE,
    EXACT,
    as_matrix,
    assert_products,
    by_part,
    found,
    products,
)
from tests.walk_models import normal
from tests.walk_stats import cast_scaled

DTYPES = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e3m4": ml_dtypes.float8_e3m4,
    "float4_e2m1fn": ml_dtypes.float4_e2m1fn,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
}
# The recipe, and rows and columns of a part with one scale of the matrix whose rows
# are what is summed.
RECIPES = {
    "per channel": (per_channel(), 1, None),
    "blocks of 3": (blockwise(3), 1, 3),
    "squares of 3": (blockwise(3, square=True), 3, 3),
    "blocks of 1": (blockwise(1), 1, 1),
    "blocks of 128": (blockwise(128, square=True), 128, 128),
}
SIX = ("float8_e4m3fn", "float4_e2m1fn", "float8_e5m2", "float8_e3m4",
       "bfloat16", "float8_e5m2")  # fmt: skip
ORDER = list(DENSE)


def entry_of(names):
    six = [formats.get(name) for name in names]
    return Precision(Forward(*six[:2]), Dgrad(*six[2:4]), Wgrad(*six[4:]))


def spread(seed, *shape):
    """Numbers of many magnitudes, so that every block needs a scale of its own."""
    x, sizes = normal(seed, *shape), 3 * normal(seed + 50, *shape)
    return x * jnp.exp2(jnp.round(sizes))


def rounding(names, rows, columns):
    """Returns what rounds an operand of a product, by NumPy and ml_dtypes."""

    def rounded(product, role, x, summed):
        dtype = DTYPES[names[ORDER.index((product, role))]]
        return by_part(lambda part: cast_scaled(part, dtype), x, summed, rows, columns)

    return rounded


def flax_layer(module):
    return lambda w, x: module.apply({"params": {"kernel": w}}, x)


def convolution(a, w, stride=1, dilation=1, groups=1):
    return lax.conv_general_dilated(
        a, w, (stride,) * 2, "SAME", rhs_dilation=(dilation,) * 2,
        feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=EXACT,
    )  # fmt: skip


RAGGED = jnp.array([2, 0, 4])
# Layer, product of activation and weight, their shapes, and what is summed.
LAYERS = {
    "dense": (
        flax_layer(nn.Dense(6, use_bias=False)),
        lambda a, w: jnp.dot(a, w, precision=EXACT), (5, 7), (7, 6), DENSE,
    ),
    "dense of two axes": (
        flax_layer(nn.Dense(6, use_bias=False)),
        lambda a, w: jnp.einsum("btd,df->btf", a, w, precision=EXACT),
        (2, 5, 7), (7, 6),
        {
            ("forward", "activation"): (2,), ("forward", "weight"): (0,),
            ("dgrad", "gradient"): (2,), ("dgrad", "weight"): (1,),
            ("wgrad", "gradient"): (0, 1), ("wgrad", "activation"): (0, 1),
        },
    ),
    "dense general": (
        flax_layer(nn.DenseGeneral((2, 3), axis=(-2, -1), use_bias=False)),
        lambda a, w: jnp.einsum("bde,dehk->bhk", a, w, precision=EXACT),
        (5, 4, 2), (4, 2, 2, 3),
        {
            ("forward", "activation"): (1, 2), ("forward", "weight"): (0, 1),
            ("dgrad", "gradient"): (1, 2), ("dgrad", "weight"): (2, 3),
            ("wgrad", "gradient"): (0,), ("wgrad", "activation"): (0,),
        },
    ),
    "conv": (
        flax_layer(nn.Conv(6, (3, 2), 2, use_bias=False)),
        functools.partial(convolution, stride=2), (2, 6, 5, 4), (3, 2, 4, 6), CONV,
    ),
    "conv of groups": (
        flax_layer(nn.Conv(6, (2, 2), feature_group_count=2, kernel_dilation=2,
                           use_bias=False)),
        functools.partial(convolution, dilation=2, groups=2),
        (2, 5, 5, 8), (2, 2, 4, 6), CONV,
    ),
    "conv transpose": (
        flax_layer(nn.ConvTranspose(6, (3, 3), (2, 2), use_bias=False)),
        lambda a, w: lax.conv_transpose(a, w, (2, 2), "SAME", precision=EXACT),
        (2, 3, 4, 4), (3, 3, 4, 6), CONV,
    ),
    "weight left": (
        lambda w, x: lax.dot_general(w, x, (((1,), (2,)), ((), ()))),
        lambda a, w: jnp.einsum("fd,btd->fbt", w, a, precision=EXACT),
        (2, 4, 7), (6, 7),
        {
            ("forward", "activation"): (2,), ("forward", "weight"): (1,),
            ("dgrad", "gradient"): (0,), ("dgrad", "weight"): (0,),
            ("wgrad", "gradient"): (1, 2), ("wgrad", "activation"): (0, 1),
        },
    ),
    "ragged": (
        lambda w, x: lax.ragged_dot(x, w, RAGGED),
        lambda a, w: lax.ragged_dot(a, w, RAGGED, precision=EXACT),
        (6, 4), (3, 4, 5),
        {
            ("forward", "activation"): (1,), ("forward", "weight"): (1,),
            ("dgrad", "gradient"): (1,), ("dgrad", "weight"): (2,),
            ("wgrad", "gradient"): (0,), ("wgrad", "activation"): (0,),
        },
    ),
}  # fmt: skip
each_layer = pytest.mark.parametrize("name", LAYERS)
each_recipe = pytest.mark.parametrize("kind", RECIPES)


@pytest.mark.slow
def test_the_contract_without_powers_of_two():
    check_recipe(per_channel(power_of_two=False))


@each_layer
def test_each_operand_is_cut_along_its_own_summed_axes(name):
    layer, product, *shapes, summed = LAYERS[name]
    a, w = (spread(i, *shape) for i, shape in enumerate(shapes))
    g = spread(7, *jax.eval_shape(product, a, w).shape)
    kinds = dict(
        zip(ROLES, ("blocks of 3", "squares of 3", "per channel"), strict=True)
    )
    recipes = Recipes(*(RECIPES[kind][0] for kind in kinds.values()))
    out, _ = found(layer, a, w, g, recipes, entry_of(SIX))

    def low(which, role, x, axes):
        return rounding(SIX, *RECIPES[kinds[role]][1:])(which, role, x, axes)

    assert_products(out, products(product, a, w, g, summed, low))


@each_recipe
def test_shared_formats_are_rounded_for_each_product(kind):
    layer, product, *shapes, summed = LAYERS["dense"]
    a, w = (spread(i, *shape) for i, shape in enumerate(shapes))
    g = spread(7, 5, 6)
    recipe, rows, columns = RECIPES[kind]
    names = ("float8_e4m3fn", "float4_e2m1fn", "float8_e5m2")
    entry = SharedPrecision(*map(formats.get, names))
    out, _ = found(layer, a, w, g, Recipes(*[recipe] * 3), entry)
    six = (names[0], names[1], names[2], names[1], names[2], names[0])
    low = rounding(six, rows, columns)
    assert_products(out, products(product, a, w, g, summed, low))


def test_beside_a_recipe_for_the_whole_tensor():
    layer, product, *shapes, summed = LAYERS["conv"]
    a, w = (spread(i, *shape) for i, shape in enumerate(shapes))
    g = spread(7, 2, 3, 3, 6)
    recipes = Recipes(RECIPES["blocks of 3"][0], current(), RECIPES["squares of 3"][0])
    out, _ = found(layer, a, w, g, recipes, entry_of(SIX))
    parts = {"activation": (1, 3), "weight": (None, None), "gradient": (3, 3)}

    def low(which, role, x, axes):
        return rounding(SIX, *parts[role])(which, role, x, axes)

    assert_products(out, products(product, a, w, g, summed, low))


@each_recipe
def test_float32_stays_plain(kind):
    layer, product, *shapes, _ = LAYERS["conv"]
    a, w = (normal(i, *shape) for i, shape in enumerate(shapes))
    g = normal(7, 2, 3, 3, 6)
    entry = entry_of(["float32"] * 6)
    out, _ = found(layer, a, w, g, Recipes(*[RECIPES[kind][0]] * 3), entry)
    y, transpose = jax.vjp(product, a, w)
    np.testing.assert_array_equal(out[0], y)
    assert_products(out, (y, *transpose(g)))


@pytest.mark.parametrize("kind", ["per channel", "blocks of 3"])
def test_both_products_of_attention(kind):
    """Axes of a batch (here heads) are not summed, and have scales of their own."""
    recipe, rows, columns = RECIPES[kind]
    key, query, g = spread(0, 5, 2, 4), spread(1, 6, 2, 4), spread(2, 2, 6, 5)
    entry = entry_of(SIX)

    def loss(p):
        y = jnp.einsum("qhd,khd->hqk", -p["q"], -p["k"])
        return jnp.sum(y * g), y

    p = {"q": query, "k": key}
    (contraction,) = contraction_table(loss, p).contractions
    step = value_and_grad(loss, Options(Recipes(*[recipe] * 3)))
    (_, y), gradients, _ = jax.jit(lambda p: step(p, plan={contraction.name: entry}))(p)
    summed = {
        ("forward", "activation"): (2,), ("forward", "weight"): (2,),
        ("dgrad", "gradient"): (2,), ("dgrad", "weight"): (0,),
        ("wgrad", "gradient"): (1,), ("wgrad", "activation"): (0,),
    }  # fmt: skip
    product = lambda a, w: jnp.einsum("qhd,khd->hqk", a, w, precision=EXACT)
    low = rounding(SIX, rows, columns)
    expected = products(product, query, key, g, summed, low)
    assert_products((y, gradients["q"], gradients["k"]), expected)


@pytest.mark.parametrize("kind", ["per channel", "blocks of 3", "squares of 3"])
def test_members_are_cut_one_by_one_each_in_its_formats(kind):
    """Experts lie along a batch axis that is not the first one of the weight."""
    recipe, rows, columns = RECIPES[kind]
    a, w, g = spread(0, 5, 3, 4), spread(1, 4, 3, 6), spread(2, 3, 5, 6)
    layer = lambda w, a: jnp.einsum("ted,def->etf", a, w)
    each = [SIX, SIX[::-1], ("float32",) * 6]
    entry = jax.tree.map(lambda *leaves: np.stack(leaves), *map(entry_of, each))
    out, _ = found(layer, a, w, g, Recipes(*[recipe] * 3), entry)
    product = lambda a, w: jnp.dot(a, w, precision=EXACT)
    for e, names in enumerate(each):
        low = rounding(names, rows, columns)
        expected = products(product, a[:, e], w[:, e], g[e], DENSE, low)
        assert_products((out[0][e], out[1][:, e], out[2][:, e]), expected)


@pytest.mark.parametrize("kind", ["per channel", "squares of 3"])
def test_layers_of_a_scan(kind):
    recipe, rows, columns = RECIPES[kind]
    a, w, g = spread(0, 5, 4), spread(1, 3, 4, 4), spread(2, 5, 4)
    layer = lambda w, a: lax.scan(lambda a, w: (a @ w, None), a, w)[0]
    each = [SIX, ("bfloat16",) * 6, SIX[::-1]]
    entry = jax.tree.map(lambda *leaves: np.stack(leaves), *map(entry_of, each))
    out, _ = found(layer, a, w, g, Recipes(*[recipe] * 3), entry)
    product = lambda a, w: jnp.dot(a, w, precision=EXACT)
    low = [rounding(names, rows, columns) for names in each]
    ins = [a]
    for i in range(3):
        ins.append(products(product, ins[i], w[i], g, DENSE, low[i])[0])
    back = []
    for i in reversed(range(3)):
        _, g, dw = products(product, ins[i], w[i], g, DENSE, low[i])
        back.insert(0, dw)
    assert_products(out, (ins[3], g, jnp.stack(back)))


def test_statistics_are_those_of_the_blocks():
    layer, product, *shapes, summed = LAYERS["dense"]
    a, w = (spread(i, *shape) for i, shape in enumerate(shapes))
    g = spread(7, 5, 6)
    names = ["float4_e2m1fn"] * 6
    watch = Watch(("underflow_fraction", "sqnr_db", "saturation_fraction", "amax"))
    _, stats = found(
        layer, a, w, g, Recipes(*[blockwise(3)] * 3), entry_of(names),
        watch={"watch": watch},
    )  # fmt: skip
    seen = stats.tensors["w"]
    low = rounding(names, 1, 3)
    for product, role, x in (
        ("forward", "activation", a), ("forward", "weight", w), ("dgrad", "gradient", g)
    ):  # fmt: skip
        rounded = low(product, role, x, summed[product, role])
        noise = np.sum(np.square(x - rounded, dtype=np.float64))
        np.testing.assert_allclose(seen[role].noise_squares, noise, rtol=1e-5)
        lost = np.sum((np.asarray(x) != 0) & (rounded == 0))
        assert seen[role].underflows.item() == lost > 0
        assert seen[role].amax.item() == np.abs(x).max()
        assert seen[role].saturations.item() == 0


@pytest.mark.parametrize("members", [False, True])
def test_what_lies_beyond_the_range_of_its_own_block_is_counted(members):
    def round_by_half(x, fmt, state, *, axes, key, axis_names=(), use):
        """Maps half of a row's largest magnitude to the format's largest value."""
        half = jnp.max(jnp.abs(x), use.summed, keepdims=True) / 2
        scale = jnp.where(fmt.scaled, half / fmt.max_value, 1.0)
        bounded = jnp.clip(x / scale, fmt.min_value, fmt.max_value)
        return jnp.round(bounded), scale.astype(jnp.float32)

    recipe = Recipe(lambda shape: (), round_by_half, lambda state, amax: state, True)
    a, w = spread(0, 5, 3, 8), spread(1, 3, 8, 6)
    layer, g = lambda w, a: jnp.einsum("ted,edf->etf", a, w), jnp.ones((3, 5, 6))
    if not members:
        a, w, g = a[:, 0], w[0], g[0]
        layer = lambda w, a: a @ w
    entry = SharedPrecision(*[formats.integer(8)] * 3)
    watch = Watch(("saturation_fraction",), roles=("activation", "weight"))
    _, stats = found(
        layer, a, w, g, Recipes(*[recipe] * 3), entry, watch={"watch": watch}
    )
    for role, x, axis in (("activation", a, -1), ("weight", w, -2)):
        # -128 is in int8's range as well; no random number lies just between.
        half = np.abs(x).max(axis, keepdims=True) / 2
        beyond = (x > half) | (x < -half * 128 / 127)
        expected = beyond.sum((0, 2) if role == "activation" else (1, 2)) if (
            members
        ) else beyond.sum()  # fmt: skip
        assert np.sum(expected) > 5
        np.testing.assert_array_equal(stats.tensors["w"][role].saturations, expected)


def test_stochastic_rounding_by_block_is_right_on_average():
    x, use = (
        jnp.tile(jnp.array([0.3, 7.0, 30.0, 700.0]), (4096, 1)),
        Use("forward", (1,)),
    )
    recipe = blockwise(2, rounding="stochastic")
    rounded, scale = recipe.round(
        x, formats.integer(4), (), axes=(0, 1), key=jax.random.key(0), use=use
    )
    np.testing.assert_array_equal(scale[0], [1, 1, 128, 128])
    np.testing.assert_allclose((rounded * scale).mean(0), x[0], rtol=0.1)


def test_devices_share_the_scale_of_a_channel():
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    spec, fmt = jax.P(None, "data"), formats.get("float8_e4m3fn")
    use = Use("forward", (1,))

    def round_part(x, names=("data",)):
        values, scale = per_channel().round(
            x, fmt, (), axes=(0, 1), key=None, axis_names=names, use=use
        )
        return values * scale

    x = spread(0, 3, 8)
    split = jax.shard_map(round_part, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(split)(x), round_part(x, ()))


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_cutting_and_joining_for_every_choice_of_axes(size, square):
    x = jnp.arange(1.0, 1 + 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for count in range(5):
        for summed in itertools.combinations(range(4), count):
            blocks = Blocks(x.shape, Use("forward", summed), size, square)
            parts = blocks.cut(x)
            np.testing.assert_array_equal(blocks.join(parts), x)
            largest = blocks.spread(jnp.max(parts, WITHIN, keepdims=True))
            expected = by_part(
                lambda part: np.full_like(part, part.max()),
                x, summed, size if square else 1, size,
            )  # fmt: skip
            np.testing.assert_array_equal(largest, expected, err_msg=str(summed))


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e38])
def test_a_block_of_zeros_or_tiny_or_huge_numbers(scale):
    """One huge element costs only the block that it is in."""
    x = np.asarray(normal(0, 4, 10)) * np.float32(scale)
    x[1, 4] = 3e38
    for recipe, columns in ((blockwise(3), 3), (per_channel(), None)):
        rounded, found_scale = recipe.round(
            jnp.asarray(x), formats.get("float8_e4m3fn"), (), axes=(0, 1), key=None,
            use=Use("forward", (1,)),
        )  # fmt: skip
        values = np.asarray(rounded * found_scale)
        assert np.isfinite(values).all()
        if scale != 1e-45 and scale != 1e-38:  # XLA flushes float32's own subnormals
            expected = by_part(
                lambda part: cast_scaled(part, ml_dtypes.float8_e4m3fn),
                x, (1,), 1, columns,
            )  # fmt: skip
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_takes_its_own_block_alone(bad):
    x = np.asarray(normal(0, 4, 10)).copy()
    x[1, 4] = bad
    fmt = formats.get("float8_e4m3fn")
    for recipe, lost in ((blockwise(3), np.s_[1, 3:6]), (per_channel(), np.s_[1])):
        rounded, scale = recipe.round(
            jnp.asarray(x), fmt, (), axes=(0, 1), key=None, use=Use("forward", (1,))
        )
        values = np.asarray(rounded * scale)
        assert not np.isfinite(values[1, 4])
        finite = np.isfinite(values)
        finite[lost] = True
        assert finite.all()


# What is summed, derived from the letters of an einsum: an operand's letters that are
# not in the result of its product. Batch letters are in all three.
EINSUMS = [
    "ab,bc->ac", "abc,cd->abd", "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "abcd,cde->abe",
    "a,a->", "a,b->ab", "abc,bcd->ad", "eab,bec->eca",
]  # fmt: skip


@pytest.mark.parametrize("spec", EINSUMS)
@pytest.mark.parametrize("weight_side", [0, 1])
def test_what_is_summed_follows_from_the_letters(spec, weight_side):
    letters, _ = spec.split("->")
    operands = letters.split(",")
    sizes = {c: i + 2 for i, c in enumerate(sorted({*letters} - {","}))}
    arrays = [jnp.zeros([sizes[c] for c in operand]) for operand in operands]
    closed, _ = trace(lambda a, b: jnp.einsum(spec, a, b), *arrays)
    eqns = [e for e in flat(closed.jaxpr) if e.primitive.name == "dot_general"]
    (eqn,) = eqns
    # dot_general may have its operands the other way round, and axes transposed: the
    # letters are found by their sizes.
    name_of = {size: c for c, size in sizes.items()}
    left, right = ("".join(name_of[n] for n in v.aval.shape) for v in eqn.invars)
    out = "".join(name_of[n] for n in eqn.outvars[0].aval.shape)
    weight, activation = (left, right) if weight_side == 0 else (right, left)
    triples = {
        ("forward", "activation"): (activation, out),
        ("forward", "weight"): (weight, out),
        ("dgrad", "gradient"): (out, activation),
        ("dgrad", "weight"): (weight, activation),
        ("wgrad", "gradient"): (out, weight),
        ("wgrad", "activation"): (activation, weight),
    }
    for use, axes in summed_axes(eqn, weight_side).items():
        operand, result = triples[use]
        summed = {c for c in operand if c not in result}
        assert {operand[axis] for axis in axes} == summed, use


def flat(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                yield from flat(value.jaxpr)


LAYOUTS = [
    ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CNHW", "IHWO", "HNWC"),
]  # fmt: skip


@pytest.mark.parametrize("numbers", LAYOUTS)
def test_a_convolution_in_any_layout(numbers):
    sizes = {"N": 2, "C": 3, "I": 3, "O": 4, "H": 5, "W": 6}
    shapes = [[sizes[c] for c in letters] for letters in numbers[:2]]
    closed, _ = trace(
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=numbers
        ),
        *map(jnp.zeros, shapes),
    )
    (eqn,) = (e for e in flat(closed.jaxpr) if e.primitive is conv_general_dilated_p)
    into, kernel, out = numbers
    operands = ["activation", "weight"]
    for weight_side, (x, w) in enumerate((operands[::-1], operands)):
        places = {"N", "H", "W"}
        of_input, of_kernel = "dgrad", "wgrad"
        if x == "weight":
            of_input, of_kernel = of_kernel, of_input
        expected = {
            ("forward", x): (into, {"C"}), ("forward", w): (kernel, {"I"}),
            (of_input, "gradient"): (out, {"C"}), (of_input, w): (kernel, {"O"}),
            (of_kernel, "gradient"): (out, places), (of_kernel, x): (into, places),
        }  # fmt: skip
        axes_of = summed_axes(eqn, weight_side)
        assert axes_of.keys() == expected.keys()
        for use, (letters, summed) in expected.items():
            assert {letters[axis] for axis in axes_of[use]} == summed, use


def test_the_reference_itself():
    x = np.arange(24.0).reshape(2, 3, 4)
    matrix, back = as_matrix(x, (1,))
    assert matrix.shape == (8, 3)
    np.testing.assert_array_equal(matrix[1], [1, 5, 9])
    np.testing.assert_array_equal(back(matrix), x)


@pytest.mark.parametrize("square", [False, True])
def test_a_block_larger_than_the_tensor_is_the_tensor(square):
    x = normal(0, 6, 5)
    use = Use("forward", (1,))
    found, expected = (
        blockwise(size, square=square).round(
            x, formats.get("int4"), (), axes=(0, 1), key=None, use=use
        )
        for size in (2**31 - 1, 8)
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
