import json

import numpy as np
import pytest

from adaprec_jax.runs import demo, overrides
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load

HALVES = (
    'schedule={"kind": "piecewise", "boundaries": [20], "precisions": ['
    '{"kind": "shared", "weight": "int4"}, {"kind": "shared", "weight": "int8"}]}'
)
SHORT = ["steps=40", "steps_per_dispatch=20", "evaluate_every=40", "model.hidden=[8]"]


@pytest.fixture
def short(monkeypatch):
    """Shortens the bundled configs of the demo."""

    def loaded(name: str):
        given = load(name)
        cycles = ["schedule.cycles=2"] if given.schedule.kind == "cpt" else []
        return overrides.apply(given, [*SHORT, *cycles])

    monkeypatch.setattr(demo, "load", loaded)


@pytest.mark.slow
def test_the_demo_prints_a_table_and_what_it_compiled(short, tmp_path, capsys):
    more = {"halves": overrides.apply(load("digits-int8"), [HALVES, *SHORT])}
    demo.demo(seeds=2, out=tmp_path, more=more, as_json=False)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    arms = ["float32", "8 bit", "5 bit", "3 bit", "CPT", "shuffled CPT"]
    assert max(map(len, lines[:-1])) < 80
    table = lines[3:11]
    assert [line[:14].strip() for line in table] == [*arms, "two thresholds", "halves"]
    assert [line.split()[-1] for line in table[:2]] == ["1.0000", "0.0625"]
    assert any(line.startswith("CPT ") and "3-8 bits" in line for line in lines[11:])
    counts = [line for line in lines if "compilation" in line]
    assert counts[0].startswith("1 compilation, 12 runs, 0 to ")
    assert counts[1].startswith("1 compilation, 2 runs, ")
    assert "12 runs 40/40" in said.err
    found = json.loads((tmp_path / "demo.json").read_text())
    assert list(found["arms"]) == [*arms, "two thresholds", "halves"]
    assert found["arms"]["halves"]["changes"] == [1, 1]
    # Ten changes in each cycle of 20 steps, less the one before the first step.
    changes = found["arms"]["CPT"]["changes"]
    assert changes[0] == changes[1] == 11
    assert found["arms"]["CPT"]["cost"] == pytest.approx(
        found["arms"]["shuffled CPT"]["cost"]
    )


def test_an_arm_needs_a_name_of_its_own(tmp_path):
    for name in ("CPT", ""):
        more = {name: load("digits-int8")}
        with pytest.raises(InputError, match=f"name of its own, got '{name}'"):
            demo.demo(seeds=2, out=tmp_path, more=more, as_json=False)


def test_the_arms_differ_in_nothing_but_their_schedules():
    arms = {**demo.tabulated(), **demo.controlled()}
    recipes = demo.tabulated()["CPT"].scaling
    rest = [
        arm.model_dump(exclude={"name", "schedule", "scaling"}) for arm in arms.values()
    ]
    assert all(each == rest[0] for each in rest)
    # Where nothing is rounded, the recipes do nothing.
    assert all(a.scaling == recipes for n, a in arms.items() if n != "float32")


@pytest.mark.slow
def test_the_controller_plans_layer_by_layer_in_most_seeds():
    [arm] = demo.train_pack(demo.controlled(), range(5)).arms.values()
    first, second = arm.bits.values()
    several = (np.diff(first) != 0).any(1) | (np.diff(second) != 0).any(1)
    assert (several & (first != second).any(1)).sum() >= 4


@pytest.mark.slow
def test_three_bits_cost_accuracy_and_cycles_do_not(tmp_path):
    found = demo.train_pack(demo.tabulated(), range(5)).arms
    mean = {name: arm.metric.mean() for name, arm in found.items()}
    assert mean["3 bit"] < mean["float32"] - 0.02
    assert abs(mean["CPT"] - mean["8 bit"]) < 0.01
    again = demo.train_pack(demo.tabulated(), range(5)).arms
    for name, arm in found.items():
        np.testing.assert_array_equal(arm.metric, again[name].metric)
