import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adaprec_jax.runs import environment, identity, metrics, overrides, store
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.store import Outcome

TINY = load("digits-cpt")
HERE = {"jax": "1.0", "commit": "a"}
DONE = Outcome("done", 600, {"test/accuracy": 0.5})


@pytest.fixture
def directory(tmp_path):
    return store.locate(tmp_path / "runs", TINY)


def begin(directory, experiment=TINY, now=HERE, data="made up"):
    return store.session(directory, experiment, now, data)


def test_a_run_goes_from_new_over_running_to_its_end(directory):
    assert store.state(directory) == "new"
    with begin(directory):
        assert store.state(directory) == "running"
    assert store.state(directory) == "interrupted"
    for state in ("interrupted", "failed", "done"):
        with begin(directory):
            store.finish(directory, DONE._replace(state=state))
        assert store.state(directory) == state
    assert store.outcome(directory) == DONE
    assert store.experiment_of(directory) == TINY


@pytest.mark.parametrize("state", ["done", "diverged"])
def test_a_run_that_is_over_stays_so(directory, state):
    with begin(directory):
        store.finish(directory, DONE._replace(state=state))
    with pytest.raises(InputError, match=f"already {state}"), begin(directory):
        pass
    assert store.state(directory) == state


def test_an_outcome_holds_any_number(directory):
    results = {"loss": float("inf"), "exact": 0.1 + 0.2}
    with begin(directory):
        store.finish(directory, Outcome("diverged", 3, results, "loss at step 3"))
    assert store.outcome(directory) == Outcome("diverged", 3, results, "loss at step 3")


def test_a_run_that_is_taken_up_again_has_not_ended(directory):
    with begin(directory):
        store.finish(directory, Outcome("failed", 3, {}, "why"))
    with begin(directory):
        pass
    assert store.outcome(directory) is None


HOLDER = """
import pathlib, sys, time
from adaprec_jax.runs import load, store
with store.session(pathlib.Path(sys.argv[1]), load.load("digits-cpt"), {}, "made up"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(directory):
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert store.state(directory) == "running"
        with pytest.raises(InputError) as refused, begin(directory):
            pass
        assert str(refused.value) == f"{directory} is in use by another process."
        os.kill(process.pid, signal.SIGKILL)
    assert store.state(directory) == "interrupted"
    with begin(directory):
        assert store.state(directory) == "running"


def test_a_run_is_found_by_its_id_under_another_name(directory):
    with begin(directory):
        pass
    renamed = overrides.apply(TINY, ["name=other", 'tags=["a"]'])
    assert store.locate(directory.parent, renamed) == directory
    with begin(directory, renamed):
        pass
    assert store.experiment_of(directory) == TINY


def test_another_config_in_the_directory_is_refused_with_the_difference(directory):
    with begin(directory):
        pass
    other = overrides.apply(TINY, ["schedule.min_bits=4", "schedule.cycles=3"])
    with pytest.raises(InputError) as refused, begin(directory, other):
        pass
    [sentence] = refused.value.args
    assert "schedule.min_bits is 3 there and 4 here" in sentence
    assert "schedule.cycles is 6 there and 3 here" in sentence


def test_a_config_that_was_changed_in_place_is_refused(directory):
    with begin(directory):
        pass
    config = directory / store.CONFIG
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="was changed after the run began"):
        store.experiment_of(directory)
    with (
        pytest.raises(InputError, match="seed is 1 there and 0 here"),
        begin(directory),
    ):
        pass


@pytest.mark.parametrize("name", [store.CONFIG, store.ENVIRONMENT, store.STATUS])
def test_a_damaged_file_is_one_sentence(directory, name):
    with begin(directory):
        store.finish(directory, DONE)
    (directory / name).write_text("{")
    with pytest.raises(InputError, match=name) as refused:
        _ = store.experiment_of(directory), store.outcome(directory)
    assert len(refused.value.args) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (store.STATUS, "{}"),
        (store.STATUS, "[]"),
        (store.STATUS, '{"state": "foo", "step": 3, "results": {}}'),
        (store.STATUS, '{"state": "done", "step": "x", "results": {}}'),
        (store.ENVIRONMENT, "{}"),
        (store.ENVIRONMENT, "[]"),
        (store.ENVIRONMENT, '{"run_id": "x", "data": "y", "sessions": [3]}'),
    ],
)
def test_json_of_another_kind_is_damage(directory, name, text):
    with begin(directory):
        store.finish(directory, DONE)
    (directory / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        _ = store.experiment_of(directory), store.outcome(directory)


def test_an_empty_name_means_no_run(directory):
    with begin(directory):
        pass
    with pytest.raises(InputError, match="means no runs"):
        store.find("", directory.parent)


def test_a_change_of_environment_is_told_and_recorded(directory):
    with begin(directory) as changed:
        assert changed == ()
    with begin(directory, now={"jax": "1.1", "commit": "a"}) as changed:
        assert changed == ("jax was 1.0, is 1.1",)
    with begin(directory, now={"jax": "1.1", "commit": "a"}) as changed:
        assert changed == ()


@pytest.mark.parametrize("how", ["path", "name", "beginning of id", "id"])
def test_a_run_is_meant_by_path_name_or_id(directory, how):
    with begin(directory):
        pass
    run_id = identity.run_id(TINY)
    words = {
        "path": str(directory), "name": directory.name, "id": run_id,
        "beginning of id": run_id[:4],
    }  # fmt: skip
    assert store.find(words[how], directory.parent) == directory


def test_a_run_that_is_not_there_or_not_the_only_one_is_refused(directory):
    with pytest.raises(InputError, match="'abc' means no runs in"):
        store.find("abc", directory.parent)
    for seed in (0, 1):
        seeded = overrides.apply(TINY, [f"seed={seed}"])
        with begin(store.locate(directory.parent, seeded), seeded):
            pass
    with pytest.raises(InputError, match="'digits' means 2 runs"):
        store.find("digits", directory.parent)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "runs"
    with pytest.raises(InputError) as refused:
        store.check_writable(out)
    assert str(refused.value) == (
        f"Cannot write {out}: Not a directory. What is there already is kept."
    )
    with pytest.raises(InputError), begin(out / "run"):
        pass


FULL = """
import pathlib, resource, sys
from adaprec_jax.runs import load, store
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
directory = pathlib.Path(sys.argv[1])
outcome = store.Outcome("done", 1, {str(i): 1.0 for i in range(99)})
if sys.argv[2] == "check":
    store.check_writable(directory)
if sys.argv[2] == "finish":
    store.finish(directory, outcome)
if sys.argv[2] == "session":
    with store.session(directory, load.load("digits-cpt"), {}, "made up"):
        pass
"""


@pytest.mark.parametrize("action", ["check", "finish", "session"])
def test_a_full_disk_loses_nothing_and_is_one_sentence(directory, action):
    failed = DONE._replace(state="failed")
    with begin(directory):
        store.finish(directory, failed)
    before = {p.name: p.read_bytes() for p in directory.glob("*.json")}
    command = [sys.executable, "-c", FULL, str(directory), action]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    last = said.splitlines()[-1]
    assert "InputError: Cannot write" in last
    assert "File too large" in last
    assert {p.name: p.read_bytes() for p in directory.glob("*.json")} == before
    assert store.state(directory) == "failed"


def test_a_killed_write_leaves_the_old_file(directory, monkeypatch):
    with begin(directory):
        store.finish(directory, DONE)
        monkeypatch.setattr(Path, "replace", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.finish(directory, Outcome("failed", 1, {}))
    assert store.outcome(directory) == DONE


def test_metrics_of_a_run_lie_in_its_directory(directory):
    with begin(directory), metrics.start(directory / store.METRICS, 0) as file:
        metrics.append(file, [1], {"loss": [1.0]})
    assert metrics.read(directory / store.METRICS) == {"loss": {1: 1.0}}


def test_the_environment_names_versions_hardware_flags_and_code():
    found = environment.capture()
    assert found["jax"] == __import__("jax").__version__
    assert found["device"] == "cpu"
    assert "xla_force_host_platform_device_count=8" in str(found["xla_flags"])
    assert found["devices"] == "8"
    assert {"python", "cpu", "commit", "uncommitted", "matmul_precision"} < set(found)
    assert environment.code().items() <= found.items()


def test_code_outside_a_checkout_has_no_commit(monkeypatch, tmp_path):
    package = tmp_path / "adaprec_jax"
    package.mkdir()
    (package / "__init__.py").touch()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr("adaprec_jax.__file__", str(package / "__init__.py"))
    assert environment.code()["commit"] is None
