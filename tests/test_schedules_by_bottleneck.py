"""Low precision where the roofline says that it pays, worked out by hand."""

import sys

import jax
import jax.numpy as jnp
import pytest

from adaprec_jax import formats
from adaprec_jax.cli import main
from adaprec_jax.contractions import contraction_table
from adaprec_jax.cost.bottleneck import seconds
from adaprec_jax.cost.devices import device
from adaprec_jax.plan import bits
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.runs import overrides
from adaprec_jax.runs.config import ByBottleneck
from adaprec_jax.runs.costing import foreseen_cost
from adaprec_jax.runs.load import load
from adaprec_jax.schedules import by_bottleneck
from adaprec_jax.stats import empty


def shared(name):
    return SharedPrecision(*[formats.get(name)] * 3)


FP8, BF16 = shared("float8_e4m3fn"), shared("bfloat16")


def layers(rows):
    """A square layer of 4096, and one that maps 64 numbers to as many."""

    def fn(params, x):
        return x[:, :64] @ params["small"], x @ params["large"]

    params = {
        "large": jax.ShapeDtypeStruct((4096, 4096), jnp.float32),
        "small": jax.ShapeDtypeStruct((64, 64), jnp.float32),
    }
    return contraction_table(fn, params, jax.ShapeDtypeStruct((rows, 4096), "float32"))


def decided(schedule, table):
    plan, _ = schedule.update(jnp.int32(0), empty(table), schedule.init(table))
    return {name: int(entry.weight) for name, entry in bits(plan).items()}


def test_a_large_layer_is_lowered_and_one_that_only_writes_is_not():
    table = layers(8192)
    found = decided(by_bottleneck("h100", FP8, BF16, min_saving=0.4), table)
    assert found == {"large": 8, "small": 16}
    # Large: 2 x 8192 x 4096^2 operations; half the time in FP8, three times over.
    large = next(c for c in table.contractions if c.name == "large")
    h100 = device("h100")
    for entry, rate in ((FP8, 1978.9e12), (BF16, 989.4e12)):
        expected = 3 * 2 * 8192 * 4096**2 / rate
        assert seconds(large, entry, h100) == pytest.approx(expected, rel=1e-3)
    # Small: results of 4 bytes weigh more than what FP8 saves of the operands.
    small = next(c for c in table.contractions if c.name == "small")
    x, w = 8192 * 64, 64 * 64
    for entry, size in ((FP8, 1), (BF16, 2)):
        read = size * ((x + w) + (x + w) + (x + x))
        written = 4 * (x + x + w)
        expected = (read + written) / 3.35e12
        assert seconds(small, entry, h100) == pytest.approx(expected, rel=1e-6)


def test_where_the_chip_gains_nothing_nothing_is_lowered():
    # FP8 has the rate of bfloat16 on a TPU v6e, and large layers are bound by it.
    found = decided(by_bottleneck("tpu-v6e", FP8, BF16, min_saving=0.4), layers(8192))
    assert found == {"large": 16, "small": 16}
    # No rate for float32 is published there: nothing is said to pay.
    wide = by_bottleneck("tpu-v6e", FP8, shared("float32"))
    assert set(decided(wide, layers(64)).values()) == {32}


def test_the_config_becomes_the_schedule_and_is_known_before_it_runs():
    chosen = overrides.apply(
        load("digits-int8"), ['schedule={"kind": "by_bottleneck", "min_saving": 0.3}']
    )
    assert isinstance(chosen.schedule, ByBottleneck)
    spent = foreseen_cost(chosen)
    assert spent.basis == "foreseen"
    assert {t.second.name for t in spent.done.terms} <= {"float8", "bfloat16"}


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("schedule.device=abacus", "device must be one of v100, a100"),
        ("schedule.min_saving=2", "min_saving"),
    ],
)
def test_what_is_wrong_is_said_before_jax(setting, fault, monkeypatch, capsys):
    arguments = ["show", "digits-int8", "--set", "schedule.kind=by_bottleneck"]
    monkeypatch.setattr(sys, "argv", ["adaprec", *arguments, "--set", setting])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("abacus", FP8, BF16, 0.1), "device must be one of"),
        (("h100", FP8, BF16, 1.0), "min_saving must be from 0 to below 1"),
    ],
)
def test_arguments_out_of_range_are_told(arguments, fault):
    *given, saving = arguments
    with pytest.raises(ValueError, match=fault):
        by_bottleneck(*given, min_saving=saving)
