"""The pilot: three arms at their own rates, which tuning has trained.

adaprec sweep experiments/early_or_late/pilot.py --name early_or_late-pilot --out RUNS
"""

from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.early_or_late.arms import BASELINE, LOWEST, arms


def sweep() -> list[Experiment]:
    names = (BASELINE, LOWEST, "digits-late")
    some = [each for each in arms() if each.name in names]
    return seeds(rates.tuned(some, Path(__file__).parent), rates.TUNING)
