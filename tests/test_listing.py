import json
import sys

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs import overrides
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.listing import listing
from adaprec_jax.runs.load import load

RULES = json.dumps(
    {
        "kind": "per_layer",
        "rules": [{"pattern": "blocks/up@0", "schedule": {"kind": "float32"}}],
        "default": {"kind": "cpt", "cycles": 4},
    }
)


def test_show_lists_every_contraction_with_its_precision(capsys, monkeypatch):
    arguments = ["adaprec", "show", "digits-cpt", "--contractions"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == [
        "Dense_0",
        "dot_general ab,bc->ac, activation x weight, (64, 64) x (64, 64) -> (64, 64)",
        "262,144 multiply-accumulates, executions per micro-batch: 1",
        "at first activation int3, weight int3, gradient int8",
        "later int3 to int8 in 6 cycles",
    ]
    assert lines[5] == "Dense_1"


def test_the_listing_as_json_needs_no_data(capsys, monkeypatch, tmp_path):
    folder = f"task.folder={tmp_path}"
    arguments = ["adaprec", "show", "shakespeare-fp8", "--set", folder]
    monkeypatch.setattr(sys, "argv", [*arguments, "--contractions", "--json"])
    with pytest.raises(SystemExit):
        main()
    found = json.loads(capsys.readouterr().out)
    listed = {line["name"]: line for line in found["contractions"]}
    assert len(listed) == 7
    assert listed["blocks/up"]["axes"] == [2]
    assert listed["blocks/up"]["executions"] == 2
    assert listed["head"]["macs"] == 32 * 128 * 128 * 256
    assert "float8_e5m2" in listed["head"]["first"]
    assert found["not_reached"] == []


def test_layers_of_one_contraction_may_have_schedules_of_their_own():
    lines = listing(overrides.apply(load("shakespeare-fp8"), [f"schedule={RULES}"]))
    by_name = {line.contraction.name: line for line in lines.lines}
    up = by_name["blocks/up"]
    assert up.first.startswith("activation [float32, int3]")
    assert up.later == by_name["head"].later == "int3 to int8 in 4 cycles"


def test_a_rule_that_matches_nothing_is_one_sentence():
    wrong = RULES.replace("blocks/up@0", "block/**")
    experiment = overrides.apply(load("shakespeare-fp8"), [f"schedule={wrong}"])
    with pytest.raises(InputError, match=r"The rule 'block/\*\*' matches none"):
        listing(experiment)


def test_the_cost_of_rules_by_layer_is_known_with_the_layers(capsys, monkeypatch):
    int8 = {"kind": "shared", "activation": "int8", "weight": "int8"}
    schedule = {
        "kind": "per_layer",
        "rules": [{"pattern": "last", "schedule": {"kind": "float32"}}],
        "default": {"kind": "warmup", "warmup_steps": 150, "low": int8},
    }
    settings = ["--set", f"schedule={json.dumps(schedule)}"]
    said = []
    for options in ([], ["--contractions"], ["--contractions", "--json"]):
        arguments = ["adaprec", "show", "digits-int8", *settings, *options]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit):
            main()
        said.append(capsys.readouterr().out)
    plain, listed, tree = said
    known = "\ncost known after `adaprec show --contractions` or `adaprec plot` "
    assert known in plain
    [first, last] = [c["macs"] for c in json.loads(tree)["contractions"]]
    # bfloat16 at first, for 150 of 600 steps; then 8 by 8, and 8 by 32 twice.
    narrow = (150 * 16**2 + 450 * (8 * 8 + 2 * 8 * 32) / 3) / 600
    expected = (first * narrow / 32**2 + last) / (first + last)
    assert json.loads(tree)["cost"] == pytest.approx(expected, rel=1e-5)
    macs = 600 * (first + last)
    gbitops = json.loads(tree)["gbitops"]
    assert gbitops == pytest.approx(expected * 3 * 32**2 * macs / 1e9, rel=1e-5)
    assert f"\ncost {expected:.4g} (bit operations; float32 is 1)" in listed


def test_a_listing_says_nothing_of_a_cost_that_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["adaprec", "show", "digits-pfq", "--contractions"]
    )
    with pytest.raises(SystemExit):
        main()
    listed = capsys.readouterr().out
    assert "\ncost" not in listed
    assert "  later int4, int6, int8, each when the loss" in listed  # int3 is at first
