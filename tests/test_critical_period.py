"""The two protocols for critical learning periods: their runs, and a short one."""

import jax.numpy as jnp
import pytest

from adaprec_jax import formats
from adaprec_jax.runs.build import make_learning_rate
from adaprec_jax.runs.expected import mean_cost, pieces
from experiments import critical_period

INT3 = (9 + 2 * 3 * 8) / 3 / 32**2


def bits_from(experiment) -> dict[int, int]:
    """Returns the bits of weights by the step from which they hold."""
    entries = pieces(experiment.schedule, experiment.steps)
    return {step: int(formats.bits(entry.weight)) for step, entry in entries.items()}


def test_after_an_initial_deficit_comes_a_complete_normal_run():
    normal = critical_period.arm(steps=80, total=80, start=0, length=0, low=3)
    late = critical_period.arm(steps=80, total=120, start=0, length=40, low=3)
    assert bits_from(normal) == {0: 8}
    assert bits_from(late) == {0: 3, 40: 8}
    assert mean_cost(late) == pytest.approx((40 * INT3 + 80 / 16) / 120)
    rates = [
        make_learning_rate(each.optimizer.learning_rate, each.steps)
        for each in (normal, late)
    ]
    for step in (0, 10, 40, 79):
        first, second = rates[0](jnp.int32(step)), rates[1](jnp.int32(step + 40))
        assert float(first) == pytest.approx(float(second), rel=1e-6)
    assert float(rates[1](jnp.int32(3))) == pytest.approx(2e-3)


def test_a_probe_window_moves_and_keeps_its_length():
    window = critical_period.arm(steps=80, total=160, start=20, length=80, low=4)
    assert bits_from(window) == {0: 8, 20: 4, 100: 8}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [(["--seeds", "1"], "at least 2"), (["--steps", "50"], "a multiple of 40")],
)
def test_what_makes_no_sense_is_refused(arguments, fault, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["critical_period", *arguments])
    with pytest.raises(SystemExit):
        critical_period.main()
    assert fault in capsys.readouterr().err


@pytest.mark.slow
def test_the_tables_have_a_line_for_each_deficit_and_each_window(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--steps", "40", "--seeds", "2"])
    monkeypatch.setattr(critical_period, "DEFICITS", (0, 1))
    monkeypatch.setattr(critical_period, "OFFSETS", (0, 1 / 2))
    critical_period.main()
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    assert [line[0].strip() for line in lines[1:3]] == ["0", "1"]
    named = [line[0].strip() for line in lines[4:]]
    assert named == ["control", "0", "0.5"]
    assert lines[1][2].strip() == lines[4][2].strip() == "+0.0 ±  0.0"
    costs = [float(line[3]) for line in lines[1:3]]
    expected = [(r * INT3 + 1 / 16) / (1 + r) for r in (0, 1)]
    assert costs == pytest.approx(expected, abs=1e-4)
    assert {line[3].strip() for line in lines[5:]} == {f"{(INT3 + 1 / 16) / 2:.4f}"}
