"""The study with every arm at the learning rate that suits it best.

adaprec sweep experiments/deficits/tuned.py --name deficits-tuned
"""

from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.deficits.arms import SEEDS, arms


def sweep() -> list[Experiment]:
    return seeds(rates.tuned(arms(), Path(__file__).parent), SEEDS)
