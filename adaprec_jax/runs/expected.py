"""What a config says about a run's precision before it starts; imports no JAX."""

import itertools
from collections.abc import Mapping

from adaprec_jax import formats
from adaprec_jax.bit_counts import FLOAT32, PRODUCTS, bitops_ratio, cyclic_bits
from adaprec_jax.formats import Format
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Precision,
    SharedPrecision,
    Wgrad,
    format_names as entry_names,
    late_switch,
    separate,
)
from adaprec_jax.runs import format_names
from adaprec_jax.runs.config import (
    CNN,
    CPT,
    MLP,
    Constant,
    Cyclic,
    Experiment,
    Float32,
    Formats,
    ImportedSchedule,
    ImportedTask,
    LateSwitch,
    Piecewise,
    Recurrent,
    ResNet,
    Schedule,
    SharedFormats,
    ShuffledCPT,
    Siren,
    TwoThreshold,
    Warmup,
)
from adaprec_jax.runs.config.base import Settings

# Models whose every product is one of an activation and a weight.
_WEIGHTED = (MLP, CNN, ResNet, Recurrent, Siren)


def entry(settings: Formats) -> Entry:
    """Returns the formats that the settings name, as an entry of a plan.

    >>> formats.describe(entry(SharedFormats(weight="int4")).weight)
    'int4'
    """
    if isinstance(settings, SharedFormats):
        return SharedPrecision(**_parsed(settings))
    return Precision(
        forward=Forward(**_parsed(settings.forward)),
        dgrad=Dgrad(**_parsed(settings.dgrad)),
        wgrad=Wgrad(**_parsed(settings.wgrad)),
    )


def pieces(schedule: Schedule, steps: int) -> Mapping[int, Entry]:
    """Returns the entries of a run by the step at which each begins.

    Empty for a schedule that is not a few constant pieces.
    """
    match schedule:
        case Float32():
            return {0: entry(SharedFormats())}
        case Constant(precision=precision):
            return {0: entry(precision)}
        case Piecewise(boundaries=boundaries, precisions=precisions):
            return dict(zip((0, *boundaries), map(entry, precisions), strict=True))
        case Warmup(warmup_steps=last, high=high, low=low):
            return {0: entry(high), last: entry(low)}
        case LateSwitch(fraction=fraction, low=low, high=high, products=products):
            switch, before, after = late_switch(
                entry(low), entry(high), steps=steps, fraction=fraction,
                products=products,
            )  # fmt: skip
            return {0: before, switch: after}
    return {}


def mean_cost(experiment: Experiment) -> float | None:
    """Returns the bit operations of a run relative to float32, mean over its steps.

    None where they depend on statistics, or on which layers there are.

    >>> from adaprec_jax.runs.load import load
    >>> mean_cost(load("digits-int8")), mean_cost(load("digits-two-threshold"))
    (0.0625, None)
    """
    schedule, steps = experiment.schedule, experiment.steps
    if isinstance(schedule, CPT | Cyclic | ShuffledCPT):
        shape = schedule.shape if isinstance(schedule, Cyclic) else "CPT"
        bounds = schedule.model_dump(include={"min_bits", "max_bits", "cycles"})
        bits = cyclic_bits(shape, **bounds, steps=steps)
        return bitops_ratio(bits, schedule.gradient_bits)
    entries = pieces(schedule, steps)
    costs = {start: _cost(e) for start, e in entries.items()}
    # What is a weight and what an activation counts where both have other bits.
    weighted = isinstance(experiment.model, _WEIGHTED) and not isinstance(
        experiment.task, ImportedTask
    )
    if not costs or not (weighted or all(map(_is_even, entries.values()))):
        return None
    ends = (*costs, steps)[1:]
    total = sum(
        c * (end - start) for (start, c), end in zip(costs.items(), ends, strict=True)
    )
    return total / steps


def changes(schedule: Schedule, steps: int) -> str:
    """Returns a phrase on how the formats change after the first step.

    >>> changes(CPT(min_bits=3, max_bits=8, cycles=6), 600)
    'int3 to int8 in 6 cycles'
    """
    match schedule:
        case CPT(min_bits=low, max_bits=high, cycles=cycles):
            return f"int{low} to int{high} in {cycles} cycles"
        case Cyclic(shape=shape, min_bits=low, max_bits=high, cycles=cycles):
            return f"int{low} to int{high} in {cycles} cycles of {shape}"
        case ShuffledCPT(min_bits=low, max_bits=high):
            return f"int{low} to int{high} in random order"
        case TwoThreshold(min_bits=low, max_bits=high, every=every, signal=signal):
            return f"int{low} to int{high} by {signal} every {every} steps"
        case ImportedSchedule(target=target):
            return f"by {target}"
    later = itertools.islice(pieces(schedule, steps).items(), 1, None)
    return "; ".join(f"{_names(e)} from step {start}" for start, e in later)


def _parsed(settings: Settings) -> dict[str, Format]:
    names = settings.model_dump(exclude={"kind"})
    return {role: format_names.parse(name) for role, name in names.items()}


def _cost(entry: Entry) -> float:
    widths = ([int(formats.bits(fmt)) for fmt in pair] for pair in separate(entry))
    return sum(a * b for a, b in widths) / (PRODUCTS * FLOAT32)


def _is_even(entry: Entry) -> bool:
    """Returns whether activations and weights have as many bits."""
    forward, dgrad, wgrad = separate(entry)
    pairs = (forward.activation, forward.weight), (wgrad.activation, dgrad.weight)
    return all(formats.bits(a) == formats.bits(b) for a, b in pairs)


def _names(entry: Entry) -> str:
    """Returns the formats by operand, or one name where all are the same."""
    names = entry_names(entry)
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return ", ".join(
        f"{operand.replace('.', ' ')} {name}" for operand, name in names.items()
    )
