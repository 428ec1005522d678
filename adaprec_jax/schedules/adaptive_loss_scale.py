"""A scale for the gradient of each layer, so that float16 does not lose it.

A format is data: multiplying by 2^k, rounding to float16 and dividing by 2^k again is
rounding to a float16 whose exponents lie k lower. So this schedule decides formats, and
the gradient's scale is part of each.
"""

import itertools
import math
from statistics import NormalDist
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax.contractions.statistics import Stats, Watch
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.formats import Format, describe, floating
from adaprec_jax.plan import fill
from adaprec_jax.precision import Plan, SharedPrecision
from adaprec_jax.scaling.powers import floor_log2, power_of_two
from adaprec_jax.schedules.by_layer import by_path, end_to_end, gathered
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals

_FLOAT16_EXPONENT_BITS, _FLOAT16_MANTISSA_BITS, _FLOAT16_BIAS = 5, 10, 15
_SMALLEST, _LARGEST = 6.0e-8, 65504.0  # of float16, as the source has them
_LARGEST_SCALE = 2.0**14  # beyond which a shifted float16 ends below 1


class ScaleRule(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        quantile: Phi, the magnitude below which the allowed share of a standard normal
            distribution lies.
        largest_scale: Of one layer.
        largest_product: Of the scales along the backward pass.
        every: Calls between two looks.
    """

    quantile: Float32[Array, ""]
    largest_scale: Float32[Array, ""]
    largest_product: Float32[Array, ""]
    every: Int32[Array, ""]


class ScaleState(NamedTuple):
    """State of `adaptive_loss_scale`.

    Attributes:
        scope: The contractions it plans for.
        rule: The numbers of the rule.
        own: The scale that each layer's dgrad puts on what it hands on, by layer, laid
            end to end.
        accumulated: The scale of each layer's output gradient, likewise: the product of
            those that the backward pass met before it.
    """

    scope: Scope
    rule: ScaleRule
    own: Float32[Array, "layers"]
    accumulated: Float32[Array, "layers"]


def adaptive_loss_scale(
    forward: Format | None = None,
    *,
    underflow: float = 1e-3,
    largest_scale: float = 16.0,
    largest_product: float = 1024.0,
    every: int = 10,
) -> Schedule:
    """Scales the float16 gradient of each layer so that little of it underflows.

    The backward pass goes through the layers in reverse order. Where it arrives at one
    with the accumulated scale A, its gradient g (times A) is multiplied with the weight
    W, and their sum over n numbers is taken for a normal distribution of variance

        v = A^2 mean(g^2) mean(W^2) n / 2.

    The layer multiplies A by the largest power of two that is at most u_min / (Phi v^½)
    and at most (u_max / n) / (A max|g| max|W|), is at least 1 and at most
    `largest_scale`, and leaves A at most `largest_product`. Phi = 1.25331e-3 is the
    magnitude below which a share of 1e-3 of a standard normal distribution lies, u_min
    = 6.0e-8 and u_max = 65504 those of float16.

    Decides:
        Where float16's exponents lie for the output gradient of each layer, every
        `every` calls; at first, and in the last layer always, they are its own.
        Activations and weights keep one format. A contraction without a parameter hands
        on what it got.

    Signal:
        Mean square and largest magnitude of the output gradients, under the loss scale,
        and of the weights, in the last step.

        Logs the scale that each gradient has, `signal/gradient_scale/PATH`, a power of
        two of at most `largest_product`. The formats of the same row have it.

    Costs:
        Two numbers a layer; a sum and a maximum over each weight and gradient in the
        steps that are looked at, and a scan over the layers.

    Source:
        Zhao, Vogel and Ahmed 2020, "Reducing Underflow in Mixed Precision Training by
        Gradient Scaling", IJCAI 2020; its code's method "approx_range".

    Against:
        The source scales the gradient that it hands from layer to layer, in float16
        throughout, and divides the weight gradients by the scale. Here the gradient
        between two contractions is float32 and unscaled, unless the run computes in
        another dtype: only what a contraction rounds is what it would be under the
        scale, and what would underflow in between is not seen. Layers count as one
        chain in the order of the program: where branches meet, both have the scale of
        all that comes after them. The bound takes max|g| max|W| for the largest of the
        products. The source looks at every step, or every 1000; 10 is ours.

    Args:
        forward: Format of activations and weights; float16 if None.
        underflow: Share of the products that may underflow, above 0 and below 1.
        largest_scale: Of one layer, at least 1.
        largest_product: Of the scales along the backward pass, 1 to 2^14.
        every: Calls from one look to the next, at least 1.

    Raises:
        ValueError: An argument is out of range; (in `update`) the statistics were not
            gathered.

    >>> schedule = adaptive_loss_scale(largest_product=256.0)
    """
    if not 0 < underflow < 1:
        raise ValueError(f"underflow must lie between 0 and 1, got {underflow}.")
    if not 1 <= largest_scale < float("inf"):
        raise ValueError(
            f"largest_scale must be a number from 1 on, got {largest_scale}."
        )
    if not 1 <= largest_product <= _LARGEST_SCALE:
        raise ValueError(
            f"largest_product must lie in 1 to {_LARGEST_SCALE}, got {largest_product}."
        )
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    float16 = floating(_FLOAT16_EXPONENT_BITS, _FLOAT16_MANTISSA_BITS)
    kept = float16 if forward is None else forward
    rule = ScaleRule(
        quantile=jnp.float32(underflow_quantile(underflow)),
        largest_scale=jnp.float32(largest_scale),
        largest_product=jnp.float32(largest_product),
        every=jnp.int32(every),
    )

    def init(table: Table) -> ScaleState:
        layers = sum(math.prod(c.axes) for c in table.contractions)
        one = jnp.ones(layers, jnp.float32)
        return ScaleState(Scope(table, (describe(kept),)), rule, one, one)

    def update(
        step: Int32[Array, ""], stats: Stats, state: ScaleState
    ) -> tuple[Plan, ScaleState]:
        table = state.scope.table
        due = stats.finite & (step % state.rule.every == 0)
        order = backward_order(table)
        own, accumulated = _scales(table, stats, state, order, due)
        state = state._replace(own=own, accumulated=accumulated)
        shifts = by_path(table, floor_log2(accumulated))
        plan: Plan = {
            c.name: fill(
                c, SharedPrecision(kept, kept, shifted_float16(shifts[c.name]))
            )
            for c in table.contractions
        }
        return plan, state

    watched = Watch(("amax", "rms"), ("weight", "gradient"))
    return Schedule(init, update, watched, every, signals=_signals)


def underflow_quantile(share: float) -> float:
    """Returns the magnitude below which a share of a standard normal variable lies.

    It is sqrt(2) erfinv(share).

    >>> round(underflow_quantile(1e-3), 8)
    0.00125331
    """
    return NormalDist().inv_cdf((1 + share) / 2)


def shifted_float16(shift: Int32[Array, "*axes"]) -> Format:
    """Returns float16 with all exponents lower by `shift`, -15 to 14.

    >>> fmt = shifted_float16(jnp.int32(10))
    >>> float(fmt.max_value) * 1024
    65504.0
    """
    return floating(
        _FLOAT16_EXPONENT_BITS, _FLOAT16_MANTISSA_BITS, bias=shift + _FLOAT16_BIAS
    )


def backward_order(table: Table) -> tuple[int, ...]:
    """Returns the layers as the backward pass meets them, by their place end to end.

    Neighbours with the same plan axes count as the body of one loop over layers.

    >>> from adaprec_jax.testing import table
    >>> backward_order(table())
    (4, 3, 2, 1, 0)
    """
    order: list[int] = []
    start = 0
    for axes, group in itertools.groupby(table.contractions, lambda c: c.axes):
        body, layers = len(list(group)), math.prod(axes)
        places = np.arange(start, start + body * layers).reshape(body, layers)
        order += places.T.ravel().tolist()
        start += body * layers
    return tuple(reversed(order))


def _scales(
    table: Table,
    stats: Stats,
    state: ScaleState,
    order: tuple[int, ...],
    due: Bool[Array, ""],
) -> tuple[Float32[Array, "layers"], Float32[Array, "layers"]]:
    """Returns the layers' own scales, and those that their gradients have."""
    rule = state.rule
    lengths = {c.name: jnp.float32(_length(c)) for c in table.contractions}
    weighted = {c.name: jnp.bool_(bool(c.parameter)) for c in table.contractions}
    deviation = (
        _rms(table, stats, "gradient")
        * _rms(table, stats, "weight")
        * jnp.sqrt(end_to_end(table, lengths) / 2)
    )
    largest = (
        gathered(table, stats, "gradient", "amax")
        * gathered(table, stats, "weight", "amax")
        * end_to_end(table, lengths)
    )
    layers = (
        deviation,
        largest,
        end_to_end(table, weighted).astype(jnp.bool_),
        state.own,
    )
    places = jnp.asarray(order, jnp.int32)

    def one(product: Array, layer: tuple[Array, ...]) -> tuple[Array, Array]:
        deviation, largest, weighted, before = layer
        wanted = jnp.minimum(
            _SMALLEST / (rule.quantile * deviation * product),
            _LARGEST / (largest * product),
        )
        known = due & weighted & ~jnp.isnan(deviation) & ~jnp.isnan(largest)
        wanted = jnp.where(known, wanted, before)
        wanted = jnp.minimum(wanted, rule.largest_scale)
        room = rule.largest_product / product
        scale = power_of_two(floor_log2(jnp.maximum(jnp.minimum(wanted, room), 1.0)))
        return product * scale, jnp.stack([scale, product])

    _, found = lax.scan(
        one, jnp.float32(1.0), tuple(number[places] for number in layers)
    )
    none = jnp.ones_like(state.own)
    return none.at[places].set(found[:, 0]), none.at[places].set(found[:, 1])


def _rms(table: Table, stats: Stats, role: str) -> Float32[Array, "layers"]:
    squares = gathered(table, stats, role, "sum_squares")
    elements = gathered(table, stats, role, "elements")
    return jnp.sqrt(squares / elements)


def _length(c: Contraction) -> float:
    """Returns over how many numbers dgrad sums for one element of the activation."""
    weight = math.prod(c.parameter_shape[len(c.axes) :])
    sizes = [math.prod(shape) for shape in c.shapes[:2]]
    # The operand that is not the parameter; the left one, if that does not tell.
    activation = sizes[1] if sizes[0] == weight != sizes[1] else sizes[0]
    return max(c.macs / max(activation, 1), 1.0)


def _signals(state: ScaleState) -> Signals:
    return {"gradient_scale": by_path(state.scope.table, state.accumulated)}
