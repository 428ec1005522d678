"""Every arm at every learning rate, on seeds used for nothing else.

adaprec sweep experiments/early_or_late/tuning.py --name early_or_late-tuning --out RUNS
"""

from adaprec_jax.runs.config import Experiment
from experiments import rates
from experiments.early_or_late.arms import RATES, arms


def sweep() -> list[Experiment]:
    return rates.tuning(arms(), RATES)
