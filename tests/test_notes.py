"""What a schedule cannot do in its run is told, and a real one cannot do it."""

import jax
import jax.numpy as jnp
import pytest

from adaprec_jax import plan as plans
from adaprec_jax.contractions.weights import Weight
from adaprec_jax.runs import kinds
from adaprec_jax.runs.build import make_schedule
from adaprec_jax.runs.config import (
    APT,
    PFQ,
    Accordion,
    Maturity,
    MuPPET,
    TwoThreshold,
)
from adaprec_jax.runs.load import bundled, load
from adaprec_jax.runs.notes import first_decision, notes
from adaprec_jax.runs.overrides import apply
from adaprec_jax.schedules import observed
from adaprec_jax.stats import empty
from adaprec_jax.testing import table

INT4 = '{"kind":"shared","activation":"int4","weight":"int4"}'
INT8 = '{"kind":"shared","activation":"int8","weight":"int8"}'
FLOAT8 = INT8.replace("int8", "float8_e5m2")


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ('"deficit","length":0', ["length is 0: there is no deficit."]),
        ('"deficit","length":9', []),
        (
            '"accordion","decays":[600,700]',
            ["decays ([600, 700]) all lie beyond the last of 600 steps."],
        ),
        ('"accordion","decays":[599,700]', []),
        (
            '"accordion","window":300',
            ["window: no decision can fall before step 600, and the run has 600 steps"],
        ),
        ('"accordion","window":299', []),
        ('"pfq","every":601', ["every and window: no decision can fall before step 3"]),
        ('"pfq","every":119', []),
        ('"muppet","every":601', ["every, resolution and violations: no decision can"]),
        ('"maturity","window":100', ["every, window and patience: no decision can"]),
        ('"two_threshold","patience":60', ["every and patience: no decision can fall"]),
        ('"two_threshold","patience":59', []),
        ('"adapt_kummer","min_lookback":600,"max_lookback":900', ["min_lookback: no"]),
        ('"snip","every":600', ["every: no decision can fall before step 600, and"]),
        ('"cpt","min_bits":4,"max_bits":4', ["min_bits and max_bits are both 4."]),
        ('"pfq","forward_bits":[4,4],"gradient_bits":[8,8]', ["forward_bits and gra"]),
        ('"pfq","forward_bits":[4,4],"gradient_bits":[6,8]', []),
        ('"adaptive_loss_scale","largest_scale":1.5', ["largest_scale (1.5) and larg"]),
        ('"snip","low":"int8","high":"int8"', ["low and high are the same."]),
        (
            '"snip","low":"float8_e4m3fn","high":"float<4,3,fn>"',
            ["low and high are the same."],
        ),
        (
            f'"piecewise","boundaries":[9],"precisions":[{INT4},{INT4}]',
            ["precisions are all the same."],
        ),
        (f'"piecewise","boundaries":[9],"precisions":[{INT4},{INT8}]', []),
        *(
            (f'{kind},"low":{low},"high":{high}', said)
            for kind in ('"late_switch"', '"warmup","warmup_steps":9', '"accordion"',
                         '"maturity"', '"sqrt3"', '"deficit","length":9')
            for low, high, said in (
                (INT4, INT8, []),
                (INT8, INT4, ["low has more bits than high."]),
                (INT8, INT8, ["low and high are the same."]),
                (INT8, FLOAT8, []),
            )
        ),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_told_in_one_line(schedule, said):
    found = notes(apply(load("digits-cpt"), [f'schedule={{"kind":{schedule}}}']))
    assert len(found) == len(said)
    for line, start in zip(found, said, strict=True):
        assert line.startswith(f"schedule.{start}")
        assert "\n" not in line


def test_a_part_is_named_by_its_path():
    constant = f'{{"kind":"constant","precision":{INT4}}}'
    rule = '{"pattern":"first","schedule":{"kind":"deficit","length":0}}'
    setting = f'{{"kind":"per_layer","default":{constant},"rules":[{rule}]}}'
    [line] = notes(apply(load("digits-cpt"), [f"schedule={setting}"]))
    assert line.startswith("schedule.rules.0.schedule.length is 0")


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_config_needs_no_note(name):
    assert notes(load(name)) == ()


def test_every_closed_loop_has_a_first_decision():
    for kind, model in kinds.models().items():
        known = model.loop == "closed"
        if known or not any(f.is_required() for f in model.model_fields.values()):
            assert (first_decision(model()) is not None) == known, kind


CONTRACTIONS = table()


def shown(schedule, loss: float):
    """Statistics in which half of every tensor underflows."""
    nothing = empty(CONTRACTIONS, schedule.reads)
    tensors = {
        path: {
            role: jax.tree.map(jnp.ones_like, sums)._replace(
                elements=jnp.full_like(sums.elements, 3.0)
            )
            for role, sums in roles.items()
        }
        for path, roles in nothing.tensors.items()
        if schedule.reads.quantities
    }
    return nothing._replace(
        loss=jnp.float32(loss), finite=jnp.bool_(True), tensors=tensors
    )


def first_change(schedule, gradient, steps: int) -> int | None:
    """The first step with another plan than that of step 0."""
    update = jax.jit(schedule.update)
    look = jax.jit(lambda *args: observed(schedule, *args))
    state, stats = schedule.init(CONTRACTIONS), empty(CONTRACTIONS, schedule.reads)
    plan, state = update(jnp.int32(0), stats, state)
    first = plans.digest(plan)
    for step in range(1, steps):
        ones = {
            c.name: jnp.ones(c.parameter_shape, jnp.float32)
            for c in CONTRACTIONS.contractions
            if c.parameter
        }
        weights = {
            path: Weight(one, jnp.float32(gradient(step - 1)) * one, one)
            for path, one in ones.items()
        }
        state = look(jnp.int32(step - 1), weights, state)
        plan, state = update(jnp.int32(step), shown(schedule, 1.0), state)
        if plans.digest(plan) != first:
            return step
    return None


@pytest.mark.parametrize(
    ("settings", "gradient"),
    [
        (PFQ(every=3, window=4), lambda step: 1.0),
        (Accordion(window=3), lambda step: 1.0),
        (Maturity(every=2, window=2, patience=2), lambda step: 1.0),
        (TwoThreshold(start_bits=5, every=3, patience=2), lambda step: 1.0),
        (APT(every=4), lambda step: 1e-4),
        (
            MuPPET(every=2, resolution=2, violations=2, beta=0.0),
            # Two that all but cancel, and then some that agree.
            lambda step: {1: 1.0, 3: -0.9}.get(step, 1.0),
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_first_decision_of_a_schedule_that_hastens_falls_there(settings, gradient):
    _, first = first_decision(settings)
    assert first_change(make_schedule(settings, 100), gradient, 40) == first
