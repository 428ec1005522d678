"""A sweep of 32 tiny runs as a pack, against processes and against one warm process.

The digits MLP, 200 steps each: two bit ranges of CPT and sixteen seeds. All three ways
write the same run directories. The pack is one process, its start included; a process
for each run is begun one after another; the warm process trains one run after another
and has trained one before the clock starts. Of the two slow ways a few runs are timed.

    pytest tests/benchmarks/test_sweep_speed.py -m speed -s
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.runs.store import locate, outcome
from adaprec_jax.studies.local import Hooks, train
from adaprec_jax.studies.packs import packs
from adaprec_jax.studies.states import look
from adaprec_jax.studies.study import Study, study_of
from adaprec_jax.studies.sweep import grid, seeds

RUNS, TIMED = 32, 4
OVER_PROCESSES, OVER_WARM = 10, 3  # what the pack must reach
QUIET = Hooks(lambda cells: None, lambda cells: None, lambda text: None)


def study(first_seed: int = 0) -> Study:
    short = apply(load("digits-cpt"), ["steps=200", "checkpoint_every=200"])
    arms = grid(short, {"schedule.min_bits": [3, 4]})
    return study_of(seeds(arms, range(first_seed, first_seed + RUNS // 2)), "speed")


def seconds_per_run(out: Path, *, packed: bool) -> float:
    """Returns the time of a run in processes of the local engine."""
    found = look(study(), out)
    jobs = packs(found) if packed else [[each.cell] for each in found[:TIMED]]
    where = {each.cell.run_id: each.directory for each in found}
    began = time.perf_counter()
    assert train(jobs, where, out, 1, QUIET) == {}
    taken = time.perf_counter() - began
    cells = [cell for job in jobs for cell in job]
    ended = [outcome(where[cell.run_id]) for cell in cells]
    assert all(each is not None and each.state == "done" for each in ended)
    return taken / len(cells)


def warm(out: Path) -> float:
    """Returns the time of a run among several in this process."""
    from adaprec_jax.runs.run import run

    first, *others = [cell.experiment for cell in study().cells[: TIMED + 1]]
    run(first, out=out)
    began = time.perf_counter()
    for each in others:
        run(each, out=out)
        assert locate(out, each).is_dir()
    return (time.perf_counter() - began) / len(others)


def test_a_pack_trains_tiny_runs_many_times_as_fast(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.test_sweep_speed", str(tmp_path)],
        capture_output=True,
        text=True,
        env={name: v for name, v in os.environ.items() if name != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"\nseconds per run, {RUNS} of digits with 200 steps: {found}")
    assert found["processes"] / found["pack"] >= OVER_PROCESSES
    assert found["warm"] / found["pack"] >= OVER_WARM


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {
        "pack": seconds_per_run(folder / "pack", packed=True),
        "processes": seconds_per_run(folder / "processes", packed=False),
        "warm": warm(folder / "warm"),
    }
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
