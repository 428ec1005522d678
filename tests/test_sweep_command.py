"""The command on studies: counted, trained once, told of, and after any kill the same.

A worker of Python alone stands in for the one that trains, but in the slow tests.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs import metrics, store
from adaprec_jax.runs.store import Outcome
from adaprec_jax.studies import local
from adaprec_jax.studies.following import Follower
from adaprec_jax.studies.study import load_study

CONFIG = """
from adaprec_jax.runs.config import MLP, Teacher
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply, assignments
from adaprec_jax.studies.sweep import chain, grid, seeds

TINY = {
    "task": Teacher(size=64), "model": MLP(hidden=(4,)), "batch_size": 8, "steps": 40,
    "steps_per_dispatch": 4, "evaluate_every": 20, "checkpoint_every": 8,
}

def sweep():
    cpt, closed = (
        apply(load(name), assignments(TINY))
        for name in ("digits-cpt", "digits-two-threshold")
    )
    return seeds(chain(grid(cpt, {"schedule.cycles": [2, 3]}), closed), 2)
"""
# Ends as a folder `fates` says of the seed, each fate once: then it is done.
WORKER = """
import json, os, pathlib, signal, sys
from adaprec_jax.runs import environment, store
from adaprec_jax.runs.validation import validate
asked = json.loads(sys.stdin.readline())
ends = {"failed": 3, "interrupted": 130}
worst = 0
for config in asked["configs"]:
    run = validate(config)
    fates = pathlib.Path("fates", str(run.seed))
    fate = fates.read_text() if fates.exists() else "done"
    fates.unlink(missing_ok=True)
    with pathlib.Path("asked").open("a") as file:
        file.write(f"{run.name} {run.seed} {len(asked['configs'])}\\n")
    directory = store.locate(pathlib.Path(asked["out"]), run)
    if fate == "refused":
        sys.exit(sys.stderr.write("The data is gone.\\n") and 2)
    with store.session(directory, run, environment.code(), "made up"):
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = store.Outcome(fate, run.steps, {"test/accuracy": 0.5}, "")
        store.finish(directory, outcome)
        worst = max(worst, ends.get(fate, 0))
sys.exit(worst)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config and a worker that trains nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(CONFIG)
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "fates").mkdir()
    monkeypatch.setattr(local, "_COMMAND", (sys.executable, "worker.py"))
    monkeypatch.setenv("PYTHONPATH", str(Path(store.__file__).parents[2]))
    return tmp_path


@pytest.fixture
def adaprec(capsys, monkeypatch, folder):
    """Runs the command; returns exit code, output and errors."""

    def call(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["adaprec", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


def asked(folder):
    """What the workers were asked for: name, seed, runs of the pack."""
    path = folder / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [tuple(line.split()) for line in lines]


def test_a_dry_run_counts_and_prices_and_trains_nothing(adaprec, folder):
    code, out, _ = adaprec("sweep", "tiny.py", "--dry-run", "--json")
    priced = json.loads(out)
    assert code == 0
    assert (priced["runs"], priced["steps"], priced["steps_left"]) == (6, 240, 240)
    assert (priced["packs"], priced["uncounted"]) == (2, 2)
    costs = [arm["cost"] for arm in priced["arms"]]
    assert costs[2] is None
    known = costs[0] + costs[1]
    assert priced["float32_steps"] == pytest.approx(2 * 40 * known)
    assert "6 runs in 3 arms; 6 missing" in adaprec("sweep", "tiny.py", "--dry-run")[1]
    assert not (folder / "runs").exists()


def test_a_sweep_typed_again_trains_nothing(adaprec, folder):
    code, out, err = adaprec("sweep", "tiny.py", "--workers", "2")
    assert code == 0
    assert out.splitlines()[-1] == "tiny: 6 of 6 runs have a result"
    assert len(err.splitlines()) == 6
    assert sorted(asked(folder)) == [
        *[("digits-cpt", seed, "4") for seed in "0011"],
        *[("digits-two-threshold", seed, "2") for seed in "01"],
    ]
    assert adaprec("sweep", "tiny.py")[0] == 0
    assert asked(folder) == []
    (folder / "tiny.py").write_text(CONFIG.replace(", 2)\n", ", 3)\n"))
    assert adaprec("sweep", "tiny.py", "--no-packs", "--workers", "3")[0] == 0
    assert [(seed, together) for _, seed, together in asked(folder)] == [("2", "1")] * 3


def test_what_failed_is_a_hole_until_it_is_tried_again(adaprec, folder):
    (folder / "fates" / "1").write_text("failed")
    code, out, _ = adaprec("sweep", "tiny.py", "--no-packs", "--workers", "3")
    assert code == 3
    assert out.splitlines()[-1] == "tiny: 5 of 6 runs have a result, 1 is a hole"
    assert "digits-cpt seed 1: failed after 40 steps" in out
    asked(folder)
    assert adaprec("sweep", "tiny.py")[0] == 3
    assert adaprec("retry", "tiny")[0] == 3
    assert asked(folder) == []
    counts = json.loads(adaprec("status", "tiny", "--json")[1])
    assert (counts["holes"], counts["states"]["failed"]) == (1, 1)
    (folder / "tiny.py").unlink()  # the study is a list of its own
    assert adaprec("retry", "tiny", "--failed")[0] == 0
    assert asked(folder) == [("digits-cpt", "1", "1")]


def test_a_pack_that_fails_is_trained_run_by_run(adaprec, folder):
    (folder / "fates" / "1").write_text("failed")
    code, out, err = adaprec("sweep", "tiny.py")
    assert code == 0, out
    assert "and 3 more failed together; each is trained alone" in err
    assert ("digits-cpt", "1", "1") in asked(folder)


def test_a_worker_that_is_killed_is_begun_again(adaprec, folder):
    (folder / "fates" / "0").write_text("killed")
    code, _, err = adaprec("sweep", "tiny.py", "--no-packs", "--workers", "3")
    assert code == 0
    assert "digits-cpt with seed 0: its process died of SIGKILL; it goes on" in err
    assert asked(folder).count(("digits-cpt", "0", "1")) == 3


@pytest.mark.slow
def test_a_pack_that_dies_again_and_again_is_trained_run_by_run(
    adaprec, folder, monkeypatch
):
    worker = WORKER.replace(
        "worst = 0", 'worst = 0\nif len(asked["configs"]) == 4: os.abort()'
    )
    (folder / "worker.py").write_text(worker)
    code, out, err = adaprec("sweep", "tiny.py")
    assert (code, out.splitlines()[-1]) == (0, "tiny: 6 of 6 runs have a result")
    assert err.count("died of SIGABRT; it goes on") == 2
    assert "died of SIGABRT again; each is trained alone" in err


def test_a_study_that_changes_says_which_runs_leave_it(adaprec, folder):
    assert adaprec("sweep", "tiny.py", "--workers", "3")[0] == 0
    (folder / "tiny.py").write_text(CONFIG.replace(", 2)\n", ", 1)\n"))
    code, out, err = adaprec("sweep", "tiny.py")
    assert (code, out.splitlines()[-1]) == (0, "tiny: 3 of 3 runs have a result")
    assert err == (
        "note: 3 other runs of a study tiny leave its list; what was trained stays in "
        "runs.\n"
    )


def test_a_run_that_cannot_begin_is_told_of_with_its_reason(adaprec, folder):
    (folder / "fates" / "1").write_text("refused")
    code, out, _ = adaprec("sweep", "tiny.py", "--no-packs", "--workers", "3")
    assert code == 3
    assert "digits-cpt seed 1: The data is gone." in out
    assert "1 is a hole" in out
    assert adaprec("sweep", "tiny.py")[0] == 0


@pytest.mark.slow
def test_a_run_that_somebody_else_trains_is_waited_for(adaprec, folder):
    adaprec("sweep", "tiny.py", "--no-packs", "--workers", "3")
    asked(folder)
    cell = load_study("tiny", Path("runs")).cells[0]
    directory = store.locate(Path("runs"), cell.experiment)
    (directory / store.STATUS).unlink()
    held = (
        "import pathlib, sys, time\n"
        "from adaprec_jax.runs import environment, store\n"
        "d = pathlib.Path(sys.argv[1])\n"
        "e = store.experiment_of(d)\n"
        "with store.session(d, e, environment.code(), 'made up'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(1)\n"
        "    store.finish(d, store.Outcome('done', 40, {}))\n"
    )
    command = [sys.executable, "-c", held, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert json.loads(adaprec("status", "tiny", "--json")[1])["states"]["running"]
        assert adaprec("sweep", "tiny.py")[0] == 0
    assert asked(folder) == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["sweep", "digit"], "Unknown sweep 'digit'; did you mean 'digits'?"),
        (["sweep", "tiny.py", "--set", "stepz=3"], "Unknown setting 'stepz'; did you"),
        (["sweep", "tiny.py", "--set", "seed=3"], "The runs 0 and 1 of the study are"),
        (["sweep", "tiny.py", "--name", "a/b"], "The name of a study: it must begin"),
        (["sweep", "tiny.py", "--out", "/dev/null/x"], "Cannot write /dev/null/x: "),
        (["status", "digits"], "There is no study 'digits' in runs; there are none."),
        (["retry", "x.study.json"], "There is no study 'x.study.json' in runs; "),
    ],
)
def test_bad_input_is_one_sentence(adaprec, folder, arguments, fault):
    code, _, err = adaprec(*arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"adaprec: {fault}")
    assert asked(folder) == []


def test_a_run_is_followed_by_what_it_writes(tmp_path):
    follower = Follower(tmp_path, 40)
    assert follower.look().step == 0
    path = tmp_path / store.METRICS
    bits = {"bits/a/forward.weight": [3.0], "bits/a/dgrad.gradient": [8.0]}
    with metrics.start(path, 0) as file:
        metrics.append(file, [1], {"loss": [2.5]} | bits)
        metrics.append(file, [2], {"loss": [1.5]})
    line = follower.look()
    assert (line.step, line.loss, line.precision) == (2, 1.5, "3 bits")
    with metrics.start(path, 1) as file:  # killed, and gone on from step 1
        metrics.append(file, [2, 3], {"loss": [1.25, 1.0]})
    assert follower.look().loss == 1.0


@pytest.mark.slow
def test_a_thousand_runs_are_looked_at_within_seconds(tmp_path):
    from adaprec_jax.runs import environment
    from adaprec_jax.runs.load import load
    from adaprec_jax.studies.states import count, look
    from adaprec_jax.studies.study import save, study_of
    from adaprec_jax.studies.sweep import seeds

    study = study_of(seeds(load("digits-cpt"), 1000), "many")
    save(study, tmp_path)
    now, outcome = environment.code(), Outcome("done", 600, {"test/accuracy": 0.5})
    for cell in study.cells[::2]:
        directory = tmp_path / f"digits-cpt-{cell.run_id}"
        with store.session(directory, cell.experiment, now, "made up"):
            store.finish(directory, outcome)
    began = time.monotonic()
    counts = count(look(load_study("many", tmp_path), tmp_path))
    assert time.monotonic() - began < 5
    assert (counts["done"], counts["new"]) == (500, 500)


def sweep_process(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    (folder / "tiny.py").write_text(CONFIG)
    command = "from adaprec_jax.cli import main; main()"
    settings = ["--set", "steps=800", "--set", "checkpoint_every=40"]
    return subprocess.Popen(
        [sys.executable, "-c", command, "sweep", "tiny.py", *settings, *options],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module", params=["--packs", "--no-packs"])
def undisturbed(request, tmp_path_factory):
    """How the runs of a sweep are trained, and the folder of one left in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert sweep_process(folder, request.param).wait() == 0
    return request.param, folder


def wait_for_checkpoints(folder: Path, count: int) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        if len([*folder.glob("runs/*/checkpoints/[0-9]*")]) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint was written")


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in children.split()]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["worker", "driver", "ctrl-c"])
def test_a_sweep_that_is_killed_comes_to_the_same_end(undisturbed, tmp_path, what):
    option, there = undisturbed
    process = sweep_process(tmp_path, option)
    wait_for_checkpoints(tmp_path, 3)
    if what == "worker":
        os.kill(workers_of(process)[0], signal.SIGKILL)
        assert process.wait() == 0
    else:
        number = signal.SIGKILL if what == "driver" else signal.SIGINT
        process.send_signal(number)
        assert process.wait() == (-9 if what == "driver" else 130)
        assert sweep_process(tmp_path, option).wait() == 0
    study = load_study("tiny", tmp_path / "runs")
    for cell in study.cells:
        one, other = (
            store.locate(folder / "runs", cell.experiment)
            for folder in (tmp_path, there)
        )
        written = (one / store.METRICS).read_bytes()
        assert written == (other / store.METRICS).read_bytes()
        ended, expected = store.outcome(one), store.outcome(other)
        assert ended.state == "done"
        assert {**ended.results, "compilations": 1} == {
            **expected.results, "compilations": 1,
        }  # fmt: skip
