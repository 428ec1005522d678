"""Declaring a sweep: which experiments a grid has, and which are refused."""

import re
from pathlib import Path

import pytest

from adaprec_jax.runs.config import CPT
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load, load_sweep
from adaprec_jax.studies.study import study_of
from adaprec_jax.studies.sweep import chain, grid, seeds, where, zip_

BASE = load("digits-cpt")


def bits(experiments):
    return [(each.schedule.min_bits, each.schedule.max_bits) for each in experiments]


def test_a_grid_has_every_combination_and_zip_each_row():
    settings = {"schedule.min_bits": [3, 4], "schedule.max_bits": [6, 8]}
    assert bits(grid(BASE, settings)) == [(3, 6), (3, 8), (4, 6), (4, 8)]
    assert bits(zip_(BASE, settings)) == [(3, 6), (4, 8)]


def test_lists_are_made_of_lists():
    made = seeds(chain(grid(BASE, {"steps": [200]}), load("digits-int8")), [5, 7])
    assert [(each.steps, each.seed) for each in made] == [
        (200, 5), (200, 7), (600, 5), (600, 7)
    ]  # fmt: skip
    assert [each.seed for each in where(made, lambda e: e.steps == 200)] == [5, 7]


def test_a_value_may_be_an_object_of_the_config():
    found = grid(BASE, {"schedule": [CPT(min_bits=5), load("digits-int8").schedule]})
    assert [each.schedule.kind for each in found] == ["cpt", "constant"]
    assert found[0].schedule == CPT(min_bits=5)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (
            lambda: grid(BASE, {"schedule.min_bit": [3]}),
            "digits-cpt with schedule.min_bit=3: Unknown setting 'schedule.min_bit'; "
            "did you mean 'schedule.min_bits'?",
        ),
        (
            lambda: grid(BASE, {"schedule.min_bits": [3, 9]}),
            "digits-cpt with schedule.min_bits=9: schedule.min_bits (9) must not be "
            "above max_bits (8).",
        ),
        (lambda: grid(BASE, {"steps": []}), "steps has no values."),
        (lambda: grid(BASE, {"name": "ab"}), "name needs a list of values, got 'ab'."),
        (
            lambda: zip_(BASE, {"steps": [20, 40], "seed": [1]}),
            "zip_ needs as many values for each path, got 2 of steps, 1 of seed.",
        ),
        (lambda: seeds(BASE, [1, 1]), "digits-cpt with seed 1 is there twice."),
        (lambda: seeds(BASE, 0), "seed has no values."),
        (
            lambda: seeds(BASE, [-1]),
            "digits-cpt with seed=-1: seed should be at least 0, got -1.",
        ),
        (
            lambda: chain(BASE, BASE.model_copy(update={"name": "other"})),
            "other with seed 0 is there twice, also as digits-cpt.",
        ),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(made, fault):
    with pytest.raises(InputError) as refused:
        made()
    assert refused.value.args == (fault,)


def test_the_bundled_sweep_has_nine_arms_of_ten_seeds():
    name, experiments = load_sweep("digits")
    cells = study_of(experiments, name).cells
    arms = [cell.arm for cell in cells]
    assert len(cells) == 90
    assert {arms.count(arm) for arm in arms} == {10}
    kinds = {cell.experiment.schedule.kind for cell in cells}
    assert kinds == {"float32", "constant", "cpt", "two_threshold"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def config(): ...", " defines no function sweep()."),
        ("def sweep(): return 3", ": sweep() must return a list of Experiments."),
        ("def sweep(): return [3]", ": sweep() must return a list of Experiments."),
        ("def sweep():\n  return 1 / 0", ", line 2: ZeroDivisionError: division by"),
    ],
)
def test_a_file_without_a_sweep_is_refused(tmp_path, text, fault):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_sweep(str(path))
    assert str(refused.value).startswith(f"{path}{fault}")


def test_the_sweep_of_the_documentation_is_one(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "studies.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(block)
    name, experiments = load_sweep(str(tmp_path / "mine.py"))
    cells = study_of(experiments, name).cells
    assert (len(cells), len({cell.arm for cell in cells})) == (50, 5)


def test_an_unknown_sweep_is_told_of_with_the_nearest():
    with pytest.raises(InputError, match="Unknown sweep 'digit'; did you mean 'digits"):
        load_sweep("digit")
