import json
import sys

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs import overrides
from adaprec_jax.runs.expected import changes, mean_cost
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
    assert f"cost {'depends on' if cost is None else cost}" in text
