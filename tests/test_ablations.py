"""Questions in `experiments/`: their studies load, with the arms that are stated."""

import json
from pathlib import Path

import pytest

from adaprec_jax.runs.load import load_sweep
from adaprec_jax.studies.study import study_of
from experiments.cpt_against_static import arms

FOLDER = Path(arms.__file__).parent


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
