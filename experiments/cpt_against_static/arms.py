"""The arms of this question, on the digits: float32, CPT, and the controls of CPT."""

import json
from pathlib import Path

from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.studies.controls import controls

BASELINE, LOWEST = "digits-float32", "digits-cpt-static3"
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
RATE = "optimizer.learning_rate.peak"


def arms() -> list[Experiment]:
    """Returns one experiment for each arm, at the bundled learning rate."""
    cpt = load("digits-cpt")
    # The question was stated before there was a control with noise.
    others = [each for each in controls(cpt) if not each.name.endswith("noise")]
    return [load(BASELINE), cpt, *others]


def at(experiment: Experiment, rate: float) -> Experiment:
    """Returns an experiment at another learning rate."""
    return apply(experiment, [f"{RATE}={rate}"])


def chosen() -> dict[str, float]:
    """Returns the learning rate of each arm, as `choose.py` found it."""
    return json.loads((Path(__file__).parent / "rates.json").read_text())
