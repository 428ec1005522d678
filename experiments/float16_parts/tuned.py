"""The study with every arm at the learning rate that suits it best.

adaprec sweep experiments/float16_parts/tuned.py --name float16_parts-tuned
"""

from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.float16_parts.arms import SEEDS, arms


def sweep() -> list[Experiment]:
    return seeds(rates.tuned(arms(), Path(__file__).parent), SEEDS)
