"""A closed loop: more bits where a signal stays high, fewer where it stays low."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax.contractions.statistics import (
    ROLES,
    Stats,
    TensorStats,
    Watch,
    fields_of,
)
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.plan import fill, integers
from adaprec_jax.precision import Plan
from adaprec_jax.schedules.by_layer import not_gathered
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


class Decision(NamedTuple):
    """What is decided for one contraction, over its plan axes.

    Attributes:
        bits: Of activations and weights.
        streak: Consecutive checks that asked for more bits, or for fewer if negative,
            since the bits last changed.
    """

    bits: Int32[Array, "*axes"]
    streak: Int32[Array, "*axes"]


class TwoThresholdState(NamedTuple):
    """State of `two_threshold`.

    Attributes:
        scope: The contractions it plans for.
        thresholds: The numbers of the rule.
        decisions: By path.
    """

    scope: Scope
    thresholds: Thresholds
    decisions: dict[str, Decision]


def two_threshold(  # noqa: PLR0913 (one keyword for each number of the rule)
    *,
    low: float,
    high: float,
    min_bits: int,
    max_bits: int,
    start_bits: int,
    gradient_bits: int,
    patience: int = 1,
    every: int = 10,
    signal: Callable[[TensorStats], Float32[Array, "..."]] = underflow_fraction,
    quantities: Sequence[str] | None = None,
    roles: Sequence[str] = ("activation", "weight"),
) -> Schedule:
    """Moves the integer bits of each layer by one to keep a signal in a band.

    Every `every` calls the signal of each contraction, and of each layer along its plan
    axes, is checked: above `high` asks for a bit more, below `low` for a bit less, in
    between for neither. What `patience` consecutive checks ask for is done, and the
    count starts again. The band between the thresholds is the hysteresis: where it has
    room for the change that one bit makes to the signal, bits come to rest.

    Decides:
        A width for the activations and weights of each layer, at each check.

    Signal:
        A ratio of the statistics of the step before, the largest over `roles`.

        Logs no column of its own: with the name of the signal under `statistics` a run
        logs the signal as `NAME/PATH/ROLE`. What the row of a step holds is met with
        `low` and `high` by the step after it.

    Costs:
        Two integers per layer, and the statistics of the signal at each check.

    Source:
        Ours. The two-sided rule of one bit is that of APT (Huang, Luo and Zhou 2020,
        "Adaptive Precision Training for Resource Constrained Devices",
        arXiv:2012.12775) with the signal left open.

    Against:
        Thresholds and signal have no published values; the defaults are ours. A signal
        that one bit moves across the whole band makes the width swing for ever, and an
        underflow fraction says nothing of how much what underflows matters.

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
            ratio of `adaprec_jax.stats`, or a function of one's own.
        quantities: What the signal is formed from; by default the signal itself, which
            must then be a ratio of `adaprec_jax.stats`.
        roles: The tensors whose signal counts; the largest of those known. One or more
            of "activation", "weight" and "gradient".

    Raises:
        ValueError: An argument is out of range; (in `update`) the statistics of a role
            were not gathered.

    >>> schedule = two_threshold(
    ...     low=0.01, high=0.05, min_bits=3, max_bits=8, start_bits=6, gradient_bits=8
    ... )
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
    if not roles or not set(roles) <= set(ROLES):
        raise ValueError(f"Expected one or more of {ROLES} as roles, got {roles}.")
    if quantities is None:
        quantities = (getattr(signal, "__name__", "the signal"),)
    fields_of(tuple(quantities))  # says which are unknown
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
        decisions = {
            contraction.name: Decision(
                bits=jnp.full(contraction.axes, start_bits, jnp.int32),
                streak=jnp.zeros(contraction.axes, jnp.int32),
            )
            for contraction in table.contractions
        }
        return TwoThresholdState(Scope(table), thresholds, decisions)

    def update(
        step: Int32[Array, ""], stats: Stats, state: TwoThresholdState
    ) -> tuple[Plan, TwoThresholdState]:
        rule = state.thresholds
        due = stats.finite & (step % rule.every == 0)
        plan, decisions = {}, {}
        for contraction in state.scope.table.contractions:
            name = contraction.name
            signals = map(signal, _sums(contraction, stats, roles))
            largest = functools.reduce(jnp.fmax, signals)  # leaves NaN out
            decision = _decide(largest, due, state.decisions[name], rule)
            entry = integers(decision.bits, rule.gradient_bits)
            plan[name], decisions[name] = fill(contraction, entry), decision
        return plan, state._replace(decisions=decisions)

    watched = Watch(tuple(quantities), tuple(role for role in ROLES if role in roles))
    return Schedule(init, update, reads=watched, every=every)


def _decide(
    signal: Float32[Array, "*axes"],
    due: Bool[Array, ""],
    decision: Decision,
    rule: Thresholds,
) -> Decision:
    """Returns the decision after one call; NaN leaves a layer as it was."""
    bits, streak = decision
    more, fewer = signal > rule.high, signal < rule.low
    asks = more.astype(jnp.int32) - fewer.astype(jnp.int32)
    agreed = jnp.where(asks == jnp.sign(streak), streak + asks, asks)
    moves = jnp.abs(agreed) >= rule.patience
    moved = jnp.clip(bits + asks, rule.min_bits, rule.max_bits)
    counts = due & ~jnp.isnan(signal)
    return Decision(
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
        raise not_gathered(f"the statistics of {missing} of {contraction.name!r}")
    return [tensors[role] for role in roles]
