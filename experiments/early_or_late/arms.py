"""The arms of this question, on the digits: 3 and 8 bits in either order, or chosen."""

from adaprec_jax.runs.config import Experiment, LateSwitch, Maturity
from adaprec_jax.runs.config.formats import INT3, INT8
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.studies.controls import controls

BASELINE, LOWEST = "digits-float32", "digits-late-static3"
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128)
SEEDS = 12
SHORT = ("steps=200", "evaluate_every=200", "checkpoint_every=200", "log_every=20")
# With the bundled tolerance and patience hardly a layer settles in so few steps.
MATURITY = Maturity(low=INT3, high=INT8, window=10, every=2, tolerance=0.3, patience=1)
SCHEDULES = {
    "digits-late": LateSwitch(low=INT3, high=INT8, fraction=0.55),
    "digits-maturity": MATURITY,
    "digits-maturity-reverse": MATURITY.model_copy(update={"reverse": True}),
}


def arms() -> list[Experiment]:
    """Returns one experiment for each arm, at the bundled learning rate."""
    int8 = apply(load("digits-int8"), SHORT)
    schedules = [
        int8.model_copy(update={"name": name, "schedule": schedule})
        for name, schedule in SCHEDULES.items()
    ]
    # Sorted up, the formats of late are late itself; noise is no part of the question.
    left_out = ("rising", "static4", "static7", "noise")
    others = [each for each in controls(schedules) if not each.name.endswith(left_out)]
    return [apply(load(BASELINE), SHORT), *schedules, *others]
