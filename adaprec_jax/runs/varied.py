"""The same experiment with a larger batch, a longer sequence or a wider model.

Imports no JAX, so that what cannot be varied is said at once.
"""

from adaprec_jax.runs import overrides
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError

WHAT = ("batch", "sequence", "width")
FACTORS = (1, 2, 4)


def varied(experiment: Experiment, what: str, factor: int) -> Experiment:
    """Returns the experiment with one of its sizes multiplied.

    Args:
        experiment: All settings.
        what: One of `WHAT`.
        factor: At least 1.

    Raises:
        InputError: The experiment has no such size, or it cannot be so large.

    >>> from adaprec_jax.runs.load import load
    >>> varied(load("shakespeare-fp8"), "sequence", 2).task.context
    256
    """
    if what not in WHAT:
        raise InputError(f"--vary takes {', '.join(WHAT)}, got {what!r}.")
    if factor == 1:
        return experiment
    if what == "batch":
        return _set(experiment, f"batch_size={factor * experiment.batch_size}")
    owner = "task" if what == "sequence" else "model"
    part = experiment.task if what == "sequence" else experiment.model
    names = ("context",) if what == "sequence" else ("width", "hidden", "channels")
    for name in names:
        if (size := getattr(part, name, None)) is not None:
            larger = (
                [factor * each for each in size]
                if isinstance(size, tuple)
                else factor * size
            )
            return _set(experiment, f"{owner}.{name}={larger}")
    raise InputError(
        f"{experiment.name} has no {what} to vary: its {owner} is {part.kind}."
    )


def _set(experiment: Experiment, assignment: str) -> Experiment:
    return overrides.apply(experiment, [assignment])
