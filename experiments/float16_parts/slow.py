"""The study with every arm at a rate so small that float16 swallows updates.

adaprec sweep experiments/float16_parts/slow.py --name float16_parts-slow
"""

from adaprec_jax.runs.config import Experiment
from adaprec_jax.studies.sweep import seeds
from experiments import rates
from experiments.float16_parts.arms import SEEDS, SLOW, arms


def sweep() -> list[Experiment]:
    return seeds([rates.at(each, SLOW) for each in arms()], SEEDS)
