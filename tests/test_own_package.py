"""A package of somebody's own, installed: run, repeated over seeds, killed, resumed."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adaprec_jax.runs import metrics, store
from tests.test_run import only_run, wait_for_a_checkpoint

PACKAGE = Path(__file__).parent / "own_package"
COMMAND = [sys.executable, "-c", "from adaprec_jax.cli import main; main()"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the package installed."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
         "--no-build-isolation", "--disable-pip-version-check", "--no-warn-conflicts",
         "--target", str(site), str(PACKAGE)],
        check=True,
    )  # fmt: skip
    return os.environ | {"PYTHONPATH": str(site)}


def adaprec(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    adaprec(folder, environment, "run", f"{PACKAGE / 'circle.py'}:task")
    return only_run(folder)


def test_what_the_pieces_say_is_in_the_results(undisturbed: Path):
    results = store.outcome(undisturbed).results
    assert results["test/float32/error_rate"] < 0.2
    columns = metrics.read(undisturbed / store.METRICS)
    bits = columns["bits/Dense_0/forward.weight"]
    assert set(bits.values()) == {4.0, 8.0}
    # Both layers: 2 x 8 and 8 x 2 weights, at 4 or 8 bits.
    assert set(columns["cost/bytes"].values()) == {16.0, 32.0}
    assert 16 < results["cost/bytes"] < 32


def test_the_sink_was_shown_what_the_store_holds(undisturbed: Path):
    [path] = undisturbed.glob("circle-task-from-0.csv")
    shown = {(int(step), name): float(value) for step, name, value in csv.reader(
        path.read_text().splitlines())}  # fmt: skip
    stored = {
        (step, name): value
        for name, column in metrics.read(undisturbed / store.METRICS).items()
        for step, value in column.items()
    }
    assert shown.keys() == stored.keys()
    assert all(shown[key] == pytest.approx(stored[key], rel=1e-7) for key in shown)


def test_the_distribution_is_a_part_of_the_id(environment):
    script = (
        "from adaprec_jax.runs import identity, load\n"
        f"own = identity.deciding(load.load({str(PACKAGE / 'circle.py:task')!r}))\n"
        "print(own['imports']['somebodys.schedule:by_loss'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "'distribution': 'somebodys-pieces', 'version': '2.7'" in done.stdout


def test_a_data_set_alone_and_other_seeds(environment, tmp_path: Path):
    path = f"{PACKAGE / 'circle.py'}:data"
    for seed in (1, 2):
        adaprec(tmp_path, environment, "run", path, "--seed", str(seed),
                "--set", "steps=400")  # fmt: skip
    losses = {
        store.outcome(run).results["test/float32/loss"]
        for run in (tmp_path / "runs").iterdir()
    }
    assert len(losses) == 2


def test_a_killed_run_goes_on_to_the_same_end(environment, undisturbed, tmp_path: Path):
    process = subprocess.Popen(
        [*COMMAND, "run", f"{PACKAGE / 'circle.py'}:task"],
        cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_a_checkpoint(tmp_path, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    adaprec(tmp_path, environment, "resume", "circle")
    resumed = only_run(tmp_path)
    assert store.outcome(resumed) == store.outcome(undisturbed)
    one, other = (run / store.METRICS for run in (resumed, undisturbed))
    assert one.read_bytes() == other.read_bytes()
    assert len(list(resumed.glob("circle-task-from-*.csv"))) == 2
