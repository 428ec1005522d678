"""A run in two processes is the run in one, and goes on in another number of them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from adaprec_jax.cli.processes import Place, place
from adaprec_jax.runs import metrics, overrides, run as running, store
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load

SETTINGS = {
    "devices": "8",
    "model.hidden": "[16]",
    "steps": "40",
    "evaluate_every": "20",
    "checkpoint_every": "20",
    "steps_per_dispatch": "10",
    "mesh.tensor": "2",
    "mesh.spread_parameters": "true",
}
SECONDS = 300  # of two processes on a busy machine


def options(settings: dict[str, str]) -> list[str]:
    return [part for item in settings.items() for part in ("--set", "=".join(item))]


@contextlib.contextmanager
def two_processes(*arguments: str):
    """Yields two processes of four devices each; none outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=4"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "adaprec_jax", *arguments, "--coordinator", at,
             "--process-id", str(number), "--processes", "2"],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stderr.close()


def run_in_two(*arguments: str) -> None:
    with two_processes(*arguments) as started:
        said = [process.communicate(timeout=SECONDS)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], said


def losses(directory: Path) -> np.ndarray:
    columns = metrics.read(directory / store.METRICS)
    assert [*columns["loss"]] == [*range(1, 41)]
    return np.array([*columns["loss"].values()])


def halfway(directory: Path, copy: Path) -> Path:
    """Returns a copy of a run as if it had been killed after its first checkpoint."""
    shutil.copytree(directory, copy / directory.name)
    run = copy / directory.name
    (run / store.STATUS).unlink()
    shutil.rmtree(run / store.CHECKPOINTS / "40")
    return run


@pytest.mark.slow
def test_two_processes_agree_with_one_and_go_on_in_another_number(tmp_path):
    experiment = overrides.apply(
        load("digits-int8"), ["=".join(item) for item in SETTINGS.items()]
    )
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert running.run(experiment, out=alone).state == "done"
    run_in_two("run", "digits-int8", *options(SETTINGS), "--out", str(both))
    one, two = (store.locate(out, experiment) for out in (alone, both))
    # Sums of float32 between processes are formed in an order of their own.
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-6)
    results = [store.outcome(each).results for each in (two, one)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)

    later = halfway(two, tmp_path / "two_to_one")
    assert running.resume(later).state == "done"
    np.testing.assert_allclose(losses(later), losses(one), rtol=1e-6)

    later = halfway(one, tmp_path / "one_to_two")
    run_in_two("resume", str(later))
    np.testing.assert_allclose(losses(later), losses(one), rtol=1e-6)


def begun(out: Path, started: list[subprocess.Popen]) -> Path:
    """Waits until a run has taken steps."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        for path in out.glob(f"*/{store.METRICS}"):
            if path.stat().st_size:
                return path.parent
        assert all(process.poll() is None for process in started)
        time.sleep(0.2)
    raise TimeoutError(out)


LONG = SETTINGS | {"steps": "1000000", "model.hidden": "[17]", "mesh.tensor": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other(killed, tmp_path):
    arguments = ("run", "digits-int8", *options(LONG), "--out", str(tmp_path))
    with two_processes(*arguments) as started:
        directory = begun(tmp_path, started)
        started[killed].kill()
        left = started[1 - killed]
        said = left.communicate(timeout=100)[1]
    assert left.returncode not in (0, None), said
    # JAX may end a process that has lost another before it can say so.
    assert store.state(directory) in ("failed", "interrupted")
    if outcome := store.outcome(directory):
        assert "another process of the run has ended" in outcome.message
        assert left.returncode == 3


@pytest.mark.slow
def test_both_stop_where_one_is_asked_to(tmp_path):
    arguments = ("run", "digits-int8", *options(LONG), "--out", str(tmp_path))
    with two_processes(*arguments) as started:
        directory = begun(tmp_path, started)
        started[1].send_signal(signal.SIGINT)
        said = [process.communicate(timeout=SECONDS)[1] for process in started]
        assert [process.returncode for process in started] == [130, 130], said
    outcome = store.outcome(directory)
    assert outcome.state == "interrupted"
    assert (directory / store.CHECKPOINTS / str(outcome.step)).is_dir()


def test_the_options_of_a_process_go_together():
    assert place(None, None, None) is None
    assert place("here:80", 1, 2) == Place("here:80", 1, 2)
    for given, sentence in [
        (("here:80", None, 2), "needs all of --coordinator, --process-id and"),
        (("here", 0, 2), "--coordinator must be HOST:PORT, got here"),
        (("here:0", 0, 2), "--coordinator must be HOST:PORT, got here:0"),
        (("here:80", 2, 2), "--process-id must lie in 0 to 1, got 2"),
    ]:
        with pytest.raises(InputError, match=sentence):
            place(*given)
