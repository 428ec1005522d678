"""The formats of a schedule over the steps, as pieces that can be put together anew."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaprec_jax import bit_counts, formats
from adaprec_jax.runs import expected, format_names
from adaprec_jax.runs.config import (
    CPT,
    Constant,
    Cyclic,
    Deficit,
    Experiment,
    Formats,
    LateSwitch,
    Piecewise,
    Schedule,
    SharedFormats,
    ShuffledCPT,
    Warmup,
)

FLOAT32 = bit_counts.FLOAT32 * bit_counts.PRODUCTS


class Piece(NamedTuple):
    """Formats, and for how many steps they are in force."""

    formats: Formats
    steps: int


def pieces_of(experiment: Experiment) -> Iterator[Piece]:
    """Yields the formats of a schedule that depends on the step alone, in order."""
    schedule, steps = experiment.schedule, experiment.steps
    match schedule:
        case CPT() | Cyclic() | ShuffledCPT():
            shape = schedule.shape if isinstance(schedule, Cyclic) else "CPT"
            bounds = schedule.model_dump(include={"min_bits", "max_bits", "cycles"})
            bits = bit_counts.cyclic_bits(shape, **bounds, steps=steps).tolist()
            gradient = f"int{schedule.gradient_bits}"
            for width, run in itertools.groupby(bits):
                yield Piece(integers(width, gradient), len([*run]))
        case Piecewise(boundaries=boundaries, precisions=precisions):
            ends = (*boundaries, steps)
            for start, end, each in zip(
                (0, *boundaries), ends, precisions, strict=True
            ):
                yield Piece(each, end - start)
        case Warmup(warmup_steps=first, high=high, low=low):
            yield Piece(high, first)
            yield Piece(low, steps - first)
        case Deficit(start=start, length=length, low=low, high=high):
            parts = (high, start), (low, length), (high, steps - start - length)
            yield from (Piece(each, count) for each, count in parts if count)
        case LateSwitch(products="all", low=low, high=high):
            pieces = expected.pieces(schedule, steps, expected.decay(experiment))
            (_, switch) = pieces
            yield Piece(low, switch)
            yield Piece(high, steps - switch)


def piecewise(pieces: Sequence[Piece]) -> Schedule:
    """Returns pieces as a schedule; neighbours that are equal are one.

    >>> low, high = integers(4, "int8"), integers(8, "int8")
    >>> piecewise([Piece(low, 5), Piece(low, 5), Piece(high, 10)]).boundaries
    (10,)
    """
    joined = [
        Piece(each, sum(piece.steps for piece in run))
        for each, run in itertools.groupby(pieces, key=lambda piece: piece.formats)
    ]
    if len(joined) == 1:
        return Constant(precision=joined[0].formats)
    starts = np.cumsum([piece.steps for piece in joined])[:-1].tolist()
    formats_ = tuple(piece.formats for piece in joined)
    return Piecewise(boundaries=tuple(starts), precisions=formats_)


def names_of(schedule: Schedule) -> Mapping[int, str]:
    """Returns the formats that settings name, by their bits."""
    found = {32: "float32"}

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for each in value.values():
                look(each)
        elif isinstance(value, list | tuple):
            for each in value:
                look(each)
        elif isinstance(value, str):
            try:
                found.setdefault(bits_of(value), value)
            except ValueError:  # no format, but some other word
                return

    look(schedule.model_dump(exclude={"kind"}))
    return found


def cost_of(settings: Formats) -> float:
    """Returns the cost of a step, relative to float32.

    >>> cost_of(integers(8, "int8"))
    0.0625
    """
    if isinstance(settings, SharedFormats):
        a, w, g = map(
            bits_of, (settings.activation, settings.weight, settings.gradient)
        )
        return (a * w + g * w + g * a) / FLOAT32
    forward, dgrad, wgrad = settings.forward, settings.dgrad, settings.wgrad
    products = (
        (forward.activation, forward.weight),
        (dgrad.gradient, dgrad.weight),
        (wgrad.gradient, wgrad.activation),
    )
    return sum(bits_of(a) * bits_of(b) for a, b in products) / FLOAT32


def bits_of(name: str) -> int:
    """Returns the bits of a format.

    >>> bits_of("float8_e4m3fn")
    8
    """
    return int(formats.bits(format_names.parse(name)))


def integers(bits: int, gradient: str) -> SharedFormats:
    """Returns integers for activations and weights, and a format for gradients."""
    return SharedFormats(
        activation=f"int{bits}", weight=f"int{bits}", gradient=gradient
    )
