"""Every arm at every learning rate, on seeds used for nothing else.

adaprec sweep experiments/float16_parts/tuning.py --name float16_parts-tuning --out RUNS
"""

from adaprec_jax.runs.config import Experiment
from experiments import rates
from experiments.float16_parts.arms import RATES, TUNING, arms


def sweep() -> list[Experiment]:
    return rates.tuning(arms(), RATES, TUNING)
