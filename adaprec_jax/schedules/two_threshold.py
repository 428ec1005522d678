"""A closed loop: more bits where a signal stays high, fewer where it stays low."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import Stats, TensorStats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.plan import concatenate, fill, integers, split
from adaprec_jax.precision import Plan, SharedPrecision
from adaprec_jax.schedules.schedule import Schedule, Scope
from adaprec_jax.stats import underflow_fraction


class Thresholds(NamedTuple):
    """The numbers of a two-threshold controller; they may differ between runs.

    Attributes:
        low: Below it the signal asks for fewer bits.
        high: Above it the signal asks for more bits.
        min_bits: Bounds of the bits of activations and weights.
        max_bits: As `min_bits`.
        gradient_bits: Bits of the gradients, constant.
        patience: Consecutive checks that must ask for the same before it is done.
        every: Calls between two checks.
    """

    low: Float32[Array, ""]
    high: Float32[Array, ""]
    min_bits: Int32[Array, ""]
    max_bits: Int32[Array, ""]
    gradient_bits: Int32[Array, ""]
    patience: Int32[Array, ""]
    every: Int32[Array, ""]


class TwoThresholdState(NamedTuple):
    """State of `two_threshold`.

    Its arrays hold every layer along the plan axes of every contraction, in the order
    of the table.

    Attributes:
        scope: The contractions it plans for.
        thresholds: The numbers of the rule.
        bits: Of activations and weights.
        streak: Consecutive checks that asked for more bits, or for fewer if negative,
            since the bits last changed.
    """

    scope: Scope
    thresholds: Thresholds
    bits: Int32[Array, "layers"]
    streak: Int32[Array, "layers"]


def two_threshold(  # noqa: PLR0913 (one keyword for each number of the rule)
    *,
    low: float,
    high: float,
    min_bits: int,
    max_bits: int,
    start_bits: int,
    gradient_bits: int,
    patience: int = 1,
    every: int = 1,
    signal: Callable[[TensorStats], Float32[Array, "..."]] = underflow_fraction,
    roles: Sequence[str] = ("activation", "weight"),
) -> Schedule:
    """Moves the integer bits of each layer by one to keep a signal in a band.

    Every `every` calls the signal of each contraction, and of each layer along its plan
    axes, is checked: above `high` asks for a bit more, below `low` for a bit less, in
    between for neither. What `patience` consecutive checks ask for is done, and the
    count starts again. The band between the thresholds is the hysteresis: where it has
    room for the change that one bit makes to the signal, bits come to rest.

    The two-sided, one-bit rule follows APT (Huang et al., arXiv:2012.12775), with the
    signal left open.

    Args:
        low: Threshold below which bits fall.
        high: Threshold above which bits rise.
        min_bits: Fewest bits of activations and weights.
        max_bits: Most bits.
        start_bits: Bits before the first decision.
        gradient_bits: Bits of the gradients, constant.
        patience: Consecutive checks that must agree, at least 1.
        every: Calls from one check to the next, at least 1.
        signal: A number to keep in the band, larger where precision is too low: a
            ratio of `adaprec_jax.stats`, or a function of one's own that like them
            works element by element.
        roles: The tensors whose signal counts; the largest of those known.

    Raises:
        ValueError: An argument is out of range; (in `update`) the statistics of a role
            were not gathered.
    """
    if not 1 <= min_bits <= start_bits <= max_bits:
        raise ValueError(
            "Expected 1 <= min_bits <= start_bits <= max_bits, got "
            f"{min_bits=}, {start_bits=}, {max_bits=}."
        )
    if not low < high:
        raise ValueError(f"Expected low < high, got {low=}, {high=}.")
    if patience < 1 or every < 1:
        raise ValueError(
            f"Expected patience and every of at least 1, got {patience=}, {every=}."
        )
    integers(max_bits, gradient_bits)  # says what is wrong with a width out of range
    thresholds = Thresholds(
        low=jnp.float32(low),
        high=jnp.float32(high),
        min_bits=jnp.int32(min_bits),
        max_bits=jnp.int32(max_bits),
        gradient_bits=jnp.int32(gradient_bits),
        patience=jnp.int32(patience),
        every=jnp.int32(every),
    )

    def init(table: Table) -> TwoThresholdState:
        layers = sum(math.prod(c.axes) for c in table.contractions)
        return TwoThresholdState(
            scope=Scope(table),
            thresholds=thresholds,
            bits=jnp.full(layers, start_bits, jnp.int32),
            streak=jnp.zeros(layers, jnp.int32),
        )

    def update(
        step: Int32[Array, ""], stats: Stats, state: TwoThresholdState
    ) -> tuple[Plan, TwoThresholdState]:
        contractions = state.scope.table.contractions
        if not contractions:
            return {}, state
        shapes = [contraction.axes for contraction in contractions]
        sums = [_sums(contraction, stats, roles) for contraction in contractions]
        signals = map(signal, concatenate(sums, shapes))
        largest = functools.reduce(jnp.fmax, signals)  # leaves NaN out
        due = stats.finite & (step % state.thresholds.every == 0)
        state = _decide(largest, due, state)
        gradient = formats.integer(state.thresholds.gradient_bits)
        plan = {
            contraction.name: fill(contraction, SharedPrecision(fmt, fmt, gradient))
            for contraction, fmt in zip(
                contractions, split(formats.integer(state.bits), shapes), strict=True
            )
        }
        return plan, state

    return Schedule(init, update)


def _decide(
    signal: Float32[Array, "layers"], due: Bool[Array, ""], state: TwoThresholdState
) -> TwoThresholdState:
    """Returns the state after one call; NaN leaves a layer as it was."""
    bits, streak, rule = state.bits, state.streak, state.thresholds
    more, fewer = signal > rule.high, signal < rule.low
    asks = more.astype(jnp.int32) - fewer.astype(jnp.int32)
    agreed = jnp.where(asks == jnp.sign(streak), streak + asks, asks)
    moves = jnp.abs(agreed) >= rule.patience
    moved = jnp.clip(bits + asks, rule.min_bits, rule.max_bits)
    counts = due & ~jnp.isnan(signal)
    return state._replace(
        bits=jnp.where(counts & moves, moved, bits),
        streak=jnp.where(counts, jnp.where(moves, 0, agreed), streak),
    )


def _sums(
    contraction: Contraction, stats: Stats, roles: Sequence[str]
) -> list[TensorStats]:
    """Returns what was gathered of one contraction, by role."""
    tensors = stats.tensors[contraction.name]
    missing = [role for role in roles if role not in tensors]
    if missing:
        raise ValueError(
            f"The schedule reads the statistics of {missing} of {contraction.name!r}, "
            "which the step did not gather: put them among the roles of its Watch."
        )
    return [tensors[role] for role in roles]
