"""Formats: what they describe, against ml_dtypes' and NumPy's own tables."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from adaprec_jax import formats

COMPLEX = {"bcomplex32", "complex32"}
ML_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in vars(ml_dtypes).items()
    if isinstance(dtype, type) and issubclass(dtype, np.generic) and name not in COMPLEX
}
FLOATS = {
    **{name: dtype for name, dtype in ML_DTYPES.items() if "float" in name},
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
INTEGERS = {
    **{name: dtype for name, dtype in ML_DTYPES.items() if "int" in name},
    **{name: np.dtype(name) for name in ("int8", "uint8", "int16", "uint16")},
}
GRID_FLOATS = {k: v for k, v in FLOATS.items() if k != "float8_e8m0fnu"}
ROWS = {row.name: row for row in formats.rows()}


def encoding_of(dtype: np.dtype) -> str:
    """Tells from casts alone how a dtype spends its special codes."""
    big, nan, minus_zero = np.array([np.inf, np.nan, -0.0], np.float32).astype(dtype)
    if np.isinf(big):
        return "ieee"
    if not np.isnan(nan):
        return "finite"
    return "fn" if np.signbit(minus_zero) else "fnuz"


@pytest.mark.parametrize("bias", [10**12, -(2**31)])
def test_a_bias_out_of_range_is_refused(bias):
    with pytest.raises(ValueError, match="bias must lie in"):
        formats.floating(4, 3, bias=bias)


def test_every_number_format_of_ml_dtypes_has_a_name():
    assert ML_DTYPES.keys() <= set(formats.names())
    assert len(set(formats.names())) == len(formats.names()) == len(ROWS)


@pytest.mark.parametrize("name", FLOATS)
def test_a_float_has_the_range_and_spacing_of_its_dtype(name):
    row, info = ROWS[name], ml_dtypes.finfo(FLOATS[name])
    assert row.bits == info.bits
    assert row.mantissa_bits == info.nmant
    assert row.max_value == float(info.max)
    assert row.min_value == float(info.min)
    assert row.smallest_normal == float(info.smallest_normal)
    assert row.smallest_positive == float(info.smallest_subnormal)
    assert row.spacing_at_one == float(info.eps)


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_has_the_range_of_its_dtype(name):
    row, info = ROWS[name], ml_dtypes.iinfo(INTEGERS[name])
    assert (row.min_value, row.max_value) == (info.min, info.max)
    assert row.bits == info.bits
    assert row.spacing_at_one == row.smallest_positive == 1


@pytest.mark.parametrize("name", GRID_FLOATS)
def test_floating_makes_every_dtype_from_its_parameters(name):
    info = ml_dtypes.finfo(GRID_FLOATS[name])
    exponent_bits = info.bits - 1 - info.nmant
    smallest = float(info.smallest_normal)
    fmt = formats.floating(
        exponent_bits,
        info.nmant,
        bias=1 - int(np.log2(smallest)),
        encoding=encoding_of(GRID_FLOATS[name]),
    )
    assert fmt == formats.get(name)
    assert formats.describe(fmt) == name


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        (formats.get("tf32"), "tf32"),
        (formats.get("float8_e8m0fnu"), "float8_e8m0fnu"),
        (formats.floating(5, 10), "float16"),
        (formats.floating(5, 6), "float<5,6,bias=15,ieee>"),
        (formats.floating(4, 3, bias=4), "float<4,3,bias=4,ieee>"),
        (formats.floating(1, 2, encoding="finite"), "float<1,2,bias=0,finite>"),
        (formats.integer(20), "int20"),
        (formats.fixed_point(8, 4), "fixed<8,4>"),
        (formats.fixed_point(8, 0), "int8"),
        (formats.fixed_point(6, -2, signed=False), "ufixed<6,-2>"),
        (
            formats.get("int4")._replace(overflow=np.int32(formats.NAN)),
            "format(2, 2, -8.0, 7.0, 2, False, True)",
        ),
        (formats.integer(np.array([[2, 3], [4, 5]])), "[[int2, int3], [int4, int5]]"),
    ],
)
def test_describe_names_a_format_by_what_makes_it(fmt, text):
    assert formats.describe(fmt) == text


def test_every_name_describes_itself():
    for name in formats.names():
        assert formats.describe(formats.get(name)) == name


@pytest.mark.parametrize(
    ("fmt", "width"),
    [
        (formats.get("tf32"), 19),
        (formats.floating(5, 6), 12),
        (formats.floating(2, 0), 3),
        (formats.floating(1, 2, encoding="finite"), 4),
        (formats.floating(1, 2, encoding="fnuz"), 4),
        (formats.floating(7, 23), 31),
        (formats.fixed_point(8, 4), 8),
        (formats.fixed_point(12, 20, signed=False), 12),
    ],
)
def test_bits_is_the_storage_width(fmt, width):
    assert formats.bits(fmt) == width
    assert jax.jit(formats.bits)(fmt) == width


def test_only_formats_without_float32s_exponent_and_float16_are_scaled():
    unscaled = {"float32", "tf32", "bfloat16", "float16"}
    for name in GRID_FLOATS.keys() | INTEGERS.keys() | {"tf32"}:
        assert formats.get(name).scaled == (name not in unscaled)


@pytest.mark.parametrize(
    ("word", "fraction", "signed", "largest"),
    [
        (24, -104, True, 2.0**127 - 2.0**104),
        (24, -103, False, 2.0**127 - 2.0**103),
        (24, 125, False, 2.0**-101 - 2.0**-125),
        (1, 125, True, 0.0),
    ],
)
def test_a_fixed_point_at_the_ends_of_its_range_is_exact(
    word, fraction, signed, largest
):
    fmt = formats.fixed_point(word, fraction, signed=signed)
    assert float(fmt.max_value) == largest
    spacing = 2.0**-fraction
    assert float(fmt.min_value) == (-largest - spacing if signed else 0.0)
    assert formats.bits(fmt) == word


@pytest.mark.parametrize("signed", [True, False])
def test_traced_integers_equal_concrete_ones(signed):
    widths = jnp.arange(1, 17)
    traced = jax.jit(lambda bits: formats.integer(bits, signed=signed))(widths)
    mapped = jax.vmap(lambda bits: formats.integer(bits, signed=signed))(widths)
    single = [formats.integer(bits, signed=signed) for bits in range(1, 17)]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *single)
    for fmt in (traced, mapped):
        jax.tree.map(np.testing.assert_array_equal, fmt, expected)
        assert jax.tree.map(lambda leaf: leaf.dtype, fmt) == jax.tree.map(
            lambda leaf: leaf.dtype, expected
        )
    np.testing.assert_array_equal(formats.bits(traced), widths)


def test_traced_floats_and_fixed_points_equal_concrete_ones():
    make = jax.jit(lambda e, m: formats.floating(e, m, encoding="fn"))
    assert formats.describe(make(jnp.array([4, 5]), jnp.array([3, 2]))) == (
        "[float8_e4m3fn, float<5,2,bias=15,fn>]"
    )
    fixed = jax.jit(formats.fixed_point)(jnp.int32(8), jnp.array([4, -1]))
    assert formats.describe(fixed) == "[fixed<8,4>, fixed<8,-1>]"


def test_the_fields_are_strongly_typed():
    for name in GRID_FLOATS.keys() | INTEGERS.keys():
        shapes = jax.eval_shape(lambda fmt: fmt, formats.get(name))
        dtypes = [leaf.dtype.name for leaf in shapes]
        assert dtypes == ["int32"] * 2 + ["float32"] * 2 + ["int32", "bool", "bool"]
        assert not any(leaf.weak_type for leaf in shapes)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("bf16", "bfloat16"), ("float8_e4m3n", "float8_e4m3fn"), ("int_8", "int8")],
)
def test_an_unknown_name_suggests_the_nearest(name, suggestion):
    with pytest.raises(ValueError, match=f"Unknown format '{name}'.*{suggestion}"):
        formats.get(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: formats.integer(0), "word_bits must lie in 1 to 24, got 0"),
        (lambda: formats.integer(25), "word_bits must lie in 1 to 24, got 25"),
        (lambda: formats.integer(np.array([8, 30])), r"got \[ 8 30\]"),
        (lambda: formats.fixed_point(8, 126), "fraction_bits must lie in -104 to 125"),
        (
            lambda: formats.fixed_point(24, -104, signed=False),
            "fraction_bits must lie in -103 to 125, got -104",
        ),
        (lambda: formats.floating(9, 2), "exponent_bits must lie in 2 to 8, got 9"),
        (lambda: formats.floating(1, 2), "exponent_bits must lie in 2 to 8, got 1"),
        (lambda: formats.floating(4, 24), "mantissa_bits must lie in 0 to 23, got 24"),
        (
            lambda: formats.floating(4, 3, encoding="ocp"),
            "encoding must be one of ieee",
        ),
        (lambda: formats.floating(8, 3, encoding="fn"), "float32 cannot hold"),
        (lambda: formats.floating(8, 3, bias=128), "float32 cannot hold"),
        (lambda: formats.floating(6, 10, bias=120), "float32 cannot hold"),
        (
            lambda: formats.floating(2, 0, bias=-120, encoding="fn"),
            r"spacing of the subnormals in 2\^-125 to 2\^104",
        ),
    ],
)
def test_a_format_that_float32_cannot_hold_is_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_listing_the_formats_does_not_import_jax():
    code = "import sys; from adaprec_jax import formats; formats.rows(); "
    code += "sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
