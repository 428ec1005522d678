"""Bit operations: the published figures, and the same from a plan and a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats, transforms
from adaprec_jax.contractions.table import Contraction, Table, macs_shares
from adaprec_jax.cost import (
    Stored,
    bitops_ratio,
    bytes_per_parameter,
    effective_gbitops,
    narrow_share,
    step_cost,
)
from adaprec_jax.plan import integers, uniform
from adaprec_jax.precision import Dgrad, Forward, Precision, Wgrad
from adaprec_jax.schedules import bits as cyclic_bits

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [(8, 8, 0.0625), (6, 6, 0.035156), (4, 6, 0.020833), (32, 32, 1.0)],
)
def test_static_bits_cost_what_the_papers_state(forward, backward, expected):
    assert round(bitops_ratio(forward, backward), 6) == expected
    assert bitops_ratio([forward] * 3, np.full(3, backward)) == bitops_ratio(
        forward, backward
    )


# Saving over the static schedule of the most bits: CPT's table for ResNet on CIFAR-100
# (first row), the others computed from its published code.
CPT_COSTS = [
    # cycles, min, max, gradient bits, saving in %
    (32, 3, 8, 8, 36.67),
    (32, 3, 6, 6, 30.05),
    (32, 4, 6, 8, 19.96),
    (8, 3, 8, 8, 36.66),
    (8, 3, 6, 6, 30.03),
    (8, 4, 8, 8, 30.10),
]


@pytest.mark.parametrize(("cycles", "low", "high", "gradient", "saving"), CPT_COSTS)
def test_cyclic_precision_saves_what_is_published(cycles, low, high, gradient, saving):
    bits = cyclic_bits("CPT", min_bits=low, max_bits=high, cycles=cycles, steps=64_000)
    ratio = bitops_ratio(bits, gradient) / bitops_ratio(high, gradient)
    assert round(100 * (1 - ratio), 2) == saving


def test_the_cost_of_a_cycle_is_exact_to_the_published_digits():
    bits = cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=32, steps=64_000)
    assert round(bitops_ratio(bits, 8), 6) == 0.039579
    bits = cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=8, steps=64_000)
    assert round(bitops_ratio(bits, 8), 6) == 0.039586
    assert f"{bits.mean():.4f}" == "5.4997"


def contraction(name, macs, executions, axes=()) -> Contraction:
    return Contraction(
        name=name,
        primitive="dot_general",
        einsum="ab,bc->ac",
        shapes=((2, 3), (3, 4), (2, 4)),
        roles=("activation", "weight"),
        axes=axes,
        macs=macs,
        executions=executions,
        differentiated=True,
    )


# A stack of two layers weighs 2 * 30, the last contraction 40.
TABLE = Table((contraction("Stack", 30, 2, (2,)), contraction("Head", 40, 1)), ())


@pytest.mark.parametrize(("forward", "backward"), [(8, 8), (3, 8), (16, 5)])
def test_a_uniform_plan_costs_its_bitops_ratio(forward, backward):
    cost = step_cost(TABLE, uniform(TABLE, integers(forward, backward)))
    np.testing.assert_allclose(cost, bitops_ratio(forward, backward), rtol=1e-6)


def test_each_product_layer_and_contraction_counts_by_its_work():
    bfloat16, fp8 = formats.get("bfloat16"), formats.get("float8_e4m3fn")
    plan = {
        "Stack": integers(jnp.array([4, 8]), 8),
        "Head": Precision(
            Forward(fp8, fp8), Dgrad(bfloat16, fp8), Wgrad(bfloat16, bfloat16)
        ),
    }
    layers = (4 * 4 + 8 * 4 + 8 * 4) / 2 + (8 * 8 + 8 * 8 + 8 * 8) / 2
    head = 8 * 8 + 16 * 8 + 16 * 16
    expected = (0.6 * layers + 0.4 * head) / (3 * 32 * 32)
    np.testing.assert_allclose(step_cost(TABLE, plan), expected, rtol=1e-6)


def test_the_cost_follows_a_traced_plan_without_compiling_again():
    cost = jax.jit(lambda bits: step_cost(TABLE, uniform(TABLE, integers(bits, 8))))
    for bits in range(2, 9):
        np.testing.assert_allclose(cost(jnp.int32(bits)), bitops_ratio(bits, 8), 1e-6)
    assert cost._cache_size() == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Table((contraction("Loop", 8, None),), ()), r"\['Loop'\] run inside a while"),
        (Table((), ()), "holds no multiplication"),
    ],
)
def test_a_cost_that_cannot_be_counted_is_an_error(table, message):
    with pytest.raises(ValueError, match=message):
        step_cost(table, uniform(table, integers(8, 8)))


# Of 64,000 steps in 8 cycles: mean bits from 3 to 8, and the saving in % over the
# static schedule of the most bits, for 3-8/8, 3-6/6 and 4-8/8.
SUITE = {
    "CR": (5.4997, 36.66, 30.03, 30.10),
    "CT": (5.5001, 36.66, 30.03, 30.09),
    "LR": (5.4997, 37.24, 30.41, 30.47),
    "LT": (5.5001, 37.24, 30.40, 30.47),
    "ER": (6.8342, 17.76, 13.71, 14.19),
    "ETH": (6.8346, 17.75, 13.71, 14.18),
    "ETV": (5.5000, 36.52, 29.91, 29.99),
    "RR": (3.8055, 60.10, 50.29, 49.89),
    "RTH": (3.8058, 60.10, 50.28, 49.88),
    "RTV": (5.5000, 36.27, 29.75, 29.83),
}


@pytest.mark.parametrize("name", SUITE)
def test_the_ten_cyclic_schedules_cost_what_their_code_gives(name):
    mean, *savings = SUITE[name]
    run = {"cycles": 8, "steps": 64_000}
    bits = cyclic_bits(name, min_bits=3, max_bits=8, **run)
    assert bits.mean() == pytest.approx(mean, abs=6e-5)
    for (low, high), saving in zip([(3, 8), (3, 6), (4, 8)], savings, strict=True):
        bits = cyclic_bits(name, min_bits=low, max_bits=high, **run)
        ratio = bitops_ratio(bits, high) / bitops_ratio(high, high)
        assert round(100 * (1 - ratio), 2) == pytest.approx(saving, abs=0.011)


# FracTrain's choices (3, 6) and (6, 12) with weights of 4 bits, by hand: 3 * 4 forward,
# 6 * 4 dgrad, 3 * 6 wgrad.
@pytest.mark.parametrize(
    ("activation", "gradient", "operations"),
    [(3, 6, 12 + 24 + 18), (6, 12, 24 + 48 + 72)],
)
def test_weights_may_have_bits_of_their_own(activation, gradient, operations):
    found = bitops_ratio(activation, gradient, weight_bits=4)
    assert found == operations / (3 * 32**2)


def test_effective_bit_operations_are_those_of_the_network_s_multiplications():
    # Two layers of an MLP, 64 x 32 and 32 x 10, on a batch of 5: 8 by 8 bits forward,
    # dgrad and wgrad at the first step, 4 by 4 and twice 4 by 8 at the second.
    macs = 5 * (64 * 32 + 32 * 10)
    first, second = macs * 3 * 64, macs * (16 + 32 + 32)
    found = effective_gbitops(macs, [8, 4], 8)
    assert found == pytest.approx((first + second) / 1e9, rel=1e-12)
    assert effective_gbitops(macs, 8, 8, steps=7) == pytest.approx(7 * first / 1e9)


def test_effective_bit_operations_fall_as_the_imagenet_table_says():
    # CPT 4-8/8 for ResNet-18 on ImageNet: 2.86e9 to 1.99e9, that is 30.4 % less.
    bits = cyclic_bits("CPT", min_bits=4, max_bits=8, cycles=32, steps=64_000)
    ratio = effective_gbitops(10**9, bits, 8)
    ratio /= effective_gbitops(10**9, 8, 8, steps=64_000)
    assert 100 * (1 - ratio) == pytest.approx(30.4, abs=0.4)


@pytest.mark.parametrize(
    ("macs", "bits", "steps"), [(-1, 8, 3), (10, 8, None), (10, [8, 8], 3)]
)
def test_a_run_of_unknown_length_has_no_bit_operations(macs, bits, steps):
    with pytest.raises(ValueError, match="bits for each step or the number of steps"):
        effective_gbitops(macs, bits, 8, steps=steps)


def test_bytes_per_parameter_are_those_of_fp8_lm():
    usual = bytes_per_parameter(weight=16, gradient=16, moments=32 + 32, master=32)
    fp8_lm = bytes_per_parameter(gradient=8, moments=8 + 16, master=16)
    assert (usual, fp8_lm) == (16, 6)
    fp8, half = formats.get("float8_e4m3fn"), formats.get("float16")
    moments = transforms.fp8_lm()
    assert bytes_per_parameter(gradient=fp8, master=half, moments=moments) == 6


def test_bytes_per_parameter_count_the_numbers_of_each_group():
    # COAT: twice 8 bits, and a scale, an exponent and a centre of 4 bytes for 128.
    coat = 2 * (1 + 3 * 4 / 128)
    assert bytes_per_parameter(master=32, moments=transforms.coat()) == 4 + coat
    assert bytes_per_parameter(moments=transforms.coat(16)) == 2 * (1 + 12 / 16)
    # A scale alone for 64, and none for the whole tensor.
    int4 = formats.get("int4")
    moments = {"mu": Stored(int4, 64), "nu": Stored(int4)}
    assert bytes_per_parameter(moments=moments) == (0.5 + 4 / 64) + 0.5


@pytest.mark.parametrize(
    ("kept", "fault"),
    [
        (-8, "at least 0, a format, or a mapping to how each is stored, got -8"),
        ({"mu": 8}, "a Stored or a Moment in the mapping 'gradient', got 8"),
    ],
)
def test_what_is_kept_in_no_known_way_is_told(kept, fault):
    with pytest.raises(ValueError, match=fault):
        bytes_per_parameter(weight=8, gradient=kept)


def test_a_product_is_narrow_if_both_operands_are():
    fp4, fp8 = formats.get("float4_e2m1fn"), formats.get("float8_e5m2")
    bfloat16 = formats.get("bfloat16")
    # A batch of 5 through 64 x 32, 32 x 10: the first layer has 2048 of 2368.
    layers = Table(
        (contraction("Dense_0", 5 * 64 * 32, 1), contraction("Dense_1", 5 * 320, 1)), ()
    )
    plan = {
        "Dense_0": Precision(Forward(fp4, fp4), Dgrad(fp8, fp4), Wgrad(fp8, bfloat16)),
        "Dense_1": Precision(Forward(fp8, fp4), Dgrad(fp4, fp4), Wgrad(fp4, fp4)),
    }
    four = (2048 * 1 + 320 * 2) / (3 * 2368)
    eight = (2048 * 2 + 320 * 3) / (3 * 2368)
    for bits, share in ((3, 0.0), (4, four), (8, eight), (16, 1.0)):
        found = jax.jit(narrow_share, static_argnums=(0, 2))(layers, plan, bits)
        np.testing.assert_allclose(found, share, rtol=1e-6)


def test_the_layers_of_a_stack_are_narrow_each_for_itself():
    plan = {
        "Stack": integers(jnp.array([4, 8]), 4),
        "Head": integers(8, 4),
    }
    np.testing.assert_allclose(narrow_share(TABLE, plan, 4), 0.3, rtol=1e-6)
    np.testing.assert_allclose(macs_shares(TABLE), [0.3, 0.3, 0.4])


@pytest.mark.parametrize("count", [macs_shares, lambda t: narrow_share(t, {}, 4)])
def test_shares_of_work_that_cannot_be_counted_are_an_error(count):
    with pytest.raises(ValueError, match=r"\['Loop'\] run inside a while"):
        count(Table((contraction("Loop", 8, None),), ()))
