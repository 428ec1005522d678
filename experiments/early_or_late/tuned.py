"""The study with every arm at the learning rate that suits it best.

adaprec sweep experiments/early_or_late/tuned.py --name early_or_late-tuned
"""

from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.early_or_late.arms import SEEDS, arms


def sweep() -> list[Experiment]:
    return seeds(rates.tuned(arms(), Path(__file__).parent), SEEDS)
