"""Tables, devices, quantities and lenses against published and hand-made numbers."""

import csv

import pytest

from adaprec_jax import formats
from adaprec_jax.cost import arithmetic
from adaprec_jax.cost.devices import DATA, device, names, unit
from adaprec_jax.cost.lenses import DEVICES, LENSES, TABLES, bound, look
from adaprec_jax.cost.numbers import FLOAT32, number
from adaprec_jax.cost.quantity import Quantity, saving, total
from adaprec_jax.cost.tally import Product, Work, step_tally, summed


def of(name):
    return number(formats.get(name))


def joules(value, kind="modelled"):
    return Quantity(value, "J", value, value, kind, "a test")


def product(name="a", macs=1000.0, operands=(100.0, 10.0), result=50.0, part="forward"):
    return Product(name, part, macs, 0.0, operands, result, weights=True)


def done(*kinds, macs=1000.0, operations=0.0, update=0.0, shared=()):
    """A step with one forward product and the two of its backward pass."""
    work = Work(
        tuple(product(macs=macs, part=p) for p in ("forward", "dgrad", "wgrad")),
        {}, {"": operations, "rounding": 1e9}, {}, (),
    )  # fmt: skip
    six = list(kinds) * (6 // len(kinds))
    return step_tally(work, [("a", six)], shared, update_bytes=update)


def test_quantities_of_different_kinds_or_units_do_not_add():
    with pytest.raises(ValueError, match="modelled and one that is measured cannot"):
        joules(1.0) + joules(1.0, "measured")
    with pytest.raises(ValueError, match="J and g cannot be added"):
        joules(1.0) + Quantity(1.0, "g", 1.0, 1.0, "modelled", "")
    with pytest.raises(ValueError, match="cannot be added or compared"):
        saving(joules(2.0), joules(1.0, "tdp_estimate"))
    with pytest.raises(ValueError, match="low <= value <= high"):
        Quantity(1.0, "J", 2.0, 3.0, "measured", "")


def test_what_is_not_known_is_none_and_never_zero():
    assert total([joules(1.0), None, joules(2.0)]) is None
    assert total([]) is None
    assert saving(None, joules(1.0)) is None
    assert saving(joules(0.0), joules(1.0)) is None
    assert total([joules(1.0), joules(2.0)]) == joules(3.0)


def test_every_row_of_the_tables_has_a_source_and_sparse_peaks_are_twice_the_dense():
    for file in ("hardware.csv", "op_energy.csv"):
        with (DATA / file).open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        assert rows
        assert all(row["source"] for row in rows)
        for row in rows:
            if row.get("sparse_peak_tflops"):
                dense = float(row["dense_peak_tflops"])
                assert float(row["sparse_peak_tflops"]) == pytest.approx(
                    2 * dense, rel=1e-3
                )


def test_peaks_are_those_that_follow_from_units_and_clock():
    # Multiprocessors x operations of each in a cycle x clock.
    for name, peak in (
        ("a100", 108 * 2048 * 1.41e9),
        ("h100", 132 * 4096 * 1.83e9),
        ("mi300x", 304 * 2048 * 2.1e9),
    ):
        assert device(name).rates["bfloat16"] == pytest.approx(peak, rel=1e-3)
    for name in ("h100", "h200", "b200", "mi300x", "tpu7x"):
        rates = device(name).rates
        assert rates["float8"] == pytest.approx(2 * rates["bfloat16"], rel=1e-3)
    assert device("tpu-v6e").rates["float8"] == device("tpu-v6e").rates["bfloat16"]
    assert device("tpu-v5e").power is None


def test_jax_has_the_same_rates_for_tpus():
    from jax.experimental.pallas import tpu

    for name, version in (("tpu-v5e", "TPU_V5E"), ("tpu-v6e", "TPU_V6E")):
        info = tpu.get_tpu_info_for_chip(getattr(tpu.ChipVersion, version), 1)
        ours = device(name)
        assert ours.rates["bfloat16"] == pytest.approx(
            info.bf16_ops_per_second, rel=0.01
        )
        assert ours.rates["int8"] == pytest.approx(info.int8_ops_per_second, rel=0.01)
        assert ours.bandwidth == pytest.approx(info.mem_bw_bytes_per_second, rel=0.01)


@pytest.mark.parametrize(
    ("where", "first", "second", "expected"),
    [
        ("h100", "int4", "int4", "int8"),  # no int4 rate is published
        ("a100", "int4", "int3", "int4"),
        ("tpu7x", "int8", "int8", "bfloat16"),  # it has no units for int8
        ("b200", "float4_e2m1fn", "float4_e2m1fn", "float4"),
        ("h100", "float8_e5m2", "bfloat16", "float16"),
        ("h100", "int8", "float8_e4m3fn", "float16"),  # e4m3 does not hold 127
        ("h100", "int16", "int16", "float32"),
        ("tpu-v4", "float32", "float32", None),
    ],
)
def test_a_chip_computes_in_the_fastest_units_that_hold_both(
    where, first, second, expected
):
    found = unit(device(where), of(first), of(second))
    if expected == "float16":
        assert found in ("float16", "bfloat16")
    else:
        assert found == expected


def test_a_multiply_accumulate_costs_what_the_tables_say():
    int8, int4, fp8, bf16 = map(of, ("int8", "int4", "float8_e4m3fn", "bfloat16"))
    for node, pair, energy in (
        ("45nm", FLOAT32, 3.7 + 0.9),
        ("45nm", int8, 0.2 + 0.1),
        ("45nm", of("float16"), 1.1 + 0.9),
        ("7nm", FLOAT32, 1.69),
        ("7nm", bf16, 0.59),
        ("7nm", int8, 0.10),
        ("7nm", int4, 0.0475),
        ("7nm", fp8, (0.105 + 0.196) / 2 + 0.38),
    ):
        found = arithmetic.mac(node, pair, pair)
        assert found is not None
        assert found.value == pytest.approx(energy)
        assert found.low <= found.value <= found.high
    assert arithmetic.mac("45nm", bf16, bf16) is None  # the table has none
    assert not arithmetic.rechecked("7nm", bf16)
    mixed = arithmetic.mac("7nm", int8, bf16)
    assert mixed is not None
    assert mixed.value == pytest.approx((0.07 + 0.21) / 2 + 0.38)
    costs = [arithmetic.mac("7nm", of(f"int{b}"), of(f"int{b}")) for b in range(2, 17)]
    values = [cost.value for cost in costs if cost]
    assert values == sorted(values)
    assert len(values) == 15


def test_lenses_are_linear_in_steps_and_their_bands_are_ordered():
    one, fp8 = done(of("int8"), operations=7.0, update=28.0), of("float8_e4m3fn")
    mixed = [(one, 2.0), (done(fp8, operations=7.0, update=28.0), 1.0)]
    h100 = device("h100")
    for lens in LENSES:
        single, other = look(lens, one, h100), look(lens, done(fp8), h100)
        assert single is not None
        assert other is not None
        twice = look(lens, summed([(one, 2.0)]), h100)
        assert twice is not None
        assert twice.value == pytest.approx(2 * single.value)
        assert single.low <= single.value <= single.high
        three = look(lens, summed(mixed), h100)
        parts = look(lens, summed(mixed[:1]), h100), look(lens, mixed[1][0], h100)
        assert three is not None
        assert three.value == pytest.approx(sum(p.value for p in parts if p))


def test_bit_operations_of_float32_are_sixteen_times_those_of_eight_bits():
    ratio = [look("bitops", done(f)) for f in (FLOAT32, of("float8_e4m3fn"))]
    assert ratio[0].value / ratio[1].value == 16
    assert ratio[0].value == 3 * 1000 * 32 * 32 / 1e9


def test_what_hardware_does_for_a_scaled_format_counts_and_emulation_does_not():
    plain, cast, scaled = (
        done(f) for f in (FLOAT32, of("bfloat16"), of("float8_e4m3fn"))
    )
    elements = 3 * (100 + 10)
    assert (plain.quantiser, cast.quantiser) == (0, elements)
    assert scaled.quantiser == 4 * elements
    # Shared: activation and weight forward, the gradient once.
    assert done(of("int8"), shared=("a",)).quantiser == 4 * (100 + 10 + 100)
    assert plain.operations == 0
    assert plain.emulation == 1e9


def test_bytes_go_by_class_of_tensor():
    moved = done(of("int8"), update=28.0).traffic()
    assert moved == {
        "weights": 10 + 10,  # of forward and dgrad, in 8 bits
        "activations": 100 + 50 * 4 + 10,
        "gradients": 100 + 50 * 4 + 100 + 50 * 4,
        "optimizer": 28,
    }


def test_the_roofline_takes_the_longer_of_computing_and_moving():
    h100 = device("h100")
    (term, *_) = done(of("bfloat16"), macs=1e9).terms
    found = bound(term, h100)
    assert found.compute == pytest.approx(2e9 / 989.4e12)
    assert found.memory == pytest.approx((2 * 100 + 2 * 10 + 50 * 4) / 3.35e12)
    assert found.kind == "compute"
    assert bound(term._replace(macs=1.0), h100).kind == "memory"
    energy = look("roofline", done(of("bfloat16"), macs=1e9), h100)
    time = look("time", done(of("bfloat16"), macs=1e9), h100)
    assert energy.kind == "tdp_estimate"
    assert energy.value == pytest.approx(700 * time.value)
    assert energy.low == pytest.approx(0.6 * energy.value)


def test_a_lens_without_its_numbers_says_nothing():
    assert look("arith45", done(of("bfloat16"))) is None
    assert look("chip", done(of("int8")), device("tpu-v6e")) is None  # no rated power
    assert look("time", done(of("int8")), device("tpu-v6e")) is not None
    with pytest.raises(ValueError, match="lens must be one of bitops, ace"):
        look("joules", done(FLOAT32))
    with pytest.raises(ValueError, match="The lens chip needs a device"):
        look("chip", done(FLOAT32))
    with pytest.raises(ValueError, match="device must be one of v100, a100"):
        device("abacus")
    assert set(TABLES) | set(DEVICES) == set(LENSES)
    assert {"a100", "h100", "h200", "b200", "mi300x", "tpu-v4", "tpu7x"} <= {*names()}
