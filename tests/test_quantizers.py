"""Rounding, to the bit: against ml_dtypes, gfloat, NumPy's rint, and its properties."""

import functools

import gfloat
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gfloat import RoundMode

from adaprec_jax import formats
from adaprec_jax.formats import Format
from adaprec_jax.quantizers import binary, quantize, ternary

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "stochastic")
DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in formats.names()
    if "float" in name and name != "float8_e8m0fnu"
}
each_float = pytest.mark.parametrize("name", DTYPES)

# Every format of a test shares one compilation: the format is an argument.
rounded = functools.partial(
    jax.jit(quantize, static_argnames=("rounding", "overflow", "gradient")),
    key=jax.random.key(7),
)


def assert_same(actual, expected, x):
    """Asserts equality of every bit, signs of zero included; NaN equals NaN."""
    actual, expected = (np.asarray(a, np.float32) for a in (actual, expected))
    same = actual.view(np.int32) == expected.view(np.int32)
    wrong = ~(same | (np.isnan(actual) & np.isnan(expected)))
    assert not wrong.any(), (x[wrong][:5], actual[wrong][:5], expected[wrong][:5])


def cast(x, dtype):
    """Returns what ml_dtypes makes of float32 x; NaN stays NaN in every format here."""
    return np.where(np.isnan(x), x, x.astype(dtype).astype(np.float32))


def check_casts(x, name):
    """Asserts that rounding `x` equals the cast, and saturating that of clipped x."""
    fmt, dtype = formats.get(name), DTYPES[name]
    assert_same(rounded(x, fmt, overflow="format"), cast(x, dtype), x)
    clipped = x if name == "float32" else np.clip(x, fmt.min_value, fmt.max_value)
    assert_same(rounded(x, fmt), cast(clipped, dtype), x)


def with_neighbours(x):
    """Returns float32 x with the floats one unit below and above, both signs of all."""
    x = np.asarray(x, np.float32)
    around = [x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))]
    return np.concatenate([*around, *(-y for y in around)])


def values_of(dtype):
    """Returns the finite non-negative numbers of a dtype of at most 16 bits."""
    width = dtype.itemsize * 8
    codes = np.arange(2**width).astype(f"uint{width}")
    values = codes.view(dtype).astype(np.float32)
    return np.unique(values[np.isfinite(values) & (values >= 0)])


@pytest.fixture(autouse=True, scope="module")
def numpy_is_quiet():
    """Overflow and NaN are what these tests are about; NumPy warns of each."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="module")
def random_floats():
    """A million random bit patterns, every kind of special number, ordinary numbers."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    largest, smallest = np.finfo(np.float32).max, 2**-149
    special = [0, np.inf, np.nan, largest, smallest, 2**-126, 2**-126 - smallest]
    ordinary = rng.normal(size=200_000) * np.exp(rng.normal(size=200_000) * 4)
    rest = np.float32([*special, *np.negative(special), *ordinary])
    return np.concatenate([patterns, rest])


@pytest.mark.parametrize(
    "name", [n for n, dtype in DTYPES.items() if dtype.itemsize < 4]
)
def test_every_code_point_is_its_own_rounding(name):
    values = values_of(DTYPES[name])
    x = np.concatenate([values, -values[values > 0]])
    for rounding in ROUNDINGS:
        assert_same(rounded(x, formats.get(name), rounding=rounding), x, x)


@pytest.mark.parametrize(
    "name", [n for n, dtype in DTYPES.items() if dtype.itemsize < 4]
)
def test_every_midpoint_and_its_neighbours_round_as_in_ml_dtypes(name):
    values = values_of(DTYPES[name]).astype(np.float64)
    beyond = 2 * values[-1] - values[-2]  # the number that would come next
    steps = np.append(values, beyond)
    check_casts(with_neighbours((steps[:-1] + steps[1:]) / 2), name)


@each_float
def test_a_million_bit_patterns_round_as_in_ml_dtypes(name, random_floats):
    check_casts(random_floats, name)


def test_float32_is_the_identity(random_floats):
    for rounding in ROUNDINGS:
        for overflow in ("saturate", "format"):
            y = rounded(
                random_floats,
                formats.get("float32"),
                rounding=rounding,
                overflow=overflow,
            )
            assert_same(y, random_floats, random_floats)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@each_float
def test_every_16_bit_float_rounds_in_its_own_dtype(name, dtype):
    x = np.arange(2**16).astype(np.uint16).view(dtype)
    y = rounded(x, formats.get(name), overflow="format")
    assert y.dtype == dtype
    expected = cast(x.astype(np.float32), DTYPES[name]).astype(dtype)
    assert_same(y, expected.astype(np.float32), x)


@pytest.mark.parametrize("signed", [True, False])
def test_integers_are_rint_and_clip(signed, random_floats):
    halves = with_neighbours(np.arange(0, 300, 0.5))
    x = np.concatenate([halves, random_floats[::4], random_floats[-100_000:] * 50])
    for bits in range(1, 17):
        fmt = formats.integer(bits, signed=signed)
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
        low, high = (low, high) if signed else (0, 2.0**bits - 1)
        expected = np.clip(np.rint(x), np.float32(low), np.float32(high))
        expected += np.float32(0)  # integers have no negative zero
        for overflow in ("saturate", "format"):
            assert_same(rounded(x, fmt, overflow=overflow), expected, x)


@pytest.mark.parametrize(
    ("word", "fraction"), [(8, 4), (2, 1), (2, 2), (16, 15), (5, -3), (24, 10)]
)
def test_fixed_point_is_rint_of_the_scaled_number(word, fraction, random_floats):
    spacing = 2.0**-fraction
    ties = with_neighbours(spacing * np.arange(0, 2.0 ** min(word, 12), 0.5))
    x = np.concatenate([ties, random_floats[::4], random_floats[-100_000:]])
    low, high = -(2.0 ** (word - 1)), 2.0 ** (word - 1) - 1
    expected = np.clip(np.rint(x.astype(np.float64) / spacing), low, high) * spacing
    expected = expected.astype(np.float32) + np.float32(0)
    assert_same(rounded(x, formats.fixed_point(word, fraction)), expected, x)


GFLOAT_FORMATS = [
    *(formats.get(name) for name in DTYPES if name != "float32"),
    formats.get("tf32"),
    formats.floating(5, 6),
    formats.floating(6, 9),
    formats.floating(4, 3, bias=4),
    formats.floating(5, 4, bias=10, encoding="fn"),
    formats.floating(4, 5, bias=9, encoding="fnuz"),
    # Without mantissa bits, a tie is decided by the exponent's last bit.
    formats.floating(3, 0, encoding="finite"),
    formats.floating(3, 0, bias=4, encoding="finite"),
    formats.floating(1, 2, encoding="finite"),
]
each_gfloat_format = pytest.mark.parametrize(
    "fmt", GFLOAT_FORMATS, ids=[formats.describe(fmt) for fmt in GFLOAT_FORMATS]
)


def gfloat_info(fmt: Format) -> gfloat.FormatInfo:
    """Returns the format as gfloat describes it."""
    mantissa_bits = int(fmt.mantissa_bits)
    has_infinity = fmt.overflow == formats.INFINITY
    # Beside infinity, the top exponent is NaN; "fn" has one at its very end.
    high_nans = 2**mantissa_bits - 1 if has_infinity else fmt.overflow == formats.NAN
    return gfloat.FormatInfo(
        formats.describe(fmt),
        int(formats.bits(fmt)),
        mantissa_bits + 1,
        bias=1 - int(fmt.min_exponent),
        is_signed=True,
        domain=gfloat.Domain.Extended if has_infinity else gfloat.Domain.Finite,
        has_nz=bool(fmt.negative_zero),
        num_high_nans=int(high_nans) if fmt.negative_zero else 0,
        has_subnormals=True,
        is_twos_complement=False,
    )


def inputs_for(fmt: Format, random_floats):
    """Returns finite floats: ties of `fmt` and their neighbours, and random ones."""
    fraction_bits = int(fmt.mantissa_bits) + 1  # one more than stored: every tie
    spacing = 2.0 ** float(fmt.min_exponent - fmt.mantissa_bits)
    subnormal_ties = spacing * np.arange(0, 64, 0.25)
    significands = 1 + np.arange(min(2**fraction_bits, 512)) / 2**fraction_bits
    top = int(np.log2(fmt.max_value))
    exponents = np.unique([fmt.min_exponent, *range(-3, 4), top - 1, top])
    ties = np.outer(2.0**exponents, [*significands, 2 - 2.0**-fraction_bits])
    near = with_neighbours([*subnormal_ties, *ties.ravel(), fmt.max_value])
    x = np.concatenate([near, random_floats[::40]])
    return x[np.isfinite(x)]


@each_gfloat_format
def test_the_other_roundings_equal_gfloat(fmt, random_floats):
    info, x = gfloat_info(fmt), inputs_for(fmt, random_floats)
    assert info.max == fmt.max_value
    for rounding, mode in (
        ("nearest_even", RoundMode.TiesToEven),
        ("nearest_away", RoundMode.TiesToAway),
        ("toward_zero", RoundMode.TowardZero),
    ):
        wide = x.astype(np.float64)
        saturated = gfloat.round_ndarray(info, wide, mode, sat=True)
        assert_same(rounded(x, fmt, rounding=rounding), saturated, x)
        # gfloat refuses an overflow where there is nothing to overflow to.
        saturates = bool(fmt.overflow == formats.SATURATE)
        expected = gfloat.round_ndarray(info, wide, mode, sat=saturates)
        y = rounded(x, fmt, rounding=rounding, overflow="format")
        assert_same(y, expected, x)


@each_gfloat_format
def test_stochastic_rounding_gives_one_of_gfloats_two_neighbours(fmt, random_floats):
    info, x = gfloat_info(fmt), inputs_for(fmt, random_floats)
    below, above = (
        gfloat.round_ndarray(info, x.astype(np.float64), mode, sat=True)
        for mode in (RoundMode.TowardNegative, RoundMode.TowardPositive)
    )
    y = np.asarray(rounded(x, fmt, rounding="stochastic"))
    np.testing.assert_array_equal(np.where(y == below, below, above), y)


@pytest.mark.parametrize(
    ("name", "x", "below", "above"),
    [
        ("float8_e4m3fn", 1.03125, 1.0, 1.125),
        ("float8_e4m3fn", -250.0, -240.0, -256.0),
        ("float8_e4m3fn", 2**-9 * 0.3, 0.0, 2**-9),
        ("float8_e4m3fn", 2**-9 * 2.75, 2**-9 * 2, 2**-9 * 3),
        ("float8_e5m2", 2**-14 * 1.9, 2**-14 * 1.75, 2**-14 * 2),
        ("bfloat16", 1 + 2**-9, 1.0, 1 + 2**-7),
        ("int4", -2.9, -2.0, -3.0),
        ("int8", 0.001, 0.0, 1.0),
        ("float4_e2m1fn", 5.5, 4.0, 6.0),
    ],
)
def test_stochastic_rounding_is_unbiased(name, x, below, above, key):
    x = np.float32(x)
    n = 200_000
    y = rounded(jnp.full(n, x), formats.get(name), rounding="stochastic", key=key)
    assert set(np.unique(y)) <= {np.float32(below), np.float32(above)}
    chance = (x - below) / (above - below)
    deviation = np.sqrt(chance * (1 - chance) / n)
    assert abs(np.mean(np.asarray(y) == np.float32(above)) - chance) < 4 * deviation


def test_numbers_far_below_the_spacing_are_never_rounded_up(key):
    x = jnp.full(1_000_000, 1e-30)
    y = rounded(x, formats.get("float8_e4m3fn"), rounding="stochastic", key=key)
    assert not y.any()


def test_e8m0_equals_ml_dtypes(random_floats):
    exponents = np.arange(256, dtype=np.uint32) << 23
    fractions = np.array([0, 1, 0x3FFFFF, 0x400000, 0x400001, 0x600000, 0x7FFFFF])
    patterns = (exponents[:, None] + fractions.astype(np.uint32)).ravel()
    positive = patterns.view(np.float32)
    x = np.concatenate([positive, -positive, random_floats])
    expected = x.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    fmt = formats.get("float8_e8m0fnu")
    for overflow in ("saturate", "format"):
        assert_same(rounded(x, fmt, overflow=overflow), expected, x)
    powers = rounded(2.0 ** np.arange(-20, 20, 0.3, dtype=np.float32), fmt)
    for rounding in ROUNDINGS:
        assert_same(rounded(powers, fmt, rounding=rounding), powers, powers)


def test_nan_stays_nan_in_every_format():
    for name in formats.names():
        for rounding in ROUNDINGS:
            for overflow in ("saturate", "format"):
                y = rounded(
                    np.array([np.nan, -np.nan], np.float32),
                    formats.get(name),
                    rounding=rounding,
                    overflow=overflow,
                )
                assert np.isnan(y).all(), (name, rounding, overflow)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("float8_e4m3fn", [np.nan, np.nan]),
        ("float8_e5m2fnuz", [np.nan, np.nan]),
        ("float8_e5m2", [np.inf, -np.inf]),
        ("float16", [np.inf, -np.inf]),
        ("float4_e2m1fn", [6, -6]),
        ("int8", [127, -128]),
        ("uint4", [15, 0]),
    ],
)
def test_an_infinity_becomes_the_bound_or_what_the_dtype_has(name, expected):
    fmt, x = formats.get(name), np.array([np.inf, -np.inf], np.float32)
    for rounding in ROUNDINGS:
        saturated = rounded(x, fmt, rounding=rounding)
        np.testing.assert_array_equal(saturated, [fmt.max_value, fmt.min_value])
        y = rounded(x, fmt, rounding=rounding, overflow="format")
        np.testing.assert_array_equal(y, np.float32(expected))


MANY_FORMATS = [
    *(formats.get(name) for name in formats.names() if name != "float8_e8m0fnu"),
    *(formats.fixed_point(w, f) for w in (1, 2, 7, 24) for f in (-20, -1, 3, 20)),
    *(
        formats.floating(e, m, bias=bias, encoding=encoding)
        for e in (2, 5, 7)
        for m in (0, 1, 6, 12)
        for bias in (1, 9, 60)
        for encoding in ("ieee", "fn", "fnuz", "finite")
    ),
]
any_format = st.sampled_from(MANY_FORMATS)
symmetric_format = st.sampled_from(
    [fmt for fmt in MANY_FORMATS if fmt.min_value == -fmt.max_value]
)
tensor = hypothesis.extra.numpy.arrays(
    np.float32, 64, elements=st.floats(width=32, allow_nan=False, allow_subnormal=True)
)
modes = st.sampled_from(ROUNDINGS)
nearest = st.sampled_from(ROUNDINGS[:2])
properties = hypothesis.settings(max_examples=100, deadline=None, derandomize=True)


@properties
@hypothesis.given(tensor, any_format, modes)
def test_rounding_twice_changes_nothing(x, fmt, rounding):
    once = rounded(x, fmt, rounding=rounding)
    assert_same(rounded(np.asarray(once), fmt, rounding=rounding), once, x)


@properties
@hypothesis.given(tensor, any_format, st.sampled_from(ROUNDINGS[:3]))
def test_rounding_is_monotone(x, fmt, rounding):
    y = np.asarray(rounded(np.sort(x), fmt, rounding=rounding))
    assert (y[1:] >= y[:-1]).all()


@properties
@hypothesis.given(tensor, any_format, modes)
def test_rounding_saturates_at_the_bounds(x, fmt, rounding):
    hypothesis.assume(fmt.max_value < np.finfo(np.float32).max)
    y = np.asarray(rounded(x, fmt, rounding=rounding))
    assert ((y >= fmt.min_value) & (y <= fmt.max_value)).all()
    assert (y[x >= fmt.max_value] == fmt.max_value).all()
    assert (y[x <= fmt.min_value] == fmt.min_value).all()


@properties
@hypothesis.given(tensor, symmetric_format, modes)
def test_rounding_is_odd_in_symmetric_formats(x, fmt, rounding):
    # Stochastic rounding too: with one key, both signs see the same noise.
    y = np.asarray(rounded(x, fmt, rounding=rounding))
    np.testing.assert_array_equal(rounded(-x, fmt, rounding=rounding), -y)


@properties
@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.float32, 64, elements=st.floats(0.5, 2.0, width=32)
    ),
    symmetric_format,
    nearest,
    st.integers(-3, 3),
)
def test_rounding_commutes_with_powers_of_two_in_the_normal_range(
    x, fmt, rounding, exponent
):
    low = 2.0 ** (float(fmt.min_exponent) + 4)
    # Without mantissa bits a tie looks at the exponent, which the factor changes.
    hypothesis.assume(fmt.max_value >= low * 32 and fmt.mantissa_bits > 0)
    x, factor = x * np.float32(low * 2), np.float32(2.0**exponent)
    y = np.asarray(rounded(x, fmt, rounding=rounding))
    np.testing.assert_array_equal(
        rounded(x * factor, fmt, rounding=rounding), y * factor
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_eager_jit_scan_and_vmap_agree_to_the_bit(rounding, random_floats):
    x = random_floats[-4096:].reshape(8, 512)
    chosen = ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float4_e2m1fn"]
    chosen = [formats.get(name) for name in [*chosen, "int8", "uint3", "float32"]]
    fmts = jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
    keys = jax.random.split(jax.random.key(3), 8)

    def one(x, fmt, key):
        return quantize(x, fmt, rounding=rounding, overflow="format", key=key)

    eager = jnp.stack([one(x[i], chosen[i], keys[i]) for i in range(8)])
    jitted = jnp.stack([jax.jit(one)(x[i], chosen[i], keys[i]) for i in range(8)])
    _, scanned = jax.lax.scan(lambda _, args: (None, one(*args)), None, (x, fmts, keys))
    for other in (jitted, scanned, jax.vmap(one)(x, fmts, keys)):
        assert_same(other, eager, x)


def test_format_fields_broadcast_like_arrays():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) * 10
    per_channel = formats.integer(np.array([2, 4, 6, 8]))
    per_block = formats.integer(np.array([[[2]], [[5]]]))
    for fmt, axes in ((per_channel, (-1, 0)), (per_block, (0, 0))):
        mapped = jax.vmap(rounded, in_axes=axes, out_axes=axes[0])(x, fmt)
        assert_same(rounded(x, fmt), mapped, x)
    table = jax.vmap(rounded, in_axes=(None, 0))(np.float32(2.6), per_channel)
    np.testing.assert_array_equal(rounded(np.float32(2.6), per_channel), table)
    np.testing.assert_array_equal(table, [1, 3, 3, 3])


def test_one_compilation_of_one_fusion_serves_every_format():
    f = jax.jit(lambda x, fmt: quantize(x, fmt, overflow="format"))
    x = jnp.ones((256, 256))
    for name in DTYPES:
        f(x, formats.get(name))
    assert f._cache_size() == 1
    for rounding in ROUNDINGS:
        compiled = rounded.func.lower(
            x,
            formats.get("int8"),
            rounding=rounding,
            key=jax.random.key_data(jax.random.key(0)),
        ).compile()
        entry = compiled.as_text().split("ENTRY")[1]
        assert entry.count(" fusion(") == 1, entry


@pytest.mark.parametrize("gradient", ["straight_through", "clipped"])
@pytest.mark.parametrize(
    ("name", "inside"), [("int8", [0, 1, 1, 1, 1, 0, 0]), ("bfloat16", [1] * 6 + [0])]
)
def test_the_gradient_passes_straight_through_or_is_clipped(gradient, name, inside):
    x = jnp.array([-300.0, -0.3, 0.0, 5.5, 127.0, 127.1, jnp.inf])
    weights = np.arange(1, 8, dtype=np.float32)
    f = functools.partial(rounded, fmt=formats.get(name), gradient=gradient)
    expected = weights * inside if gradient == "clipped" else weights
    reverse = jax.jit(jax.grad(lambda x: jnp.vdot(f(x), weights)))(x)
    _, forward = jax.jit(lambda x: jax.jvp(f, (x,), (weights,)))(x)
    np.testing.assert_array_equal(reverse, expected)
    np.testing.assert_array_equal(forward, expected)


def test_the_gradient_of_a_broadcast_format_is_summed():
    fmt = formats.integer(np.array([2, 4]))
    assert jax.grad(lambda x: rounded(x, fmt).sum())(jnp.float32(3.0)) == 2.0


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.ones(3), "float64"),
        (np.float64(1.0), "float64"),
        (np.ones(3, np.int32), "int32"),
        (1, "int"),
        (True, "bool"),
        (1j, "complex"),
        (np.ones(3, np.complex64), "complex64"),
        (np.ones(3, ml_dtypes.float8_e5m2), "float8_e5m2"),
    ],
)
def test_other_dtypes_are_refused(x, dtype):
    for call in (quantize, lambda x, _: binary(x)):
        with pytest.raises(TypeError, match=f"x must be float32.* got {dtype};"):
            call(x, formats.get("int8"))


def test_bad_modes_are_refused():
    x, fmt = jnp.ones(3), formats.get("int8")
    with pytest.raises(ValueError, match=r"stochastic.* needs a key"):
        quantize(x, fmt, rounding="stochastic")
    with pytest.raises(ValueError, match="rounding must be one of nearest_even"):
        quantize(x, fmt, rounding="up")
    with pytest.raises(ValueError, match="overflow must be one of saturate, format"):
        quantize(x, fmt, overflow="wrap")
    with pytest.raises(TypeError, match="fmt"):
        quantize(x, "int8")
    with pytest.raises(ValueError, match="gradient must be one of straight_through"):
        ternary(x, 0.5, gradient="none")


def test_a_python_float_is_float32_and_64_bit_mode_changes_nothing():
    assert quantize(0.3, formats.get("float8_e5m2")) == jnp.float32(0.3125)
    with jax.enable_x64(True):
        y = quantize(0.3, formats.integer(4), rounding="nearest_away")
        assert (y.dtype, float(y)) == (jnp.float32, 0.0)
        with pytest.raises(TypeError, match="float64"):
            quantize(jnp.ones(3), formats.integer(4))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_binary_and_ternary_by_hand(dtype):
    x = jnp.array([-2.0, -0.5, -0.0, 0.25, 1.5, jnp.nan], dtype)
    nan = np.nan
    for y, expected in (
        (binary(x), [-1, -1, 1, 1, 1, nan]),
        (binary(x[:5], scaled=True), [-0.85, -0.85, 0.85, 0.85, 0.85]),
        (ternary(x, 0.5), [-1, 0, 0, 0, 1, nan]),
        (ternary(x[:5], 0.5, scaled=True), [-1.75, 0, 0, 0, 1.75]),
        (ternary(x[:5], 9.0, scaled=True), [0, 0, 0, 0, 0]),
    ):
        assert y.dtype == dtype
        np.testing.assert_array_equal(
            y.astype(jnp.float32), jnp.array(expected, dtype).astype(jnp.float32)
        )


def test_the_gradient_of_binary_and_ternary_passes_or_is_clipped():
    x = jnp.array([-2.0, -0.5, 1.0, 1.5])
    for f in (binary, functools.partial(ternary, threshold=0.7)):
        for scaled in (False, True):
            g = functools.partial(f, scaled=scaled)
            passed = jax.grad(lambda x, g=g: g(x).sum())(x)
            clipped = jax.grad(lambda x, g=g: g(x, gradient="clipped").sum())(x)
            np.testing.assert_array_equal(passed, [1, 1, 1, 1])
            np.testing.assert_array_equal(clipped, [0, 1, 1, 0])


@pytest.mark.parametrize("name", ["int4", "float8_e4m3fn", "float4_e2m1fn"])
def test_a_format_that_is_a_constant_of_the_program_rounds_alike(name: str):
    fmt = formats.get(name)
    x = jnp.linspace(-9.0, 9.0, 1001, dtype=jnp.float32)
    constant = jax.jit(lambda x: quantize(x, fmt))(x)
    traced = jax.jit(quantize)(x, jax.tree.map(jnp.asarray, fmt))
    assert jnp.array_equal(constant, traced)


@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero"])
def test_below_an_unsigned_range_there_is_a_zero_without_a_sign(rounding: str):
    zero = quantize(jnp.float32(-1.0), formats.get("uint1"), rounding=rounding)
    assert zero == 0
    assert not jnp.signbit(zero)
