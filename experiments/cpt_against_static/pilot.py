"""The pilot: float32, CPT and the lowest static bits, on seeds used for nothing else.

adaprec sweep experiments/cpt_against_static/pilot.py --name cpt-pilot --out RUNS
"""

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments.cpt_against_static.arms import BASELINE, LOWEST, arms

SEEDS = range(900, 908)


def sweep() -> list[Experiment]:
    names = (BASELINE, LOWEST, "digits-cpt")
    return seeds([each for each in arms() if each.name in names], SEEDS)
