"""What a config says about a run's precision before it starts; imports no JAX."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from adaprec_jax import bit_counts, formats
from adaprec_jax.bit_counts import FLOAT32, PRODUCTS, Stored
from adaprec_jax.formats import Format
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Precision,
    SharedPrecision,
    Wgrad,
    deficit,
    format_names as entry_names,
    late_switch,
    separate,
)
from adaprec_jax.runs import format_names
from adaprec_jax.runs.config import (
    AMPA,
    APT,
    CNN,
    CPT,
    LDP,
    MLP,
    PFQ,
    QEM,
    Accordion,
    Adam,
    AdamW,
    AdaptiveLossScale,
    AdaptKummer,
    ByBottleneck,
    COATMoments,
    Constant,
    Cyclic,
    Deficit,
    Experiment,
    Float32,
    Forked,
    Formats,
    FP8LMMoments,
    ImportedSchedule,
    ImportedTask,
    LateSwitch,
    Maturity,
    Moment,
    Momentum,
    MoR,
    MuPPET,
    Optimizer,
    OwnMoments,
    Piecewise,
    Recurrent,
    ResNet,
    Schedule,
    SharedFormats,
    ShuffledCPT,
    Siren,
    Snip,
    Sqrt3,
    TwoThreshold,
    Warmup,
    decay_start,
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


def decay(experiment: Experiment) -> int | None:
    """Returns the step at which the learning rate begins to fall, None if it does not.

    >>> from adaprec_jax.runs.load import load
    >>> decay(load("shakespeare-fp8"))  # after its warm-up
    100
    """
    return decay_start(experiment.optimizer.learning_rate, experiment.steps)


def pieces(
    schedule: Schedule, steps: int, decay: int | None = None
) -> Mapping[int, Entry]:
    """Returns the entries of a run by the step at which each begins.

    Empty for a schedule that is not a few constant pieces.

    Args:
        schedule: The settings.
        steps: Length of the run.
        decay: The step at which the learning rate begins to fall, if it does.

    Raises:
        ValueError: A switch at the decay, and there is none.
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
        case Deficit(start=start, length=length, low=low, high=high):
            return deficit(entry(low), entry(high), start=start, length=length)
        case LateSwitch(at=at, fraction=fraction, products=products):
            if at == "decay" and decay is None:
                raise ValueError(
                    "A switch where the learning rate begins to fall needs one that "
                    "does, after steps at its peak."
                )
            switch, before, after = late_switch(
                entry(schedule.low), entry(schedule.high), steps=steps,
                fraction=fraction, products=products,
                at=decay if at == "decay" else None,
            )  # fmt: skip
            return {0: before, switch: after}
    return {}


def costs(experiment: Experiment) -> dict[str, float | None]:
    """Returns what is known of a run's costs, by the names that its results have.

    >>> from adaprec_jax.runs.load import load
    >>> found = costs(load("digits-int3"))
    >>> found["share_4_bits"] == 1 / 3, found["share_8_bits"]
    (True, 1.0)
    """
    return {
        "cost": mean_cost(experiment),
        "share_4_bits": narrow_share(experiment, 4),
        "share_8_bits": narrow_share(experiment, 8),
        "bytes_per_parameter": bytes_per_parameter(experiment),
    }


def mean_cost(experiment: Experiment) -> float | None:
    """Returns the bit operations of a run relative to float32, mean over its steps.

    None where they depend on statistics, or on which layers there are.

    >>> from adaprec_jax.runs.load import load
    >>> mean_cost(load("digits-int8")), mean_cost(load("digits-two-threshold"))
    (0.0625, None)
    """
    return _mean(experiment, _cost)


def narrow_share(experiment: Experiment, max_bits: int) -> float | None:
    """Returns the share of the multiplications of a run whose operands are both narrow.

    None where `mean_cost` is; `adaprec_jax.cost.narrow_share` has the formula.

    Args:
        experiment: All settings.
        max_bits: The most bits that either operand may have.

    >>> from adaprec_jax.runs.load import load
    >>> narrow_share(load("shakespeare-late-switch"), 8)  # then bfloat16
    0.82
    """
    return _mean(experiment, lambda e: _narrow(e, max_bits))


def bytes_per_parameter(experiment: Experiment) -> float:
    """Returns the bytes that training keeps of each parameter.

    They are those of the parameter, its gradient, the float32 master copy of a narrower
    parameter, and what the optimizer remembers: its moments, in the formats that they
    are stored in; the float32 master and last rounded value of `hysteresis`; both sums
    of `oscillation_reset`; and the float32 mean of `averaging`. A parameter updated
    `in_place` has the bits of its format, and no master. Hysteresis and resets
    have none of parameters with fewer than two axes, such as biases. Formats of a
    schedule are emulated in the parameter's own dtype, so they change nothing here.

    >>> from adaprec_jax.runs.load import load
    >>> bytes_per_parameter(load("digits-int8"))  # Adam, in float32
    16.0
    """
    own = 32 if experiment.parameter_dtype == "float32" else 16
    settings = experiment.optimizer
    return bit_counts.bytes_per_parameter(
        parameter=_parameter(settings, own),
        gradient=own,
        moments=_moments(settings),
        master=0 if own == 32 else 32,
        hysteresis=2 * 32 if settings.hysteresis else 0,
        oscillation_reset=2 * 32 if settings.oscillation_reset else 0,
        averaging=32 if settings.averaging else 0,
    )


def _parameter(settings: Optimizer, own: int) -> float:
    """Returns the bits in which a parameter is stored."""
    if kept := settings.in_place:
        return float(formats.bits(format_names.parse(kept.format)))
    return float(own)


def precision(experiment: Experiment) -> str:
    """Returns a phrase on the formats of a run, and on how they change and are scaled.

    >>> from adaprec_jax.runs.load import load
    >>> precision(load("shakespeare-mxfp8"))
    'float8_e4m3fn; mx scaling'
    """
    schedule, steps = experiment.schedule, experiment.steps
    begin = decay(experiment)
    first = pieces(schedule, steps, begin).get(0)
    recipes = {recipe.kind for _, recipe in experiment.scaling} - {"current"}
    scaled = f"{' and '.join(sorted(recipes))} scaling" if recipes else ""
    match schedule:
        case PFQ(forward_bits=(bits, *_)) | MuPPET(bits=(bits, *_)):
            start = f"int{bits}"
        case _:
            start = "" if first is None else _names(first)
    parts = start, changes(schedule, steps, begin)
    return "; ".join(filter(None, (*parts, scaled))) or schedule.kind


def changes(schedule: Schedule, steps: int, decay: int | None = None) -> str:
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
        case Maturity(low=low, high=high):
            return f"{_names(entry(low))} or {_names(entry(high))} by update ratio"
        case ImportedSchedule(target=target):
            return f"by {target}"
        case Forked(parent=parent, step=step):
            return f"as run {parent} to step {step}, then forked"
    if said := _by_tensors(schedule):
        return said
    if learned := _by_what_it_sees(schedule):
        return learned
    later = itertools.islice(pieces(schedule, steps, decay).items(), 1, None)
    return "; ".join(f"{_names(e)} from step {start}" for start, e in later)


def _moments(settings: Optimizer) -> int | dict[str, Stored]:
    """Returns how an optimizer's moments are stored, or their bits in float32."""
    if not isinstance(settings, Adam | AdamW):
        return 32 * isinstance(settings, Momentum)
    match settings.moments:
        case FP8LMMoments():
            first, second = map(format_names.parse, ("float8_e4m3fn", "float16"))
            return {"mu": Stored(first), "nu": Stored(second)}
        case COATMoments(group=group):
            both = Stored(format_names.parse("float8_e4m3fn"), group, expand=True)
            return {"mu": both, "nu": both}
        case OwnMoments(first=first, second=second):
            return {"mu": _stored(first), "nu": _stored(second)}
    return 2 * 32


def _stored(settings: Moment) -> Stored:
    fmt = format_names.parse(settings.format)
    return Stored(fmt, settings.group, settings.expand)


def _by_what_it_sees(schedule: Schedule) -> str:
    """Returns the phrase for a schedule that learns from the run, "" for others."""
    match schedule:
        case PFQ(forward_bits=bits, every=every):
            stages = ", ".join(f"int{b}" for b in bits[1:])
            return (
                stages and f"{stages}, each when the loss of {every} steps levels off"
            )
        case MuPPET(bits=bits):
            stages = ", ".join([*(f"int{b}" for b in bits[1:]), "float32"])
            return f"{stages}, as the diversity of gradients falls"
        case QEM():
            return "int8 to int24 by tensor, as its mean magnitude shifts"
        case APT(min_bits=low, max_bits=high, every=every):
            return f"weights int{low} to int{high} by gradient every {every} steps"
        case Accordion(low=low, high=high):
            return f"{_names(entry(low))} or {_names(entry(high))} by gradient norm"
    return ""


def _mean(experiment: Experiment, count: Callable[[Entry], float]) -> float | None:
    """Returns the mean over the steps of what is counted of an entry, None if unknown.

    All layers have the same entry, so the mean over their work is that entry's.
    """
    steps = _steps_by_entry(experiment)
    # What is a weight and what an activation counts where both have other bits.
    weighted = isinstance(experiment.model, _WEIGHTED) and not isinstance(
        experiment.task, ImportedTask
    )
    if not steps or not (weighted or all(_is_even(e) for e, _ in steps)):
        return None
    return sum(count(e) * n for e, n in steps) / experiment.steps


def _steps_by_entry(experiment: Experiment) -> list[tuple[Entry, int]]:
    """Returns the entries of a run with the steps of each, none if unknown."""
    schedule, steps = experiment.schedule, experiment.steps
    if isinstance(schedule, CPT | Cyclic | ShuffledCPT):
        shape = schedule.shape if isinstance(schedule, Cyclic) else "CPT"
        bounds = schedule.model_dump(include={"min_bits", "max_bits", "cycles"})
        widths, counts = np.unique(
            bit_counts.cyclic_bits(shape, **bounds, steps=steps), return_counts=True
        )
        gradient = formats.integer(schedule.gradient_bits)
        entries = (
            SharedPrecision(formats.integer(b), formats.integer(b), gradient)
            for b in widths.tolist()
        )
        return [*zip(entries, counts.tolist(), strict=True)]
    starts = pieces(schedule, steps, decay(experiment))
    ends = (*starts, steps)[1:]
    return [
        (e, end - start) for (start, e), end in zip(starts.items(), ends, strict=True)
    ]


def _by_tensors(schedule: Schedule) -> str:
    """Returns the phrase for a schedule that looks at tensors, "" for another."""
    match schedule:
        case MoR(low=low, high=high, threshold=threshold):
            return (
                f"{_names(entry(low))} where it errs by at most {threshold}, else "
                f"{_names(entry(high))}"
            )
        case Snip(low=low, high=high, share=share):
            return f"{high}, and {share:.0%} of the products {low} by estimated loss"
        case AMPA(min_bits=low, max_bits=high, mean_bits=mean):
            return f"int{low} to int{high} by sensitivity, {mean:g} bits in the mean"
        case Sqrt3(low=low, high=high, per=per):
            return (
                f"{_names(entry(low))}, backward {_names(entry(high))} once a {per}'s "
                "gradient is in the noise"
            )
        case AdaptKummer(start_word=word, start_fraction=fraction):
            return f"fixed<{word},{fraction}> by weights and diversity of gradients"
        case LDP(min_bits=low, max_bits=high, target_bits=target):
            return f"int{low} to int{high}, learned, {target:g} bits in the mean"
        case ByBottleneck(device=device, low=low, high=high):
            return (
                f"{_names(entry(low))} where a {device} gains by it, else "
                f"{_names(entry(high))}"
            )
        case AdaptiveLossScale(largest_product=largest):
            return f"float16 gradients, scaled by up to {largest:g} for each layer"
    return ""


def _parsed(settings: Settings) -> dict[str, Format]:
    names = settings.model_dump(exclude={"kind"})
    return {role: format_names.parse(name) for role, name in names.items()}


def _cost(entry: Entry) -> float:
    return sum(a * b for a, b in _widths(entry)) / (PRODUCTS * FLOAT32)


def _narrow(entry: Entry, max_bits: int) -> float:
    return sum(max(pair) <= max_bits for pair in _widths(entry)) / PRODUCTS


def _widths(entry: Entry) -> list[list[int]]:
    """Returns the bits of both operands of each product."""
    return [[int(formats.bits(fmt)) for fmt in pair] for pair in separate(entry)]


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
