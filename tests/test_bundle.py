"""Publishing a study, and a stranger's bundle: checked before it is used, and repeated.

A worker of Python alone stands in for the one that trains, but in the slow test.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from adaprec_jax.cli import main
from adaprec_jax.runs import environment, metrics, store
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.store import Outcome
from adaprec_jax.studies import bundle, local, reproduce
from adaprec_jax.studies.difference import difference
from adaprec_jax.studies.publish import Terms, publish
from adaprec_jax.studies.study import save, study_of
from adaprec_jax.studies.sweep import chain, grid, seeds

SEEDS = 4
STUDY = study_of(seeds(chain(load("digits-int8"), load("digits-cpt")), SEEDS), "two")
CLEAN = environment.code() | {"commit": "a" * 40, "uncommitted": False}


def accuracy(cell) -> float:
    return 0.5 + 0.01 * cell.seed


def trained(out, study=STUDY, now=CLEAN, results=accuracy, loss=2.0):
    """Writes runs as if they had been trained."""
    for cell in study.cells:
        directory = store.locate(out, cell.experiment)
        with store.session(directory, cell.experiment, now, "made up"):
            with metrics.start(directory / store.METRICS, 0) as file:
                metrics.append(file, [1, 2], {"loss": [3.0, loss]})
            found = {"test/highest/accuracy": results(cell), "compilations": 1.0}
            store.finish(directory, Outcome("done", 600, found))
    save(study, out)
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A bundle that nobody changes."""
    folder = tmp_path_factory.mktemp("published")
    trained(folder / "runs")
    return publish(STUDY, folder / "runs", folder / "bundle", Terms(("A. Author",)))


@pytest.fixture
def copy(published, tmp_path):
    """A bundle to be damaged."""
    return shutil.copytree(published, tmp_path / "bundle")


def listed_anew(folder):
    """Writes the list of a bundle again, as an attacker would."""
    (folder / bundle.SUMS).write_text(bundle.sums(folder))


def test_a_bundle_holds_what_a_stranger_asks_for(published):
    there = {p.relative_to(published).as_posix() for p in published.rglob("*")}
    assert {
        "study.json", "environment.json", "requirements.lock", "CITATION.cff",
        "CHECKLIST.md", "ro-crate-metadata.json", "SHA256SUMS",
    } <= there  # fmt: skip
    assert len([*published.glob("runs/*/metrics.jsonl")]) == 2 * SEEDS
    done = subprocess.run(
        ["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=published
    )
    assert done.returncode == 0
    crate = json.loads((published / bundle.CRATE).read_text())["@graph"]
    about, root, *_ = crate
    assert about["about"] == {"@id": root["@id"]} == {"@id": "./"}
    parts = {each["@id"]: each for each in crate if each["@type"] == "File"}
    assert {part["@id"] for part in root["hasPart"]} == set(parts)
    for name, part in parts.items():
        data = (published / name).read_bytes()
        assert part["sha256"] == hashlib.sha256(data).hexdigest()
        assert part["contentSize"] == str(len(data))
    assert 'name: "A. Author"' in (published / bundle.CITATION).read_text()
    checklist = (published / bundle.CHECKLIST).read_text()
    assert f"{2 * SEEDS} runs, 2 arms, {SEEDS} seeds for each" in checklist


def test_a_bundle_is_the_same_when_it_is_made_again(published, tmp_path):
    runs = published.parent / "runs"
    again = publish(STUDY, runs, tmp_path / "again", Terms(("A. Author",)))
    assert bundle.sums(again) == bundle.sums(published)
    assert reproduce.read(published) == STUDY


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (
            lambda out, d: (d / store.STATUS).unlink(),
            "1 of 8 runs have no result, the first is digits-int8 seed 0 (interrupted)",
        ),
        (lambda out, d: shutil.rmtree(d), "the first is digits-int8 seed 0 (new)"),
        (
            lambda out, d: rewrite(d / store.ENVIRONMENT, "uncommitted", True),
            "Some runs were trained with uncommitted code; commit it and train again.",
        ),
        (
            lambda out, d: rewrite(d / store.ENVIRONMENT, "jax", "0.1"),
            "The runs mix environments: jax was 0.1, is ",
        ),
    ],
)
def test_what_should_not_be_published_is_refused(tmp_path, damage, fault):
    out = trained(tmp_path / "runs")
    damage(out, store.locate(out, STUDY.cells[0].experiment))
    with pytest.raises(InputError) as refused:
        publish(STUDY, out, tmp_path / "bundle", Terms())
    assert fault in str(refused.value)
    assert not (tmp_path / "bundle").exists()


def rewrite(path, name, value):
    tree = json.loads(path.read_text())
    tree["sessions"][-1][name] = value
    path.write_text(json.dumps(tree))


def test_few_seeds_are_published_only_as_exploratory(tmp_path):
    study = study_of(seeds(load("digits-int8"), 2), "few")
    out = trained(tmp_path / "runs", study)
    with pytest.raises(InputError, match="An arm has 2 seeds, fewer than 3"):
        publish(study, out, tmp_path / "bundle", Terms())
    made = publish(study, out, tmp_path / "bundle", Terms(exploratory=True))
    assert "2 seeds for each (exploratory)" in (made / bundle.CHECKLIST).read_text()
    with pytest.raises(InputError, match="is there already; a bundle is never changed"):
        publish(study, out, tmp_path / "bundle", Terms(exploratory=True))


def add_line(line):
    def damage(folder):
        with (folder / bundle.SUMS).open("a") as file:
            file.write(f"{line}\n")

    return damage


ZEROS = "0" * 64


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (add_line(f"{ZEROS}  ../secret"), "a path inside the bundle"),
        (add_line(f"{ZEROS}  /etc/passwd"), "a path inside the bundle"),
        (add_line(f"{ZEROS}  runs/../../x"), "a path inside the bundle"),
        (add_line(f"{ZEROS}  runs\\x"), "a path inside the bundle"),
        (add_line(f"{ZEROS}  C:/x"), "a path inside the bundle"),
        (add_line(f"{ZEROS}  a\x1b[2Jb"), r"a\x1b[2Jb"),
        (add_line("nonsense"), "a line is a digest"),
        (add_line(f"{ZEROS}  study.json"), "study.json is there twice"),
        (add_line(f"{ZEROS}  nothing"), "nothing is missing"),
        (lambda b: (b / "more").write_text("x"), "more is not listed in SHA256SUMS"),
        (
            lambda b: (b / bundle.STUDY).write_text("[]"),
            "study.json is not the file that was published; its digest differs",
        ),
        (
            lambda b: (b / "link").symlink_to("/etc/passwd"),
            "link is neither a file nor a folder",
        ),
        (lambda b: os.mkfifo(b / "pipe"), "pipe is neither a file nor a folder"),
        (lambda b: (b / bundle.SUMS).unlink(), "is no bundle: cannot read SHA256SUMS"),
    ],
)
def test_a_bundle_that_is_not_what_its_list_says_is_refused(copy, damage, fault):
    damage(copy)
    with pytest.raises(InputError) as refused:
        bundle.check(copy)
    assert fault in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_file_that_is_too_large_is_refused_before_it_is_read(copy, monkeypatch):
    monkeypatch.setattr(bundle, "LARGEST_FILE", 2000)
    monkeypatch.setattr(bundle, "digest", lambda path: pytest.fail("it was read"))
    (copy / bundle.SUMS).write_text("")
    with pytest.raises(InputError, match="is too large"):
        bundle.check(copy)


def study_with(change):
    def damage(folder):
        path = folder / bundle.STUDY
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))
        listed_anew(folder)

    return damage


EVIL = {"kind": "import", "target": "evil_package.module:make", "arguments": {}}


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (
            study_with(lambda s: s["cells"][0]["config"].update(seed=9)),
            "but its settings are those of",
        ),
        (
            study_with(lambda s: s["cells"][0]["config"].update(schedule=EVIL)),
            "needs the code of evil_package.module:make, which is not a part of it",
        ),
        (study_with(lambda s: s.update(name="../x")), "The name of a study: it must"),
        (
            study_with(lambda s: s["cells"][0].update(run_id="../../../x")),
            "study.json is damaged",
        ),
        (
            study_with(lambda s: s["cells"][0]["config"].update({"a\x1b[2J": 1})),
            r"a\x1b[2J",
        ),
    ],
)
def test_a_bundle_with_other_settings_than_it_says_is_refused(copy, damage, fault):
    damage(copy)
    with pytest.raises(InputError) as refused:
        reproduce.read(copy)
    assert fault in str(refused.value)
    assert str(refused.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("file", "text"),
    [("metrics.jsonl", '{"step":1,"loss":\n'), ("environment.json", "{}")],
)
def test_a_damaged_run_is_said_before_anything_is_trained(copy, file, text):
    first = sorted((copy / "runs").iterdir())[0]
    (first / file).write_text(text)
    listed_anew(copy)
    study = reproduce.read(copy)
    with pytest.raises(InputError, match=f"{file} is damaged"):
        reproduce.jobs(study, study.cells, copy)


def test_the_config_of_a_run_cannot_smuggle_in_code(copy, tmp_path, monkeypatch):
    package = tmp_path / "evil_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was run')")
    (package / "module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    path = store.locate(copy / "runs", STUDY.cells[0].experiment) / store.CONFIG
    tree = json.loads(path.read_text()) | {"schedule": EVIL}
    path.write_text(json.dumps(tree))
    listed_anew(copy)
    with pytest.raises(InputError, match=r"has other settings than study\.json"):
        reproduce.read(copy)
    study_with(lambda s: s["cells"][0]["config"].update(schedule=EVIL))(copy)
    with pytest.raises(InputError, match="allow it with --allow-code evil_package"):
        reproduce.read(copy)
    sinks = {"sinks": [EVIL]}  # are not asked for, nor run
    path.write_text(json.dumps(tree | {"schedule": STUDY_TREE["schedule"]} | sinks))
    study_with(
        lambda s: s["cells"][0]["config"].update(sinks, schedule=STUDY_TREE["schedule"])
    )(copy)
    assert reproduce.read(copy).cells[0].experiment.sinks == ()


STUDY_TREE = STUDY.cells[0].experiment.model_dump(mode="json")


def test_code_of_others_is_text_until_it_is_allowed_and_equal(tmp_path, monkeypatch):
    package = tmp_path / "strangers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = "def make(low: int = 4): ...\n"
    (package / "schedules.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"kind": "import", "target": "strangers.schedules:make"}
    study = study_of(seeds(grid(load("digits-cpt"), {"schedule": [own]}), 3), "own")
    out = trained(tmp_path / "runs", study)
    made = publish(study, out, tmp_path / "bundle", Terms())
    assert (made / "code" / "strangers.schedules.py.txt").read_text() == source
    with pytest.raises(InputError, match="--allow-code strangers"):
        reproduce.read(made)
    assert reproduce.read(made, ["strangers"]) == study
    (package / "schedules.py").write_text(source.replace("4", "5"))
    with pytest.raises(InputError, match="is not the one that was published"):
        reproduce.read(made, ["strangers"])


def test_a_run_that_comes_out_as_it_was_is_equal(published, tmp_path):
    out = trained(tmp_path, now=CLEAN | {"cpu": "another"})
    found = reproduce.compare(STUDY, STUDY.cells, published, out)
    assert {each.verdict for each in found} == {"equal"}


def test_within_the_spread_of_seeds_a_result_is_consistent(published, tmp_path):
    values = np.array([accuracy(cell) for cell in STUDY.cells[:SEEDS]])
    # A prediction interval of scipy's own: of the mean, widened by one more draw.
    t = stats.t(SEEDS - 1, scale=values.std(ddof=1) * np.sqrt(1 + 1 / SEEDS))
    _, half = t.interval(0.95)
    for shift, verdict in ((0.99 * half, "consistent"), (1.01 * half, "different")):
        out = trained(
            tmp_path / verdict,
            now=CLEAN | {"jax": "0.1"},
            results=lambda cell, shift=shift: accuracy(cell) + shift,
            loss=2.5,
        )
        first = reproduce.compare(STUDY, STUDY.cells[:1], published, out)[0]
        assert first.verdict == verdict
        assert f"jax was {CLEAN['jax']}, is 0.1; they part at step 2" in first.cause
    assert "test/highest/accuracy is out of range" in first.cause


def test_two_runs_are_set_side_by_side(tmp_path):
    out = trained(tmp_path, study_of(grid(load("digits-cpt"), {"seed": [0, 1]}), "a"))
    one, other = sorted(path for path in out.iterdir() if path.is_dir())
    found = difference(one, other)
    assert set(found.settings) == {"seed"}
    assert (found.environment, found.data, found.parting) == ((), None, None)
    assert set(found.results) == {"test/highest/accuracy"}
    with metrics.start(other / store.METRICS, 1) as file:
        metrics.append(file, [2], {"loss": [float("nan")]})
    parting = difference(one, other).parting
    assert (parting.step, parting.name, parting.values[0]) == (2, "loss", 2.0)


# Writes what was published, or something else where a file says so.
WORKER = """
import json, pathlib, shutil, sys
from adaprec_jax.runs import environment, metrics, store
from adaprec_jax.runs.validation import validate
asked = json.loads(sys.stdin.readline())
for config in asked["configs"]:
    run = validate(config)
    directory = store.locate(pathlib.Path(asked["out"]), run)
    with store.session(directory, run, environment.code(), "made up"):
        with metrics.start(directory / store.METRICS, 0) as file:
            metrics.append(file, [1, 2], {"loss": [3.0, 2.0]})
        shift = float(pathlib.Path("shift").read_text())
        accuracy = 0.5 + 0.01 * run.seed + shift
        results = {"test/highest/accuracy": accuracy, "compilations": 2.0}
        store.finish(directory, store.Outcome("done", 600, results))
"""


@pytest.mark.parametrize(
    ("shift", "code", "verdict"), [(0, 0, "equal"), (0.2, 4, "different")]
)
def test_the_command_says_whether_a_bundle_was_reproduced(
    published, tmp_path, monkeypatch, capsys, shift, code, verdict
):
    monkeypatch.chdir(tmp_path)
    Path("worker.py").write_text(WORKER)
    Path("shift").write_text(str(shift))
    monkeypatch.setattr(local, "_COMMAND", (sys.executable, "worker.py"))
    monkeypatch.setenv("PYTHONPATH", str(Path(store.__file__).parents[2]))
    command = ["adaprec", "reproduce", str(published), "--runs", "2", "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    said = json.loads(capsys.readouterr().out)
    assert (ended.value.code, said["verdict"]) == (code, verdict)
    assert [each["name"] for each in said["runs"]] == [
        store.locate(Path(), STUDY.cells[k].experiment).name for k in (0, SEEDS)
    ]
