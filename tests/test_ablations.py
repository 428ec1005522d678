"""Questions in `experiments/`: their studies load, with the arms that are stated."""

import importlib
import json
from pathlib import Path

import pytest

from adaprec_jax.runs import identity
from adaprec_jax.runs.load import load, load_sweep
from adaprec_jax.studies.study import study_of
from experiments import rates
from experiments.cpt_against_static import arms

FOLDER = Path(arms.__file__).parent
# Of the questions whose rates `experiments.rates` chooses: arms and seeds of a study.
QUESTIONS = {"float16_parts": (6, 30), "early_or_late": (11, 12)}
EACH = pytest.mark.parametrize("question", QUESTIONS)


@pytest.mark.parametrize(
    ("study", "arms_", "seeds"),
    [("pilot", 3, range(900, 908)), ("tuned", 12, range(20))],
)
def test_the_studies_of_cpt_have_the_arms_and_seeds_of_the_question(
    study, arms_, seeds
):
    _, experiments = load_sweep(str(FOLDER / f"{study}.py"))
    cells = study_of(experiments, study).cells
    assert {cell.seed for cell in cells} == {*seeds}
    assert len({cell.arm for cell in cells}) == arms_
    assert len(cells) == arms_ * len(seeds)


def test_every_arm_has_a_rate_inside_the_grid():
    rates = json.loads((FOLDER / "rates.json").read_text())
    assert {*rates} == {each.name for each in arms.arms()}
    assert {*rates.values()} <= {*arms.RATES[1:-1]}


def test_the_question_was_answered():
    said = (FOLDER / "verdict.md").read_text()
    for name in ("baseline_rate.txt", "tuned.txt", "rates.md", "environment.md"):
        assert f"`{name}`" in said
        assert (FOLDER / name).is_file()


@EACH
def test_the_study_of_a_question_has_its_arms_and_seeds(question):
    arms_, seeds = QUESTIONS[question]
    _, experiments = load_sweep(str(FOLDER.parent / question / "tuned.py"))
    cells = study_of(experiments, "tuned").cells
    assert {cell.seed for cell in cells} == {*range(seeds)}
    assert len({cell.arm for cell in cells}) == arms_
    assert len(cells) == arms_ * seeds


@EACH
def test_rates_lie_inside_a_grid_of_five_or_more_that_no_study_tests(question):
    stated = importlib.import_module(f"experiments.{question}.arms")
    assert len(stated.RATES) >= 5
    found = rates.chosen(FOLDER.parent / question)
    assert {*found.values()} <= {*sorted(stated.RATES)[1:-1]}
    assert min(getattr(stated, "TUNING", rates.TUNING)) >= stated.SEEDS


@EACH
def test_a_question_has_a_margin_and_an_answer_with_all_it_names(question):
    folder = FOLDER.parent / question
    assert "- Margin: " in (folder / "question.md").read_text()
    said = (folder / "verdict.md").read_text()
    for name in ("baseline_rate.txt", "tuned.txt", "rates.md", "environment.md"):
        assert f"`{name}`" in said
        assert (folder / name).is_file()
    for figure in (folder / "figures").iterdir():
        assert f"figures/{figure.name}" in said


def test_the_best_rate_is_the_lowest_loss_and_never_at_an_end():
    row = {0.1: 3.0, 0.2: 1.0, 0.4: 2.0}
    assert rates.best({"a": row}) == {"a": 0.2}
    with pytest.raises(ValueError, match="end of the grid for b"):
        rates.best({"a": row, "b": {0.1: 1.0, 0.2: 3.0, 0.4: float("inf")}})


def test_runs_that_two_studies_share_are_trained_once():
    one, other = load("digits-float32"), load("digits-int8")
    renamed = one.model_copy(update={"name": "again"})
    found = rates.together([one, other], [renamed])
    assert [identity.run_id(each) for each in found] == [
        identity.run_id(each) for each in (one, other)
    ]
