"""The picture of accuracy against cost."""

import sys

import numpy as np
import pytest

from adaprec_jax.cli import main
from adaprec_jax.report.frontier import Point, figure, front


def test_the_front_is_what_nothing_else_beats():
    # By hand: (1, .5) is cheapest, (2, .5) is beaten by it, (3, .9) is best.
    cost, score = [1.0, 2.0, 3.0, 4.0, 3.0], [0.5, 0.5, 0.9, 0.9, 0.9]
    assert front(cost, score).tolist() == [True, False, True, False, True]
    loss = [-s for s in score]
    found = front(cost, loss, higher_is_better=False)
    assert found.tolist() == [True, False, True, False, True]


def test_bands_baseline_and_front_are_drawn():
    points = [
        Point("float32", 4.0, 2.0, 8.0, 0.9, baseline=True),
        Point("int8", 1.0, 0.5, 2.0, 0.9),
        Point("int8", 1.2, 0.6, 2.4, 0.8),
    ]
    drawn = figure(points, x="J", y="accuracy")
    (axes,) = drawn.axes
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels == ["float32 (baseline)", "int8", "Pareto front of the means"]
    (line,) = [each for each in axes.lines if each.get_linestyle() == "--"]
    assert np.asarray(line.get_xdata()).tolist() == pytest.approx([1.1, 4.0])
    ends = [segment for each in axes.collections if hasattr(each, "get_segments")
            for segment in each.get_segments()]  # fmt: skip
    assert [2.0, 8.0] in [[segment[0][0], segment[1][0]] for segment in ends]
    with pytest.raises(ValueError, match="no run to draw"):
        figure([], x="", y="")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--plot", "a.png"], "--plot draws one lens: give one --lens."),
        (["--plot", "a.txt", "--lens", "ace"], "--plot must end in .png, .svg or .pdf"),
        (["--plot", "a.png", "--lens", "ace"], "--plot is of runs, not of configs."),
    ],
)
def test_what_cannot_be_drawn_is_said(options, fault, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adaprec", "cost", "digits-int8", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert fault in capsys.readouterr().err
