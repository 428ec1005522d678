"""All runs of this question, as packs that its studies share; the bundle is of these.

adaprec sweep experiments/early_or_late/study.py --name early_or_late
"""

from adaprec_jax.runs.config import Experiment
from experiments import rates
from experiments.early_or_late import baseline_rate, tuned


def sweep() -> list[Experiment]:
    return rates.together(tuned.sweep(), baseline_rate.sweep())
