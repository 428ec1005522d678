"""Every arm at every learning rate, on seeds used for nothing else.

adaprec sweep experiments/deficits/tuning.py --name deficits-tuning --out RUNS
"""

from adaprec_jax.runs.config import Experiment
from experiments import rates
from experiments.deficits.arms import RATES, arms


def sweep() -> list[Experiment]:
    return rates.tuning(arms(), RATES)
