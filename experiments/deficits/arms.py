"""The arms of this question, on the digits: where in a run 3 bits do harm.

Most are arms of `early_or_late`, too; such a run is trained once for both.
"""

from adaprec_jax.runs.config import Deficit, Experiment
from adaprec_jax.runs.config.formats import INT3, INT8
from adaprec_jax.runs.overrides import apply
from experiments.early_or_late import arms as early_or_late

BASELINE, LOWEST = "digits-no-deficit", "digits-always"
RATES, SEEDS = early_or_late.RATES, early_or_late.SEEDS
LOW, NORMAL = 110, 90  # steps of the deficit, and of a normal run
SHARED = {
    "digits-float32": "digits-float32",
    "digits-late-static8": "digits-no-deficit",
    "digits-late": "digits-deficit-first",
    "digits-late-falling": "digits-deficit-last",
    "digits-late-permuted": "digits-deficit-spread",
    "digits-late-static3": "digits-always",
}


def arms() -> list[Experiment]:
    """Returns one experiment for each arm, at the bundled learning rate."""
    others = {each.name: each for each in early_or_late.arms()}
    shared = [
        others[there].model_copy(update={"name": here, "tags": ()})
        for there, here in SHARED.items()
    ]
    middle = Deficit(start=NORMAL // 2, length=LOW, low=INT3, high=INT8)
    first = others["digits-late"]
    return [
        *shared,
        first.model_copy(update={"name": "digits-deficit-middle", "schedule": middle}),
        _long(others["digits-late-static8"], "digits-no-deficit-short", NORMAL),
        _longer(first),
    ]


def _long(experiment: Experiment, name: str, steps: int) -> Experiment:
    """Returns an experiment of another length, evaluated at its end."""
    ends = [f"{field}={steps}" for field in ("evaluate_every", "checkpoint_every")]
    named = experiment.model_copy(update={"name": name, "tags": ()})
    return apply(named, [f"steps={steps}", "steps_per_dispatch=10", *ends])


def _longer(first: Experiment) -> Experiment:
    """Returns the deficit, then as many steps as the run without one has."""
    deficit = Deficit(start=0, length=LOW, low=INT3, high=INT8)
    made = first.model_copy(update={"schedule": deficit})
    return _long(made, "digits-deficit-then-all", LOW + first.steps)
