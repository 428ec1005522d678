"""Bits of a layer's weights by how many grid steps its gradient is long."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.contractions.weights import Weight, Weights
from adaprec_jax.plan import fill, integers
from adaprec_jax.precision import Plan, SharedPrecision
from adaprec_jax.schedules.by_layer import vectors
from adaprec_jax.schedules.grid import log_step
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select


class Band(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        low: Below it a layer's weights get a bit more.
        high: Above it they get one less.
        decay: Of the moving average of the mean gradient.
        min_bits: Bounds of the weights' bits.
        max_bits: As `min_bits`.
        activation_bits: Bits of activations, constant.
        gradient_bits: Bits of gradients, constant.
    """

    low: Float32[Array, ""]
    high: Float32[Array, ""]
    decay: Float32[Array, ""]
    min_bits: Int32[Array, ""]
    max_bits: Int32[Array, ""]
    activation_bits: Int32[Array, ""]
    gradient_bits: Int32[Array, ""]


class Layer(NamedTuple):
    """What is decided for the weights of one contraction, over its plan axes.

    Attributes:
        bits: Of the weights.
        gradient: Moving average of mean |gradient|; NaN before the first look.
        steps: The same in grid steps, at the last look: Gavg.
    """

    bits: Int32[Array, "*axes"]
    gradient: Float32[Array, "*axes"]
    steps: Float32[Array, "*axes"]


class APTState(NamedTuple):
    """State of `apt`.

    Attributes:
        scope: The contractions it plans for.
        band: The numbers of the rule.
        layers: By path, of the contractions that have a weight.
    """

    scope: Scope
    band: Band
    layers: dict[str, Layer]


def apt(  # noqa: PLR0913 (one keyword for each number of the rule)
    *,
    low: float,
    high: float,
    min_bits: int,
    max_bits: int,
    start_bits: int,
    activation_bits: int,
    gradient_bits: int,
    every: int = 10,
    decay: float = 0.5,
) -> Schedule:
    """Moves the bits of each layer's weights by one to keep its gradient on the grid.

    At every `every`-th step, with w the weights of a layer, k their bits and G the
    moving average of mean |gradient of w| over these looks,

        Gavg = G / grid step,  grid step = 2^ceil(log2(max|w| / (2^(k-1) - 1)))

    Below `low`, where updates are lost between two numbers of the grid, k grows by one;
    above `high` it falls by one. A layer whose weights or gradients are all zero keeps
    its bits. Contractions without a weight have `activation_bits` on both sides.

    Decides:
        The width of each layer's weights, every `every` steps; activations and
        gradients keep theirs.

    Signal:
        Mean magnitude of the gradient of each weight, in steps of the weight's grid.

        Logs Gavg as `signal/gavg/PATH`, as of the last look: below `low` adds a bit,
        above `high` takes one, from the next step on.

    Costs:
        Three numbers for each layer; at a look, a mean and a maximum over each weight.

    Source:
        Huang, Luo and Zhou 2020, "Adaptive Precision Training for Resource Constrained
        Devices", arXiv:2012.12775.

    Against:
        We know the rule, not its constants: thresholds, average and cadence are ours.
        The paper keeps no float32 copy of the weights, so that what the grid does not
        hold is lost; here the float32 master holds it, and the rule saves less than it
        saves there. The grid is that of current scaling by a power of two, whatever
        recipe is in force. With one more bit Gavg doubles, so a band with
        high <= 2 low has no room to come to rest.

    Args:
        low: Threshold of Gavg below which bits rise, at least 0.
        high: Threshold above which they fall; infinite for never.
        min_bits: Fewest bits of weights, at least 2.
        max_bits: Most bits.
        start_bits: Bits before the first look.
        activation_bits: Bits of activations, constant.
        gradient_bits: Bits of gradients, constant.
        every: Steps from one look to the next, at least 1.
        decay: Of the moving average, 0 (none) to below 1.

    Raises:
        ValueError: An argument is out of range.

    >>> schedule = apt(low=0.05, high=0.2, min_bits=3, max_bits=8, start_bits=6,
    ...                activation_bits=8, gradient_bits=8)
    """
    if not 2 <= min_bits <= start_bits <= max_bits:
        raise ValueError(
            "Expected 2 <= min_bits <= start_bits <= max_bits, got "
            f"{min_bits=}, {start_bits=}, {max_bits=}."
        )
    if not 0 <= low < high:
        raise ValueError(f"Expected 0 <= low < high, got {low=}, {high=}.")
    if every < 1 or not 0 <= decay < 1:
        raise ValueError(
            f"Expected every of at least 1 and 0 <= decay < 1, got {every=}, {decay=}."
        )
    for width in (max_bits, activation_bits):
        integers(width, gradient_bits)  # says what is wrong with one out of range
    band = Band(
        low=jnp.float32(low),
        high=jnp.float32(high),
        decay=jnp.float32(decay),
        min_bits=jnp.int32(min_bits),
        max_bits=jnp.int32(max_bits),
        activation_bits=jnp.int32(activation_bits),
        gradient_bits=jnp.int32(gradient_bits),
    )

    def init(table: Table) -> APTState:
        layers = {
            c.name: Layer(
                bits=jnp.full(c.axes, start_bits, jnp.int32),
                gradient=jnp.full(c.axes, jnp.nan, jnp.float32),
                steps=jnp.full(c.axes, jnp.nan, jnp.float32),
            )
            for c in table.contractions
            if c.parameter
        }
        return APTState(Scope(table), band, layers)

    return Schedule(init, _update, every=every, observe=_observe, signals=_signals)


def _update(
    step: Int32[Array, ""], stats: Stats, state: APTState
) -> tuple[Plan, APTState]:
    del step, stats  # what is decided was decided when the weights were seen
    activation = formats.integer(state.band.activation_bits)
    gradient = formats.integer(state.band.gradient_bits)
    plan: Plan = {}
    for c in state.scope.table.contractions:
        layer = state.layers.get(c.name)
        weight = activation if layer is None else formats.integer(layer.bits)
        plan[c.name] = fill(c, SharedPrecision(activation, weight, gradient))
    return plan, state


def _observe(step: Int32[Array, ""], weights: Weights, state: APTState) -> APTState:
    del step
    return state._replace(
        layers={
            c.name: _look(weights[c.name], c, state.layers[c.name], state.band)
            for c in state.scope.table.contractions
            if c.parameter
        }
    )


def _look(weight: Weight, c: Contraction, layer: Layer, band: Band) -> Layer:
    """Returns the decision after one look; what is not known leaves it as it was."""
    value, gradient = vectors(weight.value, c), vectors(weight.gradient, c)
    largest = jnp.max(jnp.abs(value), -1, initial=0.0)
    mean = jnp.mean(jnp.abs(gradient), -1)
    average = band.decay * layer.gradient + (1 - band.decay) * mean
    average = jnp.where(jnp.isnan(layer.gradient), mean, average)
    steps = jnp.ldexp(average, -log_step(largest, layer.bits))
    asks = (steps < band.low).astype(jnp.int32) - (steps > band.high).astype(jnp.int32)
    bits = jnp.clip(layer.bits + asks, band.min_bits, band.max_bits)
    return select(_known(largest, mean), Layer(bits, average, steps), layer)


def _known(
    largest: Float32[Array, "*axes"], mean: Float32[Array, "*axes"]
) -> Bool[Array, "*axes"]:
    finite = jnp.isfinite(largest) & jnp.isfinite(mean)
    return finite & (largest > 0) & (mean > 0)


def _signals(state: APTState) -> Signals:
    return {"gavg": {name: layer.steps for name, layer in state.layers.items()}}
