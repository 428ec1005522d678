"""The study with every arm at the learning rate that suits float32 best.

adaprec sweep experiments/cpt_against_static/baseline_rate.py --name cpt-baseline-rate
"""

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments.cpt_against_static.arms import BASELINE, arms, at, chosen

SEEDS = 20


def sweep() -> list[Experiment]:
    rate = chosen()[BASELINE]
    return seeds([at(each, rate) for each in arms()], SEEDS)
