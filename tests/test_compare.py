"""Verdicts on studies whose numbers are given."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import column, direction, until
from adaprec_jax.studies.compare import compare
from adaprec_jax.studies.results import find_arm, gathered
from adaprec_jax.studies.study import load_study, study_of
from tests import made_up_study
from tests.made_up_study import ACCURACY

ARMS = ["digits-float32", "digits-int8", "digits-int3", "digits-cpt"]
SEEDS = 6
RNG = np.random.default_rng(2)
BASE = 0.96 + 0.01 * RNG.normal(size=SEEDS)
NOISE = 0.002 * RNG.normal(size=(4, SEEDS))
# By arm and seed: the baseline, one that is near it, a worse one, one that varies.
VALUES = dict(
    zip(
        ARMS,
        [BASE, BASE + 0.2 * NOISE[0], BASE - 0.05 + NOISE[1], BASE + 10 * NOISE[2]],
        strict=True,
    )
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    study = made_up_study.study(out, ARMS, SEEDS)
    for k, (arm, values) in enumerate(VALUES.items()):
        for seed, value in enumerate(values.tolist()):
            reached = 200 + 100 * k if (arm, seed) != ("digits-int3", 0) else None
            rows = {
                step: {"validation/highest/accuracy": 0.9 if reached == step else 0.5}
                for step in (100, 200, 300, 400, 500)
            }
            rows = {1: {"cost": 0.5}, **rows, 301: {"cost": 0.25}}
            rows = dict(sorted(rows.items()))
            made_up_study.end(
                study, out, arm, seed,
                {ACCURACY: value, "cost": 0.375, "gbitops": 6.0}, rows=rows,
            )  # fmt: skip
    return study, out


def judged(runs, margin=None, baseline="digits-float32"):
    results = gathered(*runs)
    columns = [column(results.arms, "test/accuracy", margin=margin)]
    return compare(results, baseline, columns)


def answers(comparison):
    return {each.arm: each.answer for each in comparison.verdicts}


def test_without_a_margin_nothing_is_equivalent(runs):
    assert answers(judged(runs)) == {
        "digits-int8": "inconclusive",
        "digits-int3": "worse",
        "digits-cpt": "inconclusive",
    }


def test_with_a_margin_what_is_near_is_equivalent_and_what_varies_is_not(runs):
    assert answers(judged(runs, 0.005)) == {
        "digits-int8": "equivalent",
        "digits-int3": "worse",
        "digits-cpt": "inconclusive",
    }
    better = answers(judged(runs, 0.005, baseline="int3"))
    assert better["digits-int8"] == better["digits-float32"] == "better"


def test_p_values_are_paired_by_seed_and_adjusted_by_holm(runs):
    found = {each.arm: each for each in judged(runs).verdicts}
    raw = {
        arm: stats.ttest_rel(values, BASE).pvalue
        for arm, values in VALUES.items()
        if arm != "digits-float32"
    }
    expected, highest = {}, 0.0
    for k, arm in enumerate(sorted(raw, key=lambda arm: raw[arm])):
        highest = max(highest, min((3 - k) * raw[arm], 1.0))
        expected[arm] = highest
    assert {arm: each.p for arm, each in found.items()} == pytest.approx(expected)
    near = found["digits-int8"].difference
    assert near.correlation == pytest.approx(
        np.corrcoef(VALUES["digits-int8"], BASE)[0, 1]
    )
    assert found["digits-int8"].paired == SEEDS


def test_the_smallest_visible_effect_would_have_been_found_in_80_of_100(runs):
    found = {each.arm: each for each in judged(runs).verdicts}["digits-cpt"]
    spread = np.std(VALUES["digits-cpt"] - BASE, ddof=1)
    drawn = np.random.default_rng(0).normal(found.visible, spread, (4000, SEEDS))
    seen = stats.ttest_1samp(drawn, 0, axis=1).pvalue <= 0.05 / 3
    assert np.mean(seen) == pytest.approx(0.8, abs=0.02)


def test_the_order_of_arms_and_runs_changes_nothing(runs, tmp_path):
    study, out = runs
    turned = study._replace(cells=study.cells[::-1])
    there, here = judged((study, out), 0.005), judged((turned, out), 0.005)
    assert sorted(map(repr, there.verdicts)) == sorted(map(repr, here.verdicts))


def test_steps_and_work_to_a_target_count_what_was_spent_before_it(runs):
    results = gathered(*runs)
    steps, work = until(results.arms, "validation/accuracy", 0.9)
    assert steps.values["digits-float32"] == dict.fromkeys(range(SEEDS), 200)
    assert not steps.higher
    # 600 steps are 6 Gbitops at mean cost 0.375; the first 300 cost 0.5 each.
    assert work.values["digits-float32"][0] == pytest.approx(6 * 200 * 0.5 / 225)
    late = 6 * (300 * 0.5 + 200 * 0.25) / 225
    assert work.values["digits-cpt"][0] == pytest.approx(late)
    never = until(results.arms, "validation/accuracy", 0.95)[0]
    assert np.isnan(never.values["digits-int8"][0])
    verdicts = compare(results, "float32", [steps, work]).verdicts
    worse = [each for each in verdicts if each.arm == "digits-int3"]
    # One seed never got there; it counts as the worst, so that ranks decide.
    assert [each.difference.method for each in worse] == ["ranks", "ranks"]


def test_a_run_that_diverged_is_the_worst_and_its_rate_is_told(tmp_path):
    study = made_up_study.study(tmp_path, ARMS[:2], 10)
    for seed in range(10):
        made_up_study.end(study, tmp_path, ARMS[0], seed, {ACCURACY: 0.9 + seed / 1e3})
        bad = seed == 4
        made_up_study.end(
            study, tmp_path, ARMS[1], seed,
            None if bad else {ACCURACY: 0.8 + seed / 1e3},
            state="diverged" if bad else "done",
        )  # fmt: skip
    found = judged((study, tmp_path))
    (verdict,) = found.verdicts
    assert verdict.answer == "worse"
    assert verdict.p == 2 / 2**10
    assert verdict.difference.estimate == pytest.approx(-0.1)
    assert found.summaries[1].bad == 1
    rate = stats.binomtest(1, 10).proportion_ci(method="wilson")
    assert found.summaries[1].rate[1:] == pytest.approx((rate.low, rate.high))


def test_holes_are_refused_and_told_of_where_they_are_allowed(tmp_path):
    study = made_up_study.study(tmp_path, ARMS[:2], 4)
    for arm in ARMS[:2]:
        for seed in range(3):
            made_up_study.end(study, tmp_path, arm, seed, {ACCURACY: 0.9 + seed / 1e3})
    made_up_study.end(study, tmp_path, ARMS[0], 3, None, state="failed")
    with pytest.raises(InputError) as refused:
        gathered(study, tmp_path)
    assert refused.value.args[0] == (
        "2 of 8 runs are not over: "
        f"{study.cells[3].arm} seed 3 (failed), {study.cells[7].arm} seed 3 "
        "(never begun)."
    )
    allowed = gathered(study, tmp_path, exploratory=True)
    assert allowed.notes == refused.value.args[:1]
    assert [len(arm.runs) for arm in allowed.arms] == [3, 3]


def test_runs_of_different_environments_are_not_put_together_silently(tmp_path):
    study = made_up_study.study(tmp_path, ARMS[:1], 3)
    for seed in range(3):
        made_up_study.end(
            study, tmp_path, ARMS[0], seed, {ACCURACY: 0.9},
            jax="0.9.0" if seed else "0.10.2",
        )  # fmt: skip
    with pytest.raises(InputError, match=r"jax is 0.9.0 \(2\), 0.10.2 \(1\)"):
        gathered(study, tmp_path)
    assert "jax is" in gathered(study, tmp_path, exploratory=True).notes[0]


def test_runs_of_packs_and_single_ones_are_put_together_and_it_is_said(tmp_path):
    study = made_up_study.study(tmp_path, ARMS[:1], 3)
    for seed in range(3):
        pack = {"pack": f"{seed} runs, x"} if seed else {}
        made_up_study.end(study, tmp_path, ARMS[0], seed, {ACCURACY: 0.9}, **pack)
    (note,) = gathered(study, tmp_path).notes
    assert note.startswith("2 of 3 runs were trained in packs")


def test_arms_without_common_seeds_are_not_paired(tmp_path):
    mine = made_up_study.experiments(ARMS[:2], 6)
    study = study_of(
        [each for k, each in enumerate(mine) if (k % 6 < 3) == (k < 6)], "x"
    )
    for cell in study.cells:
        value = {ACCURACY: 0.9 + cell.seed**2 / 1e3}
        made_up_study.end(study, tmp_path, cell.experiment.name, cell.seed, value)
    (verdict,) = judged((study, tmp_path)).verdicts
    assert verdict.paired == 0
    squares = np.arange(6) ** 2 / 1e3
    expected = stats.ttest_ind(squares[3:], squares[:3], equal_var=False).pvalue
    assert verdict.p == pytest.approx(expected)


def test_several_tasks_have_a_baseline_each_and_a_number_over_them(tmp_path):
    arms = ["digits-float32", "digits-int8", "function-float32", "function-int8"]
    study = made_up_study.study(tmp_path, arms, 4)
    for cell in study.cells:
        gain = 0.1 * cell.experiment.name.endswith("int8")
        loss = 1 - gain * (1 + cell.seed / 10) - cell.seed / 100
        made_up_study.end(
            study,
            tmp_path,
            cell.experiment.name,
            cell.seed,
            {"test/highest/loss": loss},
        )
    results = gathered(study, tmp_path)
    found = compare(results, "float32", [column(results.arms, "test/loss")])
    assert [(each.arm, each.baseline) for each in found.verdicts] == [
        ("digits-int8", "digits-float32"),
        ("function-int8", "function-float32"),
    ]
    [(name, _, interval)] = found.across
    assert name == "digits-int8 and function-int8"
    assert interval.estimate == pytest.approx(-0.115)  # of -.10 to -.13, twice each


def test_the_direction_is_told_by_the_name_or_by_the_user():
    assert direction("validation/now/accuracy", None)
    assert not direction("test/float32/bits_per_byte", None)
    assert direction("test/highest/loss", True)
    with pytest.raises(InputError, match="say --higher or --lower"):
        direction("test/highest/beauty", None)


def test_an_arm_is_found_by_a_part_of_its_name_that_no_other_has(runs):
    arms = gathered(*runs).arms
    assert find_arm(arms, "float32").name == "digits-float32"
    with pytest.raises(InputError, match="means several arms: 'digits-int8', 'digits-"):
        find_arm(arms, "int")
    with pytest.raises(InputError, match="did you mean 'digits-cpt'"):
        find_arm(arms, "digits-ctp")


def adaprec(out, *arguments):
    code = (
        "import sys; from adaprec_jax.cli import main\n"
        "try: main()\nfinally: print('jax' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "compare", *arguments, "--out", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_prints_verdicts_without_jax(runs):
    asked = ["made-up", "--baseline", "float32", "--metric", "test/accuracy"]
    ended = adaprec(runs[1], *asked, "--margin", "0.005", "--best-of", "3")
    assert (ended.returncode, ended.stderr) == (0, "False\n")
    (line,) = [each for each in ended.stdout.splitlines() if "digits-int8" in each]
    assert "equivalent" in line
    assert "best of 3" in ended.stdout
    tree = json.loads(adaprec(runs[1], *asked, "--json").stdout)
    assert [each["answer"] for each in tree["verdicts"]] == [
        "inconclusive", "worse", "inconclusive",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["made-up"], "compare needs a --metric or a --target."),
        (["made-down", "--metric", "x"], "There is no study 'made-down'"),
        (["made-up", "--metric", "test/acc"], "No run has a result 'test/acc'"),
        (
            ["made-up", "--metric", "cost", "--margin", "0"],
            "A margin must be above zero",
        ),
        (
            ["made-up", "--metric", "cost", "--margin", "1", "--margin", "2"],
            "--margin is given 2 times for 1 of --metric",
        ),
        (["made-up", "--target", "x=y"], "--target takes NAME=VALUE with a number"),
        (["made-up", "--target", "validation/acc=1"], "No run was evaluated by"),
        (
            ["made-up", "--metric", "cost", "--best-of", "7"],
            "digits-float32: The best of k runs",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    runs, capsys, monkeypatch, arguments, fault
):
    from adaprec_jax.cli import main

    given = [
        "adaprec",
        "compare",
        *arguments,
        "--baseline",
        "int8",
        "--out",
        str(runs[1]),
    ]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith(f"adaprec: {fault}")
    assert len(said.err.splitlines()) == 1


def test_a_study_that_was_saved_is_the_one_compared(runs):
    out = runs[1]
    assert judged((load_study("made-up", out), out)) == judged(runs)
