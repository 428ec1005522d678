"""The pilot: three arms at their own rates, which tuning has trained.

adaprec sweep experiments/float16_parts/pilot.py --name float16_parts-pilot --out RUNS
"""

from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.float16_parts.arms import BASELINE, LOWEST, TUNING, arms


def sweep() -> list[Experiment]:
    names = (BASELINE, LOWEST, "teacher-neither")
    some = [each for each in arms() if each.name in names]
    return seeds(rates.tuned(some, Path(__file__).parent), TUNING)
