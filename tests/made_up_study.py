"""Run directories of a study whose numbers are given, not trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaprec_jax.runs import environment, metrics, store
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.runs.store import Outcome
from adaprec_jax.studies.study import Study, directories, save, study_of

STEPS = 600
ACCURACY = "test/highest/accuracy"


def experiments(arms: Sequence[str], seeds: int) -> list[Experiment]:
    return [apply(load(arm), [f"seed={seed}"]) for arm in arms for seed in range(seeds)]


def study(out: Path, arms: Sequence[str], seeds: int, name: str = "made-up") -> Study:
    found = study_of(experiments(arms, seeds), name)
    save(found, out)
    return found


def end(
    study: Study,
    out: Path,
    arm: str,
    seed: int,
    results: Mapping[str, float] | None,
    *,
    state: Any = "done",
    rows: Mapping[int, Mapping[str, float]] | None = None,
    **environment_: Any,
) -> Path:
    """Writes the directory of one run; without results it diverged."""
    for cell, directory in zip(study.cells, directories(study, out), strict=True):
        if (cell.experiment.name, cell.seed) == (arm, seed):
            now = environment.code() | {"commit": "a" * 40} | environment_
            with store.session(directory, cell.experiment, now, "made up"):
                with metrics.start(directory / store.METRICS, 0) as file:
                    for step, row in (rows or {}).items():
                        metrics.append(file, [step], {n: [v] for n, v in row.items()})
                store.finish(directory, Outcome(state, STEPS, dict(results or {})))
            return directory
    raise KeyError((arm, seed))
