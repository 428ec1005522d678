"""The study with every arm at the learning rate that suits it best.

adaprec sweep experiments/cpt_against_static/tuned.py --name cpt-tuned
"""

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments.cpt_against_static.arms import arms, at, chosen

SEEDS = 20


def sweep() -> list[Experiment]:
    rates = chosen()
    return seeds([at(each, rates[each.name]) for each in arms()], SEEDS)
