"""The precision range test: the rule on curves written by hand, then of a real run."""

import json
import sys

import numpy as np
import pytest

from adaprec_jax.cli import main, tables
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.range_test import Found
from adaprec_jax.runs.widths import Widths, rising
from adaprec_jax.schedules import RangeTest, range_test

FLAT = [0.1] * 6
STEP = [0.1, 0.1, 0.1, 0.1, 0.4, 0.5]  # windows of two: 0.1, 0.1, 0.45


@pytest.mark.parametrize(
    ("metrics", "min_bits", "gains"),
    [
        ({2: FLAT, 3: FLAT, 4: STEP, 5: FLAT}, 4, {2: 0.0, 3: 0.0, 4: 0.35}),
        ({3: STEP, 2: FLAT}, 3, {2: 0.0, 3: 0.35}),  # in rising order
        ({2: FLAT, 3: STEP[::-1]}, None, {2: 0.0, 3: 0.0}),  # a fall is no gain
        ({2: [0.1, 0.9, 0.1, 0.9, 0.1]}, None, {2: 0.0}),  # the last fills no window
        ({2: [0.1, 0.1, np.nan, 0.1, 0.9, 0.9]}, None, {2: None}),
        ({2: [np.nan, 0.1, 0.1, 0.1, 0.9, 0.9]}, 2, {2: 0.8}),
        ({2: [1e308, 1e308, 0.0, 0.0, 0.0, 0.0], 3: STEP}, 3, {2: 0.0, 3: 0.35}),
        ({2: [-1e308] * 2 + [1e308] * 4}, None, {2: None}),
    ],
)
def test_the_first_width_that_gains_is_the_fewest(metrics, min_bits, gains):
    found = range_test(metrics, threshold=0.3, window=2)
    assert found.min_bits == min_bits
    assert list(found.gains) == list(gains)
    for bits, gain in gains.items():
        assert found.gains[bits] == (gain if gain is None else pytest.approx(gain))


def test_a_gain_must_be_above_the_threshold():
    assert range_test({2: STEP}, threshold=0.34, window=2).min_bits == 2
    assert range_test({2: [0.0, 0.5]}, threshold=0.5, window=1).min_bits is None


@pytest.mark.parametrize(
    ("metrics", "settings", "fault"),
    [
        ({}, {}, "at least one width, got none"),
        ({2: FLAT}, {"window": 4}, "two windows of 4 steps.*got 6 steps at 2 bits"),
        ({2: FLAT}, {"window": 0}, "window=0"),
        ({2: FLAT}, {"window": 2, "threshold": np.nan}, "threshold=nan"),
        ({2: FLAT}, {"window": 2, "threshold": -0.1}, "threshold=-0.1"),
    ],
)
def test_what_cannot_be_tested_is_named(metrics, settings, fault):
    with pytest.raises(ValueError, match=fault):
        range_test(metrics, **settings)


@pytest.mark.parametrize(
    ("widths", "fault"),
    [
        (Widths(min_bits=1), "2 <= min bits <= max bits <= 16, got 1 and 8."),
        (Widths(min_bits=6, max_bits=5), "got 6 and 5."),
        (Widths(gradient_bits=32), "2 to 16 gradient bits, got 32."),
        (Widths(window=201), "a window of 201 and 400 steps."),
        (Widths(threshold=float("nan")), "a finite number from 0 on, got nan."),
        (Widths(threshold=-0.1), "a finite number from 0 on, got -0.1."),
        (Widths(steps=10**8), "at most 10000000 steps in all, got 100000000 for each"),
        (Widths(steps=205), "steps (1435) must be a multiple of steps_per_dispatch"),
    ],
)
def test_a_range_test_that_cannot_be_run_is_one_sentence(widths, fault):
    with pytest.raises(InputError) as refused:
        rising(load("digits-cpt"), widths)
    [sentence] = refused.value.args
    assert fault in sentence


def test_the_bits_of_a_range_test_rise_one_by_one():
    made = rising(load("digits-cpt"), Widths(min_bits=3, max_bits=5, steps=200))
    assert made.steps == 600
    assert made.schedule.boundaries == (200, 400)
    names = [(p.activation, p.weight, p.gradient) for p in made.schedule.precisions]
    assert names == [(f"int{b}", f"int{b}", "int8") for b in (3, 4, 5)]
    only = rising(load("digits-cpt"), Widths(min_bits=4, max_bits=4)).schedule
    assert only.precision.weight == "int4"


@pytest.mark.parametrize(
    ("threshold", "min_bits"),
    [("0.02", 4), pytest.param("0.9", None, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_the_command_trains_until_a_width_learns(
    threshold, min_bits, capsys, monkeypatch
):
    settings = [
        "task.kind=teacher", "task.size=256", "model.hidden=[16]", "batch_size=32",
        "steps_per_dispatch=20", "optimizer.learning_rate.peak=1e-2",
    ]  # fmt: skip
    arguments = ["adaprec", "range-test", "digits-cpt", "--min-bits", "4"]
    arguments += ["--max-bits", "7", "--steps", "40", "--window", "20"]
    arguments += ["--threshold", threshold]
    for setting in settings:
        arguments += ["--set", setting]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["found"]["min_bits"] == min_bits
    assert told["metric"] == "accuracy"
    # Two more dispatches are under way when a width is found to learn.
    assert told["steps"] == (80 if min_bits else 160)
    assert told["found"]["gains"].keys() == set("4" if min_bits else "4567")


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (
            RangeTest(3, {2: None, 3: 0.25}),
            "min_bits 3, the first that gained over 0.01",
        ),
        (RangeTest(None, {2: None}), "no width up to 8 bits gained more than 0.01"),
    ],
)
def test_the_table_ends_with_the_verdict(found, verdict, capsys):
    tables.range_test(Found("accuracy", found, 500, "the loss rose"), Widths())
    head, *rows, diverged, last, steps = capsys.readouterr().out.splitlines()
    assert head.split() == ["bits", "largest", "gain", "of", "accuracy"]
    assert rows[0].split() == ["2", "none"]
    assert len(rows) == len(found.gains)
    assert diverged == "diverged: the loss rose"
    assert last == f"{verdict} between windows of 100 steps"
    assert steps == "500 steps in all"
