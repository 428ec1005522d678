"""Ray and Slurm: what is said without them, how they are called, and a real cluster.

A module of a few lines stands in for each where it is not what is tested. The slow
tests need the extras `ray` and `slurm`.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs import environment, metrics, store
from adaprec_jax.runs.store import Outcome
from adaprec_jax.runs.validation import validate
from adaprec_jax.studies import ray_engine, slurm_engine, worker
from adaprec_jax.studies.study import load_study
from tests.test_sweep_command import CONFIG


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config of three arms and two seeds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def adaprec(capsys, monkeypatch, folder):
    def call(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["adaprec", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_one_sentence(
    adaprec, monkeypatch, engine, package
):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = adaprec("sweep", "tiny.py", "--engine", engine)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"pip install 'adaprec-jax[{engine}]'" in err
    assert not Path("runs").exists()


def test_an_engine_that_cannot_be_imported_is_one_sentence(adaprec, monkeypatch):
    def broken(name: str):
        raise KeyError("libamd_smi.so")

    monkeypatch.setattr(ray_engine.importlib, "import_module", broken)
    code, _, err = adaprec("sweep", "tiny.py", "--engine", "ray")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "Ray cannot be imported, KeyError: 'libamd_smi.so'." in err


def attempt(line: str) -> tuple[int, str]:
    """Writes what a run would; the closed loop fails where a pack is trained."""
    asked = json.loads(line)
    if len(asked["configs"]) == 2:
        return worker.FAILED, ""
    for config in asked["configs"]:
        run = validate(config)
        if run.schedule.kind == "two_threshold" and run.seed == 1:
            return worker.USAGE, "The data is gone."
        directory = store.locate(Path(asked["out"]), run)
        with store.session(directory, run, environment.code(), "made up"):
            store.finish(directory, Outcome("done", run.steps, {}))
    return 0, ""


def fake_ray() -> types.ModuleType:
    """Tasks that are done at once; those that end first were begun last."""
    ray = types.ModuleType("ray")
    ray.exceptions = types.SimpleNamespace(RayError=RuntimeError)
    ray.init = lambda **options: None
    ray.remote = lambda **options: (
        lambda function: types.SimpleNamespace(remote=lambda line: (line, function))
    )
    ray.wait = lambda tasks, **options: ([tasks[-1]], tasks[:-1])
    ray.get = lambda task: task[1](task[0])
    return ray


def fake_submitit() -> types.ModuleType:
    module = types.ModuleType("submitit")

    class AutoExecutor:
        cluster = "slurm"

        def __init__(self, folder, cluster):
            self.parameters = {}

        def update_parameters(self, **parameters):
            self.parameters |= parameters

        def map_array(self, function, lines):
            assert self.parameters == {"slurm_array_parallelism": 3}
            return [
                types.SimpleNamespace(
                    done=lambda: True,
                    exception=lambda: None,
                    result=lambda line=line: function(line),
                )
                for line in lines
            ]

    module.AutoExecutor = AutoExecutor
    return module


def test_ray_trains_what_is_missing_and_tells_what_is_not(adaprec, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", fake_ray())
    monkeypatch.setattr(worker, "attempt", attempt)
    code, out, err = adaprec("sweep", "tiny.py", "--engine", "ray")
    assert code == 3
    assert "and 1 more failed together; each is trained alone" in err
    assert "digits-two-threshold seed 1: The data is gone." in out
    assert out.splitlines()[-1] == "tiny: 5 of 6 runs have a result, 1 is a hole"


def test_slurm_trains_what_is_missing(adaprec, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", fake_submitit())
    monkeypatch.setattr(slurm_engine, "_POLL", 0)
    monkeypatch.setattr(worker, "attempt", attempt)
    options = ["--engine", "slurm", "--workers", "3", "--no-packs"]
    code, out, _ = adaprec("sweep", "tiny.py", *options)
    assert code == 3
    assert "digits-two-threshold seed 1: The data is gone." in out
    assert out.splitlines()[-1] == "tiny: 5 of 6 runs have a result, 1 is a hole"


@pytest.mark.extras
def test_a_node_that_is_killed_leaves_no_hole(adaprec, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(store.__file__).parents[2]))
    steps = ["--set", "steps=400", "--set", "checkpoint_every=40", "--no-packs"]
    assert adaprec("sweep", "tiny.py", *steps, "--out", "alone")[0] == 0
    Path("runs").mkdir()
    trained = subprocess.run(
        [sys.executable, "-m", "tests.killed_ray_node", "alone/tiny", "runs"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert json.loads(trained.stdout.splitlines()[-1]) == [{}, 1]
    for cell in load_study("tiny", Path("alone")).cells:
        one, other = (
            store.locate(Path(out), cell.experiment) for out in ("runs", "alone")
        )
        assert store.state(one) == "done"
        assert metrics.read(one / store.METRICS) == metrics.read(other / store.METRICS)


@pytest.mark.extras
def test_submitit_trains_on_this_machine(folder, monkeypatch):
    # A process of its own: submitit configures logging anew, whereupon Abseil's handler
    # closes the captured standard error that it was made with.
    monkeypatch.setenv("PYTHONPATH", str(Path(store.__file__).parents[2]))
    options = ["--engine", "slurm", "--address", "local"]
    done = subprocess.run(
        [sys.executable, "-m", "adaprec_jax", "sweep", "tiny.py", *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "tiny: 6 of 6 runs have a result"
