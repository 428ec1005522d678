"""Searching the settings of a schedule: proposals, their front, and its price."""

import json
import sys

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.runs.store import Outcome
from adaprec_jax.studies.search import (
    Search,
    Trial,
    check_elsewhere,
    front,
    front_study,
    search,
    spent,
)

BASE = load("digits-cpt")
# Six bits and up to five do not fit together.
SPACE = {
    "schedule.min_bits": [2, 3, 4, 5, 6],
    "schedule.max_bits": [8, 5],
    "schedule.cycles": [1, 2, 4],
}
WHAT = Search(BASE, SPACE)


def answer(experiment) -> Outcome:
    """More bits are better and dearer, the rest is dearer alone; 2 bits diverge."""
    bits = experiment.schedule.min_bits
    rest = experiment.schedule.cycles / 10 + experiment.schedule.max_bits / 100
    if bits == 2:
        return Outcome("diverged", 60, {})
    results = {"validation/highest/accuracy": bits / 10, "cost": bits + rest}
    return Outcome("done", 600, results)


def test_the_front_is_what_no_other_beats_and_the_price_that_of_all():
    def trial(metric, cost, *, is_new=True):
        return Trial(BASE, metric, cost, 100, is_new)

    trials = [
        trial(0.9, 0.5), trial(0.9, 0.5, is_new=False), trial(0.8, 0.6),
        trial(0.7, 0.1), trial(0.9, 0.4), trial(None, None),
    ]  # fmt: skip
    assert [(t.metric, t.cost) for t in front(trials)] == [(0.7, 0.1), (0.9, 0.4)]
    assert spent(trials) == pytest.approx(100 * (0.5 + 0.6 + 0.1 + 0.4 + 1))


def test_what_is_found_is_trained_with_seeds_that_the_search_did_not_see():
    trials = [Trial(BASE, 0.9, 0.5, 100, is_new=True)]
    study = front_study(WHAT, trials, "digits-front", 3)
    assert [cell.seed for cell in study.cells] == [1, 2, 3]
    with pytest.raises(InputError, match="No trial of the search had a result"):
        front_study(WHAT, [], "digits-front", 3)


def test_what_is_found_is_confirmed_on_a_task_that_the_search_did_not_see():
    found = apply(BASE, ["schedule.min_bits=5", "schedule.max_bits=5"])
    other = apply(load("fashion-mnist-cpt"), ["seed=4", "schedule.cycles=4"])
    trials = [Trial(found, 0.9, 0.5, 100, is_new=True),
              Trial(BASE, 0.8, 0.4, 100, is_new=True)]  # fmt: skip
    study = front_study(WHAT, trials, "digits-front", 2, other)
    tried = [(c.experiment.task.kind, c.seed, c.experiment.schedule.min_bits,
              c.experiment.schedule.cycles) for c in study.cells]  # fmt: skip
    cycles = BASE.schedule.cycles
    assert cycles != 4
    bits = BASE.schedule.min_bits
    # The searched base is a member of the front itself, and is there once; the other
    # task has its own settings, those of the base, and those that were found.
    assert tried == [
        ("digits", 5, bits, cycles), ("digits", 6, bits, cycles),
        ("digits", 5, 5, cycles), ("digits", 6, 5, cycles),
        ("fashion_mnist", 5, bits, 4), ("fashion_mnist", 6, bits, 4),
        ("fashion_mnist", 5, bits, cycles), ("fashion_mnist", 6, bits, cycles),
        ("fashion_mnist", 5, 5, cycles), ("fashion_mnist", 6, 5, cycles),
    ]  # fmt: skip
    assert study.cells[-1].experiment.model == other.model  # nothing else was moved


def test_a_task_that_cannot_confirm_is_one_sentence():
    with pytest.raises(InputError, match="must be confirmed on another"):
        check_elsewhere(WHAT, load("digits-int8"))
    with pytest.raises(InputError, match=r"schedule\.min_bits"):
        check_elsewhere(WHAT, load("fashion-mnist-int8"))
    check_elsewhere(WHAT, load("fashion-mnist-cpt"))


def test_a_search_without_optuna_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'adaprec-jax\[search\]'"):
        next(search(WHAT, 3, 0, answer))


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # optuna's own
def test_a_search_finds_the_front_and_asks_the_same_when_typed_again():
    asked = []

    def train(experiment):
        asked.append(experiment)
        return answer(experiment)

    trials = [*search(WHAT, 200, 0, train)]
    again = [*search(WHAT, 200, 0, answer)]
    assert [t.experiment for t in trials] == [t.experiment for t in again] == asked
    found = [
        (schedule.min_bits, schedule.max_bits, schedule.cycles)
        for schedule in (t.experiment.schedule for t in front(trials))
    ]
    assert found == [(3, 5, 1), (4, 5, 1), (5, 5, 1), (6, 8, 1)]
    assert len(trials) < 200  # what does not fit together was not trained
    assert {t.metric for t in trials if t.experiment.schedule.min_bits == 2} <= {None}
    with pytest.raises(InputError, match="has no values"):
        next(search(Search(BASE, {"steps": []}), 3, 0, answer))
    with pytest.raises(InputError, match="A run has no result 'loss'"):
        next(search(Search(BASE, {"seed": [0]}, "loss"), 3, 0, answer))


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_the_command_saves_a_study_of_what_was_found(tmp_path, monkeypatch, capsys):
    from adaprec_jax.cli import search as command

    (tmp_path / "mine.py").write_text(
        "from adaprec_jax.runs.load import load\n"
        "from adaprec_jax.studies.search import Search\n"
        "def search():\n"
        "    return Search(load('digits-cpt'), {'schedule.min_bits': [3, 4]})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_trained", lambda experiment, out: answer(experiment))
    arguments = ["search", "mine.py", "--trials", "6", "--confirm", "4", "--json"]
    monkeypatch.setattr(sys, "argv", ["adaprec", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert (said["study"], said["trials"]) == ("mine-front", 2)
    assert [each["metric"] for each in said["front"]] == [0.3, 0.4]
    monkeypatch.setattr(sys, "argv", ["adaprec", "status", "mine-front", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["runs"] == 8
