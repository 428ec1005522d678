"""The study with every arm at the learning rate that suits float32 best.

adaprec sweep experiments/deficits/baseline_rate.py --name deficits-baseline
"""

from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.deficits.arms import BASELINE, SEEDS, arms


def sweep() -> list[Experiment]:
    rate = rates.chosen(Path(__file__).parent)[BASELINE]
    return seeds([rates.at(each, rate) for each in arms()], SEEDS)
