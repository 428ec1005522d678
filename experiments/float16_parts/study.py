"""All runs of this question, as packs that its studies share; the bundle is of these.

adaprec sweep experiments/float16_parts/study.py --name float16_parts
"""

from adaprec_jax.runs.config import Experiment
from experiments import rates
from experiments.float16_parts import baseline_rate, slow, tuned


def sweep() -> list[Experiment]:
    return rates.together(tuned.sweep(), baseline_rate.sweep(), slow.sweep())
