"""The verdicts on the field's claims, from counted numbers."""

import json
import sys

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs.claims import Sized, claims, judge
from adaprec_jax.runs.counted import counted
from adaprec_jax.runs.load import load


@pytest.fixture(scope="module")
def small():
    experiment = load("digits-float32")
    return experiment, {
        each.claim: each
        for each in claims([Sized("digits", experiment, counted(experiment))])
    }


def test_a_verdict_follows_from_the_numbers():
    assert judge(4.0, 4.1, 9.0) == "supported"
    assert judge(4.0, 1.0, 3.9) == "not supported"
    assert judge(4.0, 1.0, 4.5) == "untested"
    assert judge(4.0, None, None) == "untested"


def test_no_claim_is_said_to_be_measured(small):
    _, found = small
    assert {each.measured for each in found.values()} == {"none"}


def test_the_operations_are_the_same_and_scales_come_on_top(small):
    flops = small[1]["fewer bits mean fewer FLOPs"]
    assert flops.high < 0
    assert flops.verdict == "not supported"


def test_tensors_shrink_and_a_training_step_does_not_as_much(small):
    experiment, found = small
    assert found["INT8: memory of a stored tensor"].verdict == "supported"
    step = found["INT8: memory of a training step"]
    memory, parameters = counted(experiment).memory, 64 * 64 + 64 + 64 * 10 + 10
    fixed = 4 * parameters * 4  # parameters, gradients and two moments
    before = fixed + memory.activations + memory.batch
    after = fixed + parameters + memory.activations / 4 + memory.batch
    assert step.high == pytest.approx(100 * (1 - after / before), rel=1e-3)
    assert step.verdict == "not supported"


def test_speed_and_energy_imply_a_power(small):
    _, found = small
    # 4 times as fast for 40 % of the energy: 1.6 times the power.
    assert found["FP8: average power that speed and energy imply"].claimed == "1.6x"
    assert found["INT8: average power that speed and energy imply"].claimed == (
        "1.2 to 1.8x"
    )


def test_a_small_model_is_bound_by_memory(small):
    _, found = small
    for name, claimed in (("FP8", 4), ("INT8", 4), ("INT4", 8)):
        speed = found[f"{name}: speed over TF32"]
        assert 1 <= speed.low <= speed.high < claimed
        assert speed.verdict == "not supported"


@pytest.mark.slow
def test_the_command_prints_every_claim(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adaprec", "claims", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    verdicts = {each["claim"]: each["verdict"] for each in found}
    assert verdicts["low precision raises occupancy"] == "untested"
    assert verdicts["fewer bits mean fewer FLOPs"] == "not supported"
    assert len(found) == 3 + 4 * 6


@pytest.mark.slow
def test_claims_fit_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adaprec", "claims"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out
    assert not ended.value.code
    assert "supported: INT8 tensors need a quarter of the memory\n" in said
    assert max(map(len, said.splitlines())) <= 80
