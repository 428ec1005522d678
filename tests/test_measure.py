"""The train step measured beside the plain one, by a fake meter and a fake clock."""

import itertools
import sys

import pytest

from adaprec_jax.cli import main
from adaprec_jax.meters import Protocol, fake, summary
from adaprec_jax.runs import overrides
from adaprec_jax.runs.load import load
from adaprec_jax.runs.measured import PLAIN, measured


def test_an_emulated_step_has_no_energy_of_its_own():
    ticks = itertools.count()
    clock = lambda: float(next(ticks))
    experiment = overrides.apply(load("digits-int8"), ["steps_per_dispatch=2"])
    found = measured(
        experiment, fake(3.0, clock), Protocol(repeats=1, warm_up=1, rest=0.0),
        clock=clock, sleep=lambda seconds: None,
    )  # fmt: skip
    assert set(found.windows) == {"digits-int8", PLAIN}
    own, plain = summary(found, "digits-int8"), summary(found, PLAIN)
    assert own.energy is None
    assert own.emulation_cost is not None
    assert plain.energy is not None
    assert plain.emulation_cost is None
    assert plain.energy.kind == "measured"
    assert all(w.calls >= 1 for ws in found.windows.values() for w in ws)


def test_a_native_step_has_an_energy_of_its_own():
    ticks = itertools.count()
    clock = lambda: float(next(ticks))
    settings = ["execution.kind=native", "steps_per_dispatch=2"]
    found = measured(
        overrides.apply(load("digits-cpt"), settings), fake(3.0, clock),
        Protocol(repeats=1, warm_up=1, rest=0.0),
        clock=clock, sleep=lambda seconds: None,
    )  # fmt: skip
    own = summary(found, "digits-cpt")
    assert own.energy is not None
    assert own.energy.kind == "measured"
    assert own.emulation_cost is None


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--seconds", "1"], "--seconds must be from 5 to 3600, got 1.0."),
        (
            ["--set", "execution.kind=native", "--set", 'schedule={"kind":"mor"}'],
            "learns from the run",
        ),
        (
            ["--set", "execution.kind=native", "--set", "execution.target=h100"],
            "h100 is not here",
        ),
        (["--repeats", "0"], "--repeats must be at least 1, got 0."),
        (["--rest", "-1"], "--rest must be from 0 to 3600, got -1.0."),
    ],
)
def test_what_measures_nothing_is_refused(options, fault, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adaprec", "measure", "digits-int8", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert fault in capsys.readouterr().err
