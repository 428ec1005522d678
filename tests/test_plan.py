"""Plans: filled from an entry, checked, addressed by patterns, described, hashed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats, plan as plans
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.plan import integers, uniform
from adaprec_jax.precision import Dgrad, Forward, Precision, SharedPrecision, Wgrad


def contraction(name, axes=(), roles=("activation", "weight")) -> Contraction:
    return Contraction(
        name=name,
        primitive="dot_general",
        einsum="ab,bc->ac",
        shapes=((2, 3), (3, 4), (2, 4)),
        roles=roles,
        axes=axes,
        macs=24,
        executions=1,
        differentiated=True,
    )


ATTENTION = "Block/Attention/...qhd,...khd->...hqk"
TABLE = Table(
    (
        contraction("bytes,pixels", roles=("activation", "activation")),
        contraction("Dense_0"),
        contraction("Block/Attention/query", axes=(4,)),
        contraction(ATTENTION, axes=(4,), roles=("activation", "activation")),
        contraction("Block/Dense_0", axes=(4,)),
        contraction("Experts", axes=(2, 3)),
        contraction("Dense_0#1"),
    ),
    (),
)
INT2, INT4, INT5, INT8 = (formats.integer(bits) for bits in (2, 4, 5, 8))
BFLOAT16 = formats.get("bfloat16")
SHARED = SharedPrecision(INT2, INT4, INT8)
SEPARATE = Precision(
    Forward(activation=INT2, weight=INT4),
    Dgrad(gradient=BFLOAT16, weight=INT5),
    Wgrad(gradient=BFLOAT16, activation=INT8),
)


def layers(*selected) -> list[bool]:
    return [layer in selected for layer in range(4)]


def test_a_uniform_plan_passes_its_check_and_has_the_plan_axes_of_each_contraction():
    plan = uniform(TABLE, SHARED)
    plans.check(plan, TABLE)
    assert tuple(plan) == TABLE.names
    for c in TABLE.contractions:
        assert {np.shape(leaf) for leaf in jax.tree.leaves(plan[c.name])} == {c.axes}


@pytest.mark.parametrize(
    ("roles", "entry", "expected"),
    [
        (("activation", "weight"), SHARED, SHARED),
        (("activation", "activation"), SHARED, SharedPrecision(INT2, INT2, INT8)),
        (("weight", "weight"), SHARED, SharedPrecision(INT4, INT4, INT8)),
        (("activation", "weight"), SEPARATE, SEPARATE),
        (
            ("activation", "activation"),
            SEPARATE,
            Precision(
                Forward(INT2, INT2), Dgrad(BFLOAT16, INT8), Wgrad(BFLOAT16, INT8)
            ),
        ),
    ],
)
def test_each_operand_takes_the_formats_of_its_own_role(roles, entry, expected):
    assert plans.fill(contraction("any", roles=roles), entry) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("Dense_0", {"Dense_0": True}),
        ("Dense_*", {"Dense_0": True, "Dense_0#1": True}),
        ("*/Dense_0", {"Block/Dense_0": layers(0, 1, 2, 3)}),
        ("**/Dense_0", {"Dense_0": True, "Block/Dense_0": layers(0, 1, 2, 3)}),
        (
            "Block/Attention/**@0",
            {"Block/Attention/query": layers(0), ATTENTION: layers(0)},
        ),
        ("*/Dense_0@-2:", {"Block/Dense_0": layers(2, 3)}),
        ("*/Dense_0@-1", {"Block/Dense_0": layers(3)}),
        ("Experts@1", {"Experts": [[False] * 3, [True] * 3]}),
        (ATTENTION, {ATTENTION: layers(0, 1, 2, 3)}),
        ("first", {"Dense_0": True}),
        ("last", {"Dense_0#1": True}),
    ],
)
def test_a_pattern_means_these_contractions_and_layers(pattern, expected):
    matched = plans.match(pattern, TABLE)
    assert {name: mask.tolist() for name, mask in matched.items()} == expected


def test_the_first_rule_that_matches_a_layer_owns_it():
    owner = plans.assign(("**@0", "Block/**", "first"), TABLE)
    assert owner["Block/Dense_0"].tolist() == [0, 1, 1, 1]
    assert owner["Experts"].tolist() == [[0] * 3, [3] * 3]
    assert (owner["Dense_0"], owner["Dense_0#1"]) == (2, 3)


def test_a_contraction_that_is_called_first_is_addressed_by_its_name():
    table = Table((contraction("a"), contraction("first")), ())
    assert list(plans.match("first", table)) == ["first"]


ENTRY = integers(4, 8)
WRONG = {
    "missing path": (
        lambda: plans.check({"Dense_0": ENTRY}, TABLE),
        r"no entry for the contractions \['bytes,pixels', 'Block/Attention/query'",
    ),
    "unknown path": (
        lambda: plans.check({**uniform(TABLE, ENTRY), "Dense_00": ENTRY}, TABLE),
        r"'Dense_00', which is no contraction; the nearest is \['Dense_0'\]",
    ),
    "shape": (
        lambda: uniform(TABLE, integers(jnp.array([4, 8]), 8)),
        r"activation.mantissa_bits of 'bytes,pixels' has the shape \(2,\), which does "
        r"not broadcast to the plan axes \(\)",
    ),
    "shape of a plan": (
        lambda: plans.check(
            {**uniform(TABLE, ENTRY), "Block/Dense_0": integers(jnp.ones(3, int), 8)},
            TABLE,
        ),
        r"'Block/Dense_0' has the shape \(3,\).* plan axes \(4,\)",
    ),
    "not finite": (
        lambda: plans.check(
            uniform(
                TABLE, ENTRY._replace(weight=INT4._replace(max_value=np.float32("nan")))
            ),
            TABLE,
        ),
        r"weight.max_value of 'Dense_0' is nan",
    ),
    "rule that matches nothing": (
        lambda: plans.match("Dense_7", TABLE),
        r"'Dense_7' matches none of the contractions \['bytes,pixels', 'Dense_0'",
    ),
    "layer that is not there": (
        lambda: plans.match("Block/**@4", TABLE),
        "matches none .* none of their layers",
    ),
    "layers that are no slice": (
        lambda: plans.match("Block/**@last", TABLE),
        "must name layers as an index or a slice after '@'.*'last'",
    ),
    "rule that comes too late": (
        lambda: plans.assign(("**", "first"), TABLE),
        r"'first' has no effect: .*\['\*\*'\]",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_plan_or_a_rule_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_traced_plan_is_checked_for_all_but_its_values():
    def check(entry):
        plans.check(uniform(TABLE, entry), TABLE)
        return entry

    jax.jit(check)(ENTRY)


def test_bits_are_those_of_each_role_and_layer():
    table = Table((contraction("a"), contraction("b", axes=(3,))), ())
    plan = uniform(table, integers(4, 8))
    plan["b"] = plans.fill(table.contractions[1], integers(jnp.array([2, 5, 7]), 8))
    bits = plans.bits(plan)
    assert tuple(bits["a"]) == (4, 4, 8)
    assert bits["b"].weight.tolist() == [2, 5, 7]
    assert bits["b"].gradient.tolist() == [8, 8, 8]


def test_a_description_lists_the_layers_only_where_they_differ():
    described = plans.describe(
        {
            "Block/Dense_0": integers(jnp.array([4, 8]), 8),
            "Dense_0": uniform(TABLE, SEPARATE)["Dense_0"],
        }
    )
    assert described.splitlines() == [
        "Block/Dense_0: activation [int4, int8], weight [int4, int8], gradient int8",
        "Dense_0: forward.activation int2, forward.weight int4, dgrad.gradient "
        "bfloat16, dgrad.weight int5, wgrad.gradient bfloat16, wgrad.activation int8",
    ]


def test_a_digest_depends_on_the_plan_and_not_on_where_it_lives():
    digest = plans.digest(uniform(TABLE, ENTRY))
    assert plans.digest(jax.jit(lambda e: uniform(TABLE, e))(ENTRY)) == digest
    others = [integers(5, 8), SharedPrecision(INT4, INT8, INT8), SEPARATE]
    assert len({digest, *(plans.digest(uniform(TABLE, e)) for e in others)}) == 4
