"""A run whose bits rise step by step, for a precision range test; imports no JAX."""

from typing import NamedTuple

from adaprec_jax.runs.config import Constant, Experiment, Piecewise, SharedFormats
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.overrides import written
from adaprec_jax.runs.validation import validate

_MOST_STEPS = 10_000_000  # of any run


class Widths(NamedTuple):
    """What a precision range test tries; see `adaprec_jax.schedules.range_test`.

    Attributes:
        min_bits: Bits of activations and weights at first.
        max_bits: At the end, unless fewer learn.
        gradient_bits: Bits of gradients, constant.
        steps: Most steps at one width.
        window: Steps over which the training metric is averaged.
        threshold: Gain from one window to the next that counts as progress.
    """

    min_bits: int = 2
    max_bits: int = 8
    gradient_bits: int = 8
    steps: int = 400
    window: int = 100
    threshold: float = 0.01


def rising(experiment: Experiment, widths: Widths) -> Experiment:
    """Returns the experiment with one more bit every `widths.steps` steps.

    Raises:
        InputError: A number is out of range: one sentence per fault.

    >>> from adaprec_jax.runs.load import load
    >>> made = rising(load("digits-cpt"), Widths(min_bits=3, max_bits=5))
    >>> made.steps, made.schedule.boundaries
    (1200, (400, 800))
    """
    faults = []
    if not 2 <= widths.min_bits <= widths.max_bits <= 16:
        faults.append(
            "A range test takes 2 <= min bits <= max bits <= 16, got "
            f"{widths.min_bits} and {widths.max_bits}."
        )
    if not 2 <= widths.gradient_bits <= 16:
        faults.append(
            f"A range test takes 2 to 16 gradient bits, got {widths.gradient_bits}."
        )
    if not 2 <= 2 * widths.window <= widths.steps:
        faults.append(
            "A range test compares windows of at least 1 step, two or more at each "
            f"width, got a window of {widths.window} and {widths.steps} steps."
        )
    tried = range(widths.min_bits, widths.max_bits + 1)
    if len(tried) * widths.steps > _MOST_STEPS:
        faults.append(
            f"A range test takes at most {_MOST_STEPS} steps in all, got "
            f"{widths.steps} for each of {len(tried)} widths."
        )
    if not 0 <= widths.threshold < float("inf"):
        faults.append(
            f"The threshold must be a finite number from 0 on, got {widths.threshold}."
        )
    if faults:
        raise InputError(*faults)
    formats = [
        SharedFormats(
            activation=f"int{b}",
            weight=f"int{b}",
            gradient=f"int{widths.gradient_bits}",
        )
        for b in tried
    ]
    schedule = Constant(precision=formats[0])
    if len(formats) > 1:
        starts = tuple(k * widths.steps for k in range(1, len(formats)))
        schedule = Piecewise(boundaries=starts, precisions=tuple(formats))
    tree = written(experiment) | {
        "steps": len(formats) * widths.steps,
        "schedule": schedule.model_dump(mode="json"),
    }
    return validate(tree)
