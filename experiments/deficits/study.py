"""All runs of this question, as packs that its studies share; the bundle is of these.

adaprec sweep experiments/deficits/study.py --name deficits
"""

from adaprec_jax.runs.config import Experiment
from experiments import rates
from experiments.deficits import baseline_rate, tuned


def sweep() -> list[Experiment]:
    return rates.together(tuned.sweep(), baseline_rate.sweep())
