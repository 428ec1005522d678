"""Bits under a budget: to the layers that rounding hurts most, from the others."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

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


class Budget(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        min_bits: Bounds of the bits of activations and weights.
        max_bits: As `min_bits`.
        gradient_bits: Bits of the gradients, constant.
        mean_bits: What the mean over the layers must not pass.
        moves: Layers that are raised, and lowered, at once.
        every: Calls between two decisions.
    """

    min_bits: Int32[Array, ""]
    max_bits: Int32[Array, ""]
    gradient_bits: Int32[Array, ""]
    mean_bits: Float32[Array, ""]
    moves: Int32[Array, ""]
    every: Int32[Array, ""]


class AllocationState(NamedTuple):
    """State of `ampa`.

    Attributes:
        scope: The contractions it plans for.
        budget: The numbers of the rule.
        bits: By path, over the plan axes.
        sensitivity: As of the last look, by path; NaN before it, and for contractions
            without a parameter.
    """

    scope: Scope
    budget: Budget
    bits: dict[str, Int32[Array, "*axes"]]
    sensitivity: dict[str, Float32[Array, "*axes"]]


def ampa(
    *,
    min_bits: int,
    max_bits: int,
    start_bits: int,
    gradient_bits: int,
    mean_bits: float,
    moves: int = 1,
    every: int = 100,
) -> Schedule:
    """Moves bits from the layers that rounding hurts least to those it hurts most.

    The sensitivity of a layer with weights w, their rounding Q to its bits and their
    gradient g is

        sum |w - Q(w)| * mean |g|,

    the first-order effect of the rounding on the loss, were error and gradient
    independent in magnitude and alike in sign. Every `every` calls the `moves` most
    sensitive layers get a bit more and the `moves` least sensitive ones a bit less, as
    far as the bounds allow. If the mean over the layers, weighted by their
    multiply-accumulates, is then above `mean_bits`, more of the least sensitive layers
    lose a bit, in order; if that does not suffice, nothing changes.

    Decides:
        Integer bits of activations and weights for each layer, by one bit every
        `every` calls; gradients keep theirs. A contraction without a parameter keeps
        `start_bits` and stands outside the budget.

    Signal:
        The weights and their gradients in the step before the decision.

        Logs `signal/sensitivity/PATH` after each look. The layers are ranked by it; it
        meets no threshold. Bits change in the step after that row.

    Costs:
        Two numbers a layer; a rounding of each weight in the steps that are looked at,
        and a sort of the layers.

    Source:
        Ding et al. 2024, "AMPA: Adaptive Mixed Precision Allocation for Low-Bit Integer
        Training", ICML 2024.

    Against:
        Known to us from its abstract. It allocates the bits of gradients too. The
        budget as a mean of bits, the sum over the elements, one bit at a time, `moves`
        and all defaults are ours. The rule never rests: it exchanges bits even between
        layers that are equally sensitive.

    Args:
        min_bits: Fewest bits of activations and weights.
        max_bits: Most bits.
        start_bits: Bits before the first decision, not above `mean_bits`.
        gradient_bits: Bits of the gradients, constant.
        mean_bits: The budget.
        moves: Layers to raise and to lower at once, at least 1.
        every: Calls from one decision to the next, at least 1.

    Raises:
        ValueError: An argument is out of range; (in `init`) the multiplications cannot
            be counted.

    >>> schedule = ampa(
    ...     min_bits=3, max_bits=8, start_bits=5, gradient_bits=8, mean_bits=5.0
    ... )
    """
    if not 1 <= min_bits <= start_bits <= max_bits:
        raise ValueError(
            "Expected 1 <= min_bits <= start_bits <= max_bits, got "
            f"{min_bits=}, {start_bits=}, {max_bits=}."
        )
    if not start_bits <= mean_bits <= max_bits:
        raise ValueError(
            "Expected start_bits <= mean_bits <= max_bits, got "
            f"{start_bits=}, {mean_bits=}, {max_bits=}."
        )
    if moves < 1 or every < 1:
        raise ValueError(
            f"Expected moves and every of at least 1, got {moves=}, {every=}."
        )
    integers(max_bits, gradient_bits)  # says what is wrong with a width out of range
    budget = Budget(
        min_bits=jnp.int32(min_bits),
        max_bits=jnp.int32(max_bits),
        gradient_bits=jnp.int32(gradient_bits),
        mean_bits=jnp.float32(mean_bits),
        moves=jnp.int32(moves),
        every=jnp.int32(every),
    )

    def init(table: Table) -> AllocationState:
        macs_shares(table)  # says if they cannot be counted
        bits = {
            c.name: jnp.full(c.axes, start_bits, jnp.int32) for c in table.contractions
        }
        unknown = {
            c.name: jnp.full(c.axes, jnp.nan, jnp.float32) for c in table.contractions
        }
        return AllocationState(Scope(table), budget, bits, unknown)

    def update(
        step: Int32[Array, ""], stats: Stats, state: AllocationState
    ) -> tuple[Plan, AllocationState]:
        table, rule = state.scope.table, state.budget
        due = stats.finite & (step % rule.every == 0)
        bits = end_to_end(table, state.bits).astype(jnp.int32)
        moved = allocate(
            bits,
            end_to_end(table, state.sensitivity),
            jnp.asarray(macs_shares(table), jnp.float32),
            _weighted(table),
            rule,
        )
        decided = by_path(table, jnp.where(due, moved, bits))
        plan: Plan = {
            c.name: fill(c, integers(decided[c.name], rule.gradient_bits))
            for c in table.contractions
        }
        return plan, state._replace(bits=decided)

    def observe(
        step: Int32[Array, ""], weights: Weights, state: AllocationState
    ) -> AllocationState:
        del step
        found = dict(state.sensitivity)
        for c in state.scope.table.contractions:
            if c.name in weights:
                value = vectors(weights[c.name].value, c)
                gradient = vectors(weights[c.name].gradient, c)
                error = value - rounded(value, integer(state.bits[c.name]), c)
                found[c.name] = jnp.sum(jnp.abs(error), -1) * jnp.mean(
                    jnp.abs(gradient), -1
                )
        return state._replace(sensitivity=found)

    return Schedule(init, update, every=every, observe=observe, signals=_signals)


def allocate(
    bits: Int32[Array, "layers"],
    sensitivity: Float32[Array, "layers"],
    macs: Float32[Array, "layers"],
    counts: Bool[Array, "layers"],
    budget: Budget,
) -> Int32[Array, "layers"]:
    """Returns the bits after one exchange; unchanged where a sensitivity is not known.

    Args:
        bits: Before it.
        sensitivity: Of each layer; finite where it counts.
        macs: What each layer weighs in the mean.
        counts: The layers that take part.
        budget: The numbers of the rule.
    """
    known = jnp.all(jnp.isfinite(sensitivity) | ~counts)
    may_rise, may_fall = (
        counts & (bits < budget.max_bits),
        counts & (bits > budget.min_bits),
    )
    raised = may_rise & (_rank(-sensitivity, may_rise) < budget.moves)
    may_fall &= ~raised
    fall = may_fall & (_rank(sensitivity, may_fall) < budget.moves)
    moved = bits + raised.astype(jnp.int32) - fall.astype(jnp.int32)

    weight = jnp.where(counts, macs, 0.0)
    total = jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)
    # Room for the rounding of float32 sums, or a budget that is met would be exceeded.
    most = budget.mean_bits * total * (1 + 1e-6)

    def lower(spent: Array, layer: Array) -> tuple[Array, Array]:
        falls = (spent > most) & may_fall[layer] & ~fall[layer]
        return jnp.where(falls, spent - weight[layer], spent), falls

    order = jnp.argsort(sensitivity)
    spent = jnp.sum(weight * moved.astype(jnp.float32))
    spent, falls = lax.scan(lower, spent, order)
    moved = moved.at[order].add(-falls.astype(jnp.int32))
    return jnp.where(known & (spent <= most), moved, bits)


def _rank(
    number: Float32[Array, "layers"], among: Bool[Array, "layers"]
) -> Int32[Array, "layers"]:
    """Returns the place of each number among those marked, the least first."""
    order = jnp.argsort(jnp.where(among, number, jnp.inf))
    places = jnp.arange(number.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places)


def _weighted(table: Table) -> Bool[Array, "layers"]:
    """Returns which layers multiply by a parameter."""
    has = {c.name: jnp.bool_(bool(c.parameter)) for c in table.contractions}
    return end_to_end(table, has).astype(jnp.bool_)


def _signals(state: AllocationState) -> Signals:
    return {"sensitivity": state.sensitivity}
