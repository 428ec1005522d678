import io
import sys
import types

import numpy as np
import pytest

from adaprec_jax.report import summary
from adaprec_jax.report.arms import Arm, Pack, as_json, as_text, t_interval
from adaprec_jax.report.chart import chart
from adaprec_jax.report.progress import Moment, display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def moment(step: int) -> Moment:
    return Moment(step, 0.5, "3-8 bits", 0.0, 2)


def test_without_a_terminal_progress_is_a_line_for_each_tenth(capsys):
    with display("x", 0, 100) as shown:
        for step in range(5, 101, 5):
            shown.update(moment(step))
        shown.say("said")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        f"x {step}/100" for step in range(10, 101, 10)
    ]
    assert "loss 0.5, 3-8 bits, 0% saturated, 2 skipped" in lines[0]
    assert lines[-1] == "said"


def test_in_a_terminal_progress_is_one_line_that_lives_and_goes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with display("x", 50, 100) as shown:
        shown.update(moment(75))
        shown.say("said [markup]")
    text = sys.stderr.getvalue()
    assert "75/100" in text
    assert "said [markup]" in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_in_a_notebook_progress_is_one_text_that_changes_in_place(monkeypatch, capsys):
    shown_texts = []

    def publish(data, *, raw, display_id):
        assert raw
        assert display_id
        shown_texts.append(data["text/plain"])
        change = lambda data, raw: shown_texts.append(data["text/plain"])
        return types.SimpleNamespace(update=change)

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(
        sys.modules, "IPython.display", types.SimpleNamespace(display=publish)
    )
    with display("x", 0, 100) as shown:
        for step in range(1, 101):
            shown.update(moment(step))
            if step == 50:
                shown.say("said")
    assert shown_texts[0] == "x 0/100: compiling"
    assert len(shown_texts) < 50  # not at every step
    line, said = shown_texts[-1].splitlines()
    assert (line.split(":")[0], said) == ("x 100/100", "  said")
    assert capsys.readouterr() == ("", "")


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch, capsys):
    ipython = types.SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with display("x", 0, 100) as shown:
        shown.update(moment(100))
    assert capsys.readouterr().err.startswith("x 100/100: ")


def test_a_chart_shows_where_bits_change_on_one_scale():
    rising = np.repeat(np.arange(1, 9), 10)
    lines = chart({"a": rising, "b": np.full(80, 8)}, width=19)
    assert lines == ["a ▁▂▃▄▅▆▇█ 1-8 bits", "b ████████ 8 bits"]
    assert max(map(len, chart({"a": rising}))) == 79


def test_layers_of_equal_bits_share_a_line():
    rising, falling = np.array([3, 8]), np.array([8, 3])
    assert chart({"a": rising, "b": rising}, width=22) == ["all layers ▁█ 3-8 bits"]
    mixed = chart({"a": rising, "b": rising, "c": falling}, width=24)
    assert mixed == ["a and 1 more ▁█ 3-8 bits", "c            █▁ 3-8 bits"]


def test_cost_counts_each_step_with_the_value_in_force():
    columns = {
        "cost": {1: 1.0, 3: 0.5},
        "bits/a/forward.weight": {1: 32.0, 3: 16.0},
        "skipped": {1: 0.0, 4: 3.0},
    }
    totals = summary.totals(columns, 4)
    assert totals == {"cost": 0.75, "precision_changes": 1.0, "skipped_steps": 3.0}


OPERANDS = (
    "forward.activation", "forward.weight", "dgrad.gradient", "dgrad.weight",
    "wgrad.gradient", "wgrad.activation",
)  # fmt: skip


def test_the_share_of_narrow_products_follows_each_layer_by_its_work():
    steps, work = 37, {"a": 0.25, "b@0": 0.5, "b@1": 0.25}
    random = np.random.default_rng(0)
    # By layer, operand and step; what is logged are changes, also after a divergence.
    bits = random.choice([4.0, 8.0, 16.0], (3, 6, steps + 5))
    columns = {
        f"bits/{layer}/{operand}": {
            t + 1: float(b)
            for t, b in enumerate(bits[i, j])
            if t == 0 or b != bits[i, j, t - 1]
        }
        for i, layer in enumerate(work)
        for j, operand in enumerate(OPERANDS)
    }
    for most in (4, 8, 16):
        widest = bits[..., :steps].reshape(3, 3, 2, steps).max(axis=2)
        expected = np.tensordot([*work.values()], (widest <= most).mean(axis=(1, 2)), 1)
        found = summary.narrow_share(columns, steps, work, most)
        assert found == pytest.approx(float(expected), abs=1e-12)


def test_the_chart_of_a_run_tells_weights_from_activations_where_they_differ():
    columns = {
        "bits/a/forward.activation": {1: 8.0},
        "bits/a/forward.weight": {1: 4.0, 6: 8.0},
        "bits/a/dgrad.gradient": {1: 8.0},
    }
    titles = summary.precision_chart(columns, 10)
    assert titles[::2] == ["bits of activations", "bits of weights"]
    assert "8 bits" in titles[1]
    assert "4-8 bits" in titles[3]


def test_the_chart_of_a_run_has_gradients_only_where_they_change():
    steady = {
        "bits/a/forward.activation": {1: 4.0, 6: 8.0},
        "bits/a/forward.weight": {1: 4.0, 6: 8.0},
        "bits/a/dgrad.gradient": {1: 8.0},
    }
    assert summary.precision_chart(steady, 10)[0] == "bits of activations and weights"
    assert "4-8 bits" in summary.precision_chart(steady, 10)[1]
    assert len(summary.precision_chart(steady, 10)) == 2
    moving = {**steady, "bits/a/dgrad.gradient": {1: 8.0, 2: 16.0}}
    assert summary.precision_chart(moving, 10)[2] == "bits of gradients"
    assert summary.precision_chart({}, 0) == []


# Student's t at 0.975: 12.706 with one degree of freedom, 2.776 with four.
@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [([1.0, 3.0], 2.0, 12.706), ([1, 2, 3, 4, 5], 3.0, 2.776 * (2.5 / 5) ** 0.5)],
)
def test_intervals_are_student_s(values, mean, half):
    found = t_interval(np.array(values, np.float64))
    assert found.mean == mean
    assert found.half == pytest.approx(half, rel=1e-3)


def arm(accuracy: list[float], changes: list[int]) -> Arm:
    cost = np.full(len(accuracy), 0.25)
    bits = {layer: np.tile([3, 8, 8], (len(accuracy), 1)) for layer in "ab"}
    return Arm(np.array(accuracy), cost, np.array(changes), bits)


def test_arms_are_compared_seed_by_seed():
    packs = [
        Pack({"base": arm([0.5, 0.7], [0, 0]), "low": arm([0.4, 0.6], [1, 3])}, 1),
        Pack({"loop": arm([0.5, 0.6], [2, 2])}, 2),
    ]
    found = as_json(packs, "base")
    paired = found["arms"]["low"]["minus_baseline"]
    assert paired["mean"] == pytest.approx(-0.1)
    assert paired["half"] == pytest.approx(0.0, abs=1e-12)
    text = as_text(packs, "base")
    assert text[-2:] == [
        "1 compilation, 4 runs, 0 to 3 precision changes each",
        "2 compilations, 2 runs, 2 precision changes each",
    ]
    assert any(line.startswith("low ") and " 50.0 " in line for line in text)


def test_arms_that_never_change_precision_have_no_chart():
    packs = [Pack({"base": arm([0.5, 0.7], [0, 0]), "low": arm([0.4, 0.6], [0, 0])}, 1)]
    _, base, low, *rest = as_text(packs, "base")
    assert [line.split()[0] for line in (base, low)] == ["base", "low"]
    assert rest == ["", "1 compilation, 4 runs, 0 precision changes each"]
