import json
import sys

import jax
import jax.numpy as jnp
import pytest

from adaprec_jax import cost, plan as plans, stats
from adaprec_jax.cli import main
from adaprec_jax.runs import overrides
from adaprec_jax.runs.build import build, make_moments
from adaprec_jax.runs.config import LateSwitch
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.expected import (
    bytes_per_parameter,
    changes,
    decay,
    mean_cost,
    narrow_share,
    pieces,
)
from adaprec_jax.runs.load import load

UNEVEN = 'schedule.precision.weight="int4"'
RR = 'schedule={"kind": "cyclic", "shape": "RR", "min_bits": 3, "max_bits": 8}'
INT4_FORWARD = '{"kind": "separate", "forward": {"activation": "int4"}}'


@pytest.mark.parametrize(
    ("name", "settings", "cost"),
    [
        ("digits-float32", [], 1.0),
        ("digits-int8", [], 8 * 8 / 32**2),
        # 4 bits by 8 in forward, 8 by 4 in dgrad, 8 by 8 in wgrad.
        ("digits-int8", [UNEVEN], (32 + 32 + 64) / 3 / 32**2),
        (
            "digits-int8",
            [f"schedule.precision={INT4_FORWARD}"],
            (4 * 32 + 2 * 32**2) / 3 / 32**2,
        ),
        # Of the published code, 64,000 steps in 8 cycles.
        ("digits-int8", [RR, "steps=64000"], pytest.approx(0.024935, abs=6e-7)),
        # A quarter of the run each: 3, 4, 6, 8 bits forward with 6, 6, 8, 8 backward.
        (
            "digits-step-list",
            [],
            ((9 + 36) + (16 + 48) + (36 + 96) + (64 + 128)) / 4 / 3 / 32**2,
        ),
        ("fashion-mnist-warmup", [], 0.1 / 4 + 0.9 * (16 + 64) / 3 / 32**2),
        ("digits-cyclic-cr", [], pytest.approx(mean_cost(load("digits-cpt")))),
        # E2M1 and E5M2 for 492 steps of 600, then bfloat16.
        (
            "shakespeare-late-switch",
            [],
            0.82 * (4 * 4 + 2 * 8 * 4) / 3 / 32**2 + 0.18 * 16**2 / 32**2,
        ),
        # Both operands of attention are activations: it depends on the layers.
        ("shakespeare-fp8", [UNEVEN], None),
        ("digits-two-threshold", [], None),
    ],
)
def test_the_cost_of_a_config_is_known_before_it_runs(name, settings, cost):
    found = mean_cost(overrides.apply(load(name), settings))
    known = isinstance(cost, float)
    assert found == (pytest.approx(cost) if known else cost)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("digits-int8", ""),
        ("shakespeare-late-switch", "bfloat16 from step 492"),
        ("digits-cpt", "int3 to int8 in 6 cycles"),
        ("digits-two-threshold", "int3 to int8 by underflow_fraction every 20 steps"),
        (
            "digits-snip",
            "float8_e4m3fn, and 75% of the products float4_e2m1fn by estimated loss",
        ),
        ("digits-ampa", "int3 to int8 by sensitivity, 5 bits in the mean"),
        (
            "digits-sqrt3",
            "activation int4, weight int4, gradient int2, backward bfloat16 once a "
            "layer's gradient is in the noise",
        ),
        (
            "digits-adapt-kummer",
            "fixed<12,8> by weights and diversity of gradients",
        ),
        ("digits-ldp", "int3 to int8, learned, 5 bits in the mean"),
        (
            "digits-adaptive-loss-scale",
            "float16 gradients, scaled by up to 1024 for each layer",
        ),
        ("digits-pfq", "int4, int6, int8, each when the loss of 20 steps levels off"),
        (
            "digits-muppet",
            "int12, int14, int16, float32, as the diversity of gradients falls",
        ),
        ("digits-mor", "float8_e4m3fn where it errs by at most 0.03, else bfloat16"),
    ],
)
def test_how_formats_change_is_said_in_a_phrase(name, phrase):
    experiment = load(name)
    assert changes(experiment.schedule, experiment.steps) == phrase


@pytest.mark.parametrize(
    ("name", "cost"), [("digits-int8", 0.0625), ("digits-two-threshold", None)]
)
def test_show_says_the_cost(name, cost, capsys, monkeypatch):
    said = []
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["adaprec", "show", name, *options])
        with pytest.raises(SystemExit):
            main()
        said.append(capsys.readouterr().out)
    text, tree = said
    assert json.loads(tree)["cost"] == cost
    assert json.loads(tree)["share_8_bits"] == (None if cost is None else 1)
    assert json.loads(tree)["bytes_per_parameter"] == 16
    assert "\nbytes_per_parameter 16" in text
    assert f"cost {'depends on' if cost is None else cost}" in text


@pytest.mark.parametrize(
    ("name", "settings", "four", "eight"),
    [
        ("digits-float32", [], 0, 0),
        ("digits-int8", [], 0, 1),
        ("digits-int3", [], 1 / 3, 1),
        # E2M1 in forward for 492 steps of 600, then bfloat16.
        ("shakespeare-late-switch", [], 0.82 / 3, 0.82),
        ("digits-two-threshold", [], None, None),
        ("digits-int8", [UNEVEN], 0, 1),
        ("shakespeare-fp8", [UNEVEN], None, None),
    ],
)
def test_the_shares_of_narrow_products_are_known_before_it_runs(
    name, settings, four, eight
):
    experiment = overrides.apply(load(name), settings)
    for bits, share in ((4, four), (8, eight)):
        found = narrow_share(experiment, bits)
        assert found == (share if share is None else pytest.approx(share))


HYSTERESIS = 'optimizer.hysteresis={"format": "int8"}'
RESETS = 'optimizer.oscillation_reset={"format": "int8", "start": 0}'
AVERAGING = 'optimizer.averaging={"start": 0}'


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], 4 + 4 + 2 * 4),
        (["optimizer.kind=sgd"], 4 + 4),
        (["optimizer.kind=momentum"], 4 + 4 + 4),
        (
            ["optimizer.kind=adamw", "parameter_dtype=bfloat16"],
            2 + 2 + 2 * 4 + 4,  # and the master
        ),
        ([AVERAGING], 16 + 4),
        ([HYSTERESIS], 16 + 4 + 4),  # master and last rounded value
        ([HYSTERESIS, "parameter_dtype=bfloat16"], 2 + 2 + 2 * 4 + 4 + 4 + 4),
        ([RESETS], 16 + 4 + 4),
        ([RESETS, HYSTERESIS, AVERAGING, "optimizer.kind=sgd"], 8 + 8 + 8 + 4),
    ],
)
def test_bytes_per_parameter_are_those_of_the_state(settings, expected):
    tiny = ["task.kind=teacher", "task.size=64", "model.hidden=[4]", "batch_size=8"]
    experiment = overrides.apply(load("digits-cpt"), [*tiny, *settings])
    with jax.numpy_dtype_promotion("standard"):  # as Flax widens to the inputs
        built = build(experiment)
        state = jax.eval_shape(built.init, built.key)
    kept = [
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves((state.params, state.params, state.opt_state))
        if leaf.ndim >= 2
    ]  # matrices: parameters, gradients like them, and what the optimizer keeps
    matrices = [leaf.size for leaf in jax.tree.leaves(state.params) if leaf.ndim >= 2]
    assert sum(kept) / sum(matrices) == expected
    assert bytes_per_parameter(experiment) == expected


OWN = {
    "kind": "own",
    "first": {"format": "int4", "group": 32},
    "second": {"format": "float<5,2>", "group": 64, "expand": True},
}


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        ({"kind": "fp8_lm"}, 1 + 2),
        # A scale, an exponent and a centre, 4 bytes each, for a group.
        ({"kind": "coat"}, 2 * (1 + 12 / 128)),
        ({"kind": "coat", "group": 16}, 2 * (1 + 12 / 16)),
        ({"kind": "own"}, 4 + 4),  # float32, unless it is said
        (OWN, (0.5 + 4 / 32) + (1 + 12 / 64)),
    ],
)
def test_narrow_moments_count_by_the_formats_that_they_are_stored_in(moments, expected):
    settings = [f"optimizer.moments={json.dumps(moments)}"]
    experiment = overrides.apply(load("digits-int8"), settings)
    assert bytes_per_parameter(experiment) == 4 + 4 + expected
    made = make_moments(experiment.optimizer.moments)
    assert cost.bytes_per_parameter(moments=made) == expected


WSD = json.dumps({"kind": "warmup_stable_decay", "peak": 2e-3, "decay_steps": 150})
AT_DECAY = json.dumps({"kind": "late_switch", "at": "decay", "fraction": 0.1})
BY_LAYER = json.dumps(
    {
        "kind": "per_layer",
        "rules": [{"pattern": "last", "schedule": {"kind": "float32"}}],
        "default": json.loads(AT_DECAY),
    }
)


@pytest.mark.parametrize(
    ("rate", "step"),
    [
        (WSD, 450),
        ('{"kind": "warmup_cosine", "peak": 2e-3, "warmup_steps": 30}', 30),
        ('{"kind": "cosine", "peak": 2e-3}', None),
        ('{"kind": "constant", "peak": 2e-3}', None),
        (WSD.replace("150", "600"), None),
    ],
)
def test_a_switch_can_come_where_the_learning_rate_begins_to_fall(rate, step):
    settings = [f"optimizer.learning_rate={rate}", f"schedule={AT_DECAY}"]
    if step is None:
        with pytest.raises(
            InputError, match=r"schedule\.at: decay needs a learning rat"
        ):
            overrides.apply(load("digits-int8"), settings)
        return
    experiment = overrides.apply(load("digits-int8"), settings)
    assert decay(experiment) == step
    said = changes(experiment.schedule, 600, decay(experiment))
    assert said == f"bfloat16 from step {step}"
    cost = (step + (600 - step) / 4) / 600  # float32, then bfloat16
    assert mean_cost(experiment) == pytest.approx(cost)


def test_a_switch_at_the_decay_reaches_the_run_through_rules():
    settings = [f"optimizer.learning_rate={WSD}", f"schedule={BY_LAYER}"]
    built = build(overrides.apply(load("digits-int8"), settings))
    schedule, table = built.program.schedule, built.program.table
    state = schedule.init(table)
    for step, bits in ((449, 32), (450, 16)):
        plan, _ = schedule.update(jnp.int32(step), stats.empty(table), state)
        assert {int(b) for b in jax.tree.leaves(plans.bits(plan)["Dense_0"])} == {bits}
        assert {int(b) for b in jax.tree.leaves(plans.bits(plan)["Dense_1"])} == {32}


def test_a_switch_at_a_decay_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="needs one that does"):
        pieces(LateSwitch(at="decay"), 100)
