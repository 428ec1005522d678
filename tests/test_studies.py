"""Studies: which runs belong together, how their arms are named, where they lie."""

import pytest

from adaprec_jax.runs import identity, store
from adaprec_jax.runs.config import ShuffledCPT
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.studies.study import directories, load_study, save, study_of

CPT = load("digits-cpt")
SETS = ["schedule.min_bits=3", "schedule.min_bits=4"]
FOUR = [apply(CPT, [each, f"seed={seed}"]) for each in SETS for seed in (0, 1)]


def test_an_arm_is_named_by_what_differs_but_for_the_seed():
    study = study_of(FOUR, "bits")
    assert [(cell.arm, cell.seed) for cell in study.cells] == [
        (each, seed) for each in SETS for seed in (0, 1)
    ]
    assert [cell.run_id for cell in study.cells] == [*map(identity.run_id, FOUR)]


def test_a_setting_of_some_kinds_alone_names_an_arm_only_where_it_differs():
    float32 = load("digits-float32").model_copy(update={"scaling": CPT.scaling})
    arms = [cell.arm for cell in study_of([CPT, float32], "two").cells]
    assert arms == ["schedule=cpt", "schedule=float32"]
    other = apply(CPT, ["schedule.cycles=3"])
    arms = [cell.arm for cell in study_of([CPT, other, float32], "three").cells]
    assert arms[0] == "schedule=cpt schedule.cycles=6"
    assert arms[2] == "schedule=float32"


def test_a_seed_of_the_schedule_names_an_arm_only_within_a_seed():
    def shuffled(seed: int, other: int):
        settings = CPT.schedule.model_dump(exclude={"kind"}) | {"shuffle_seed": other}
        update = {"schedule": ShuffledCPT(**settings), "seed": seed}
        return CPT.model_copy(update=update)

    paired = study_of([shuffled(0, 5), shuffled(1, 6)], "a").cells
    assert {cell.arm for cell in paired} == {"all"}
    crossed = study_of([shuffled(0, 5), shuffled(0, 6)], "b").cells
    assert [cell.arm for cell in crossed] == [
        "schedule.shuffle_seed=5",
        "schedule.shuffle_seed=6",
    ]


def test_a_study_is_read_as_it_was_written(tmp_path):
    study = study_of(FOUR, "bits")
    path = save(study, tmp_path / "runs")
    assert load_study("bits", tmp_path / "runs") == study
    assert load_study(path, tmp_path) == study


def test_the_directories_are_those_of_the_store_under_whatever_name(tmp_path):
    study = study_of(FOUR, "bits")
    (tmp_path / f"other-{study.cells[1].run_id}").mkdir()
    found = directories(study, tmp_path)
    assert found == [store.locate(tmp_path, each) for each in FOUR]
    assert found[1].name.startswith("other-")


@pytest.mark.parametrize(
    ("experiments", "name", "fault"),
    [
        ([], "empty", "The study 'empty' has no runs."),
        ([FOUR[0], FOUR[1], FOUR[0]], "x", "The runs 0 and 2 of the study are the sam"),
        ([FOUR[0]], "../x", "The name of a study: it must begin with a letter"),
    ],
)
def test_what_is_no_study_is_refused(experiments, name, fault):
    with pytest.raises(InputError) as refused:
        study_of(experiments, name)
    assert str(refused.value).startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[", "is damaged: Invalid JSON"),
        (
            '[{"arm": "a", "seed": 0, "config": {}}]',
            "is damaged: 0.run_id: Field required",
        ),
        (
            '[{"arm": "a", "seed": 0, "run_id": "../../../../x", "config": {}}]',
            "is damaged: 0.run_id should match",
        ),
        (
            '[{"arm": "a", "seed": 0, "run_id": "012345678901", "config": {}}]',
            "cell 0: task is missing.",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, fault):
    (tmp_path / "x.study.json").write_text(text)
    with pytest.raises(InputError) as refused:
        load_study("x", tmp_path)
    assert fault in str(refused.value)


def test_a_study_that_is_not_there_is_told_of_with_the_nearest(tmp_path):
    save(study_of(FOUR, "bits"), tmp_path)
    with pytest.raises(InputError, match=r"no study 'bit' in .*; did you mean 'bits'"):
        load_study("bit", tmp_path)
