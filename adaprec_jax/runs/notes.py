"""What a schedule says and cannot do in the run it is in; imports no JAX.

These are no faults: a run may be shortened to try it out, and the end of a sweep, such
as a deficit of no steps, is a control.
"""

from collections.abc import Iterator
from itertools import pairwise

from adaprec_jax import formats
from adaprec_jax.precision import Entry, separate
from adaprec_jax.runs.config import (
    AMPA,
    APT,
    CPT,
    LDP,
    PFQ,
    QEM,
    Accordion,
    AdaptiveLossScale,
    AdaptKummer,
    ByBottleneck,
    Cyclic,
    Deficit,
    Experiment,
    LateSwitch,
    Maturity,
    MoR,
    MuPPET,
    PerLayer,
    Piecewise,
    Schedule,
    ShuffledCPT,
    Snip,
    Sqrt3,
    TwoThreshold,
    Warmup,
)
from adaprec_jax.runs.expected import entry
from adaprec_jax.runs.format_names import parse


def notes(experiment: Experiment) -> tuple[str, ...]:
    """Returns one sentence for each setting of the schedule that has no effect.

    >>> from adaprec_jax.runs.load import load
    >>> from adaprec_jax.runs.overrides import apply
    >>> short = apply(load("digits-two-threshold"), ["steps=20"])
    >>> print(*notes(short))
    schedule.every and patience: no decision can fall before step 20, and the run has
    20 steps.
    """
    return tuple(_notes("schedule", experiment.schedule, experiment.steps))


def _notes(path: str, schedule: Schedule, steps: int) -> Iterator[str]:
    if isinstance(schedule, PerLayer):
        yield from _notes(f"{path}.default", schedule.default, steps)
        for index, rule in enumerate(schedule.rules):
            yield from _notes(f"{path}.rules.{index}.schedule", rule.schedule, steps)
        return
    for said in (*_of_bits(schedule), *_of_formats(schedule), *_of(schedule, steps)):
        yield f"{path}.{said}"


def _of(schedule: Schedule, steps: int) -> Iterator[str]:
    """Yields what the run is too short for."""
    if decision := first_decision(schedule):
        names, first = decision
        if first >= steps:
            yield (
                f"{names}: no decision can fall before step {first}, and the run has "
                f"{steps} steps."
            )
    match schedule:
        case Deficit(length=0):
            yield "length is 0: there is no deficit."
        case Accordion(decays=decays) if decays and min(decays) >= steps:
            yield f"decays ({list(decays)}) all lie beyond the last of {steps} steps."


def first_decision(schedule: Schedule) -> tuple[str, int] | None:
    """Returns the settings by which a loop closes, and the first step it can change.

    None for a schedule that depends on the step alone, or is somebody's own.

    >>> first_decision(PFQ(every=20, window=5))
    ('every and window', 100)
    """
    match schedule:
        case PFQ(every=every, window=window):
            return "every and window", every * window
        case MuPPET(every=every, resolution=looks, violations=violations):
            # The first look sets the largest diversity, and cannot be above it.
            return "every, resolution and violations", every * looks * (violations + 1)
        case Accordion(window=window):
            return "window", 2 * window
        case Maturity(every=every, window=window, patience=patience):
            return "every, window and patience", every * window * (patience + 1)
        case (
            TwoThreshold(every=every, patience=patience)
            | Sqrt3(every=every, patience=patience)
        ):
            return "every and patience", every * patience
        case AdaptKummer(min_lookback=lookback):
            return "min_lookback", lookback
    if isinstance(schedule, MoR | Snip | AMPA | LDP | AdaptiveLossScale | QEM | APT):
        return "every", schedule.every
    return None


def _of_bits(schedule: Schedule) -> Iterator[str]:
    """Yields what bits, stages or scales leave no room for."""
    match schedule:
        case CPT() | Cyclic() | ShuffledCPT() | TwoThreshold() | AMPA() | APT():
            if schedule.min_bits == schedule.max_bits:
                yield f"min_bits and max_bits are both {schedule.min_bits}."
        case PFQ(forward_bits=forward, gradient_bits=gradient):
            if len({*zip(forward, gradient, strict=True)}) == 1:
                yield "forward_bits and gradient_bits are the same in all stages."
        case AdaptiveLossScale(largest_scale=scale, largest_product=product):
            if min(scale, product) < 2:
                yield (
                    f"largest_scale ({scale:g}) and largest_product ({product:g}) "
                    "leave no power of two above 1, so that nothing is scaled."
                )


def _of_formats(schedule: Schedule) -> Iterator[str]:
    """Yields what two precisions do not do that are the same, or in the wrong order."""
    match schedule:
        case Piecewise(precisions=precisions):
            entries = [separate(entry(each)) for each in precisions]
            if all(a == b for a, b in pairwise(entries)):
                yield "precisions are all the same."
        case Snip() if parse(schedule.low) == parse(schedule.high):
            yield "low and high are the same."
        case (
            Warmup() | LateSwitch() | Deficit() | MoR() | Sqrt3() | Accordion()
            | Maturity() | ByBottleneck()
        ):  # fmt: skip
            low, high = separate(entry(schedule.low)), separate(entry(schedule.high))
            if low == high:
                yield "low and high are the same."
            elif _is_wider(low, high):
                yield "low has more bits than high."


def _is_wider(low: Entry, high: Entry) -> bool:
    """Returns whether some operand has more bits in `low`, and none has fewer."""
    widths = [
        (int(formats.bits(a)), int(formats.bits(b)))
        for products in zip(separate(low), separate(high), strict=True)
        for a, b in zip(*products, strict=True)
    ]
    return all(a >= b for a, b in widths) and any(a > b for a, b in widths)
