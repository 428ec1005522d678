"""Every arm at every learning rate, on seeds used for nothing else.

    adaprec sweep experiments/cpt_against_static/tuning.py --name cpt-tuning --out RUNS
    python -m experiments.cpt_against_static.choose RUNS

Only the validation set is looked at.
"""

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments.cpt_against_static.arms import RATES, arms, at

SEEDS = range(800, 803)


def sweep() -> list[Experiment]:
    return seeds([at(each, rate) for each in arms() for rate in RATES], SEEDS)
