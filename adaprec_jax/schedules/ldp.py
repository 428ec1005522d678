"""Bits that are learned: a real number for each layer, moved by gradient descent."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table, macs_shares
from adaprec_jax.contractions.weights import Weights
from adaprec_jax.formats import integer
from adaprec_jax.plan import fill, integers
from adaprec_jax.precision import Plan
from adaprec_jax.schedules.by_layer import (
    by_path,
    end_to_end,
    rounded,
    vectors,
)
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals


class Descent(NamedTuple):
    """The numbers of the descent; they may differ between runs.

    Attributes:
        min_bits: Bounds of the bits.
        max_bits: As `min_bits`.
        gradient_bits: Bits of the output gradients, constant.
        target_bits: Mean bits that the penalty draws to.
        penalty: Its strength.
        rate: Learning rate of the bits.
        largest_move: Of a layer in one look, in bits.
    """

    min_bits: Float32[Array, ""]
    max_bits: Float32[Array, ""]
    gradient_bits: Int32[Array, ""]
    target_bits: Float32[Array, ""]
    penalty: Float32[Array, ""]
    rate: Float32[Array, ""]
    largest_move: Float32[Array, ""]


class LearnedState(NamedTuple):
    """State of `ldp`.

    Attributes:
        scope: The contractions it plans for.
        descent: The numbers of the descent.
        bits: Real numbers by path, over the plan axes.
        slope: Of the loss along the bits, as of the last look; NaN before it, and for
            contractions without a parameter.
    """

    scope: Scope
    descent: Descent
    bits: dict[str, Float32[Array, "*axes"]]
    slope: dict[str, Float32[Array, "*axes"]]


def ldp(  # noqa: PLR0913 (one keyword for each number of the descent)
    *,
    min_bits: int,
    max_bits: int,
    start_bits: int,
    gradient_bits: int,
    target_bits: float,
    penalty: float = 1.0,
    rate: float = 1.0,
    largest_move: float = 0.25,
    every: int = 10,
) -> Schedule:
    """Learns the integer bits of each layer by gradient descent, under a cost.

    The bits of a layer are a real number b, rounded to the nearest whole one for the
    forward pass and passed straight through in the derivative (ties go to even).
    Where Q_n(w) is the weight rounded to n bits and g its gradient, the slope of the
    loss along b is the finite difference

        sum g (Q_{n+1}(w) - Q_n(w)),  n = round(b),

    (with n - 1 and n where n is `max_bits`). The penalty is

        penalty / 2 (C - target_bits)^2,  C = sum m b / sum m,

    m being the multiply-accumulates of the layers. Every `every` calls

        b <- b - clip(rate (slope + penalty (C - target_bits) m / sum m),
                      -largest_move, largest_move),

    within `min_bits` to `max_bits`.

    Decides:
        Integer bits of activations and weights for each layer, every `every` calls;
        gradients keep theirs. A contraction without a parameter keeps `start_bits` and
        stands outside the cost.

    Signal:
        The weights and their gradients in the step before.

        Logs `signal/slope/PATH` and the real numbers after it,
        `signal/learned_bits/PATH`, in the row of a look. They meet no threshold: the
        nearest whole numbers are the bits from the next step on.

    Costs:
        Two numbers a layer; two roundings of each weight in the steps that are looked
        at.

    Source:
        LDP, learnable dynamic precision, 2022, arXiv:2203.07713.

    Against:
        The source is known to us from its abstract: it trains the bits with the weights
        through a quantiser that is differentiable in them. The
        finite difference over the weights alone, the quadratic penalty, plain descent
        and all numbers are ours. One slope comes from one batch and is noisy; where
        rounding errors and gradients are independent its mean is zero, and the penalty
        decides.

    Args:
        min_bits: Fewest bits of activations and weights.
        max_bits: Most bits, above `min_bits`.
        start_bits: Bits before the first step of the descent.
        gradient_bits: Bits of the output gradients, constant.
        target_bits: Mean bits that the penalty draws to.
        penalty: Its strength, in units of the loss per square bit, at least 0.
        rate: Learning rate of the bits, above 0.
        largest_move: Of a layer at once, in bits, above 0.
        every: Calls from one step of the descent to the next, at least 1.

    Raises:
        ValueError: An argument is out of range; (in `init`) the multiplications cannot
            be counted.

    >>> schedule = ldp(
    ...     min_bits=2, max_bits=8, start_bits=8, gradient_bits=8, target_bits=5.0
    ... )
    """
    if not (1 <= min_bits <= start_bits <= max_bits and min_bits < max_bits):
        raise ValueError(
            "Expected 1 <= min_bits <= start_bits <= max_bits, and min_bits < "
            f"max_bits, got {min_bits=}, {start_bits=}, {max_bits=}."
        )
    if not min_bits <= target_bits <= max_bits:
        raise ValueError(
            "Expected min_bits <= target_bits <= max_bits, got "
            f"{min_bits=}, {target_bits=}, {max_bits=}."
        )
    _check_numbers(penalty, rate, largest_move, every)
    integers(max_bits, gradient_bits)  # says what is wrong with a width out of range
    descent = Descent(
        min_bits=jnp.float32(min_bits),
        max_bits=jnp.float32(max_bits),
        gradient_bits=jnp.int32(gradient_bits),
        target_bits=jnp.float32(target_bits),
        penalty=jnp.float32(penalty),
        rate=jnp.float32(rate),
        largest_move=jnp.float32(largest_move),
    )

    def init(table: Table) -> LearnedState:
        macs_shares(table)  # says if they cannot be counted

        def filled(value: float | int) -> dict[str, Array]:
            return {
                c.name: jnp.full(c.axes, value, jnp.float32) for c in table.contractions
            }

        return LearnedState(
            Scope(table), descent, filled(start_bits), filled(float("nan"))
        )

    def update(
        step: Int32[Array, ""], stats: Stats, state: LearnedState
    ) -> tuple[Plan, LearnedState]:
        del step, stats
        plan: Plan = {}
        for c in state.scope.table.contractions:
            entry = integers(_whole(state.bits[c.name]), state.descent.gradient_bits)
            plan[c.name] = fill(c, entry)
        return plan, state

    def observe(
        step: Int32[Array, ""], weights: Weights, state: LearnedState
    ) -> LearnedState:
        del step
        table, slope = state.scope.table, _slopes(weights, state)
        bits = descended(
            end_to_end(table, state.bits),
            end_to_end(table, slope),
            jnp.asarray(macs_shares(table), jnp.float32),
            state.descent,
        )
        return state._replace(bits=by_path(table, bits), slope=slope)

    return Schedule(init, update, every=every, observe=observe, signals=_signals)


def _check_numbers(
    penalty: float, rate: float, largest_move: float, every: int
) -> None:
    """Refuses a number that is out of range.

    Raises:
        ValueError: One is.
    """
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty must be a number from 0 on, got {penalty}.")
    for name, value in (("rate", rate), ("largest_move", largest_move)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a number above 0, got {value}.")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")


def descended(
    bits: Float32[Array, "layers"],
    slope: Float32[Array, "layers"],
    macs: Float32[Array, "layers"],
    numbers: Descent,
) -> Float32[Array, "layers"]:
    """Returns the bits after a step of the descent.

    Args:
        bits: Before it.
        slope: Of the loss along them; a layer whose slope is NaN or infinite stays, and
            counts in the mean only if it is not NaN.
        macs: What each layer weighs in the mean.
        numbers: Of the descent.
    """
    weight = jnp.where(jnp.isnan(slope), 0.0, macs)
    total = jnp.sum(weight)
    weight = weight / jnp.where(total > 0, total, 1.0)
    above = jnp.sum(weight * bits) - numbers.target_bits
    move = numbers.rate * (slope + numbers.penalty * above * weight)
    moved = bits - jnp.clip(move, -numbers.largest_move, numbers.largest_move)
    moved = jnp.clip(moved, numbers.min_bits, numbers.max_bits)
    return jnp.where(jnp.isfinite(slope), moved, bits)


def _slopes(weights: Weights, state: LearnedState) -> dict[str, Float32[Array, "..."]]:
    """Returns the slope of the loss along the bits of each layer with a parameter."""
    slope = dict(state.slope)
    most = state.descent.max_bits.astype(jnp.int32)
    for c in state.scope.table.contractions:
        if c.name in weights:
            value = vectors(weights[c.name].value, c)
            gradient = vectors(weights[c.name].gradient, c)
            low = jnp.minimum(_whole(state.bits[c.name]), most - 1)
            finer, coarser = (rounded(value, integer(n), c) for n in (low + 1, low))
            slope[c.name] = jnp.sum(gradient * (finer - coarser), -1)
    return slope


def _whole(bits: Float32[Array, "*axes"]) -> Int32[Array, "*axes"]:
    return jnp.round(bits).astype(jnp.int32)


def _signals(state: LearnedState) -> Signals:
    return {"learned_bits": state.bits, "slope": state.slope}
