"""The pilot: three arms at their own rates, which tuning has trained.

adaprec sweep experiments/deficits/pilot.py --name deficits-pilot --out RUNS
"""

from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.deficits.arms import BASELINE, LOWEST, arms


def sweep() -> list[Experiment]:
    names = (BASELINE, LOWEST, "digits-deficit-first")
    some = [each for each in arms() if each.name in names]
    return seeds(rates.tuned(some, Path(__file__).parent), rates.TUNING)
