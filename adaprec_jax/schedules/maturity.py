"""One precision for layers that still move, another for those that have settled."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.contractions.weights import Weight, Weights
from adaprec_jax.precision import Entry, Plan
from adaprec_jax.schedules.by_layer import vectors
from adaprec_jax.schedules.levels import Levels, choose, levels
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select


class Settling(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        levels: The two precisions.
        decay: Of the moving average of the ratio.
        window: Looks between two comparisons of that average.
        tolerance: Largest relative change that counts as settled.
        patience: Comparisons in a row that must count as settled.
        reverse: Whether settled layers have the high precision, not the young ones.
    """

    levels: Levels
    decay: Float32[Array, ""]
    window: Int32[Array, ""]
    tolerance: Float32[Array, ""]
    patience: Int32[Array, ""]
    reverse: Bool[Array, ""]


class Age(NamedTuple):
    """What is known of one weight, over its plan axes.

    Attributes:
        ratio: Moving average of |update| / |weight|; NaN before the first look.
        before: The same at the last comparison; NaN before the first.
        change: Relative, between the last two comparisons; NaN before there are two.
        settled: Comparisons in a row that counted as settled.
    """

    ratio: Float32[Array, "*axes"]
    before: Float32[Array, "*axes"]
    change: Float32[Array, "*axes"]
    settled: Int32[Array, "*axes"]


class MaturityState(NamedTuple):
    """State of `maturity`.

    Attributes:
        scope: The contractions it plans for.
        rule: The numbers of the rule.
        looks: Since the last comparison.
        ages: By path, of the contractions that have a weight.
    """

    scope: Scope
    rule: Settling
    looks: Int32[Array, ""]
    ages: dict[str, Age]


def maturity(
    high: Entry,
    low: Entry,
    *,
    window: int,
    every: int = 1,
    decay: float = 0.9,
    tolerance: float = 0.1,
    patience: int = 2,
    reverse: bool = False,
) -> Schedule:
    """Uses `high` for layers whose relative updates still change, `low` for the others.

    At every `every`-th step, |update| / |weight| of each layer enters a moving average
    r. After `window` such looks r is compared with r' at the comparison before: a
    change |r - r'| / r' of at most `tolerance` counts as settled. A layer is mature
    once `patience` comparisons in a row have counted so, and young again when one does
    not. Young layers have the high precision, mature ones the low; with `reverse` it is
    the other way round. Contractions without a weight have the high precision.

    Decides:
        One of two precisions for each layer, every `window * every` steps.

    Signal:
        Norm of what the optimizer added to each weight, over the norm of the weight.

        Logs r as `signal/update_ratio/PATH`, which meets no threshold, and |r - r'| /
        r' of the last comparison, `signal/ratio_change/PATH`: at most `tolerance`
        counts as settled. Formats change in the step after that row.

    Costs:
        Four numbers for each layer; at a look, two norms over each weight.

    Source:
        Ours. It follows the common description in words: sensitive or young layers
        high, layers whose update-to-weight ratio has settled low.

    Against:
        All constants are ours. The ratio follows the learning rate: where that decays
        fast no layer settles, and where it is constant all do, whether they are done
        or not. That mature layers need fewer bits is the hypothesis, and `reverse` its
        counter-test.

    Args:
        high: Entry of young layers (with `reverse`, of mature ones).
        low: Entry of the others, of the same type.
        window: Looks from one comparison to the next, at least 1.
        every: Steps from one look to the next, at least 1.
        decay: Of the moving average, 0 (none) to below 1.
        tolerance: Largest relative change that counts as settled, at least 0.
        patience: Comparisons in a row that make a layer mature, at least 1.
        reverse: Whether mature layers have the high precision.

    Raises:
        ValueError: An argument is out of range, or the entries are of both types.

    >>> from adaprec_jax.plan import integers
    >>> schedule = maturity(integers(8, 8), integers(4, 8), window=20)
    """
    if window < 1 or every < 1 or patience < 1:
        raise ValueError(
            "Expected window, every and patience of at least 1, got "
            f"{window=}, {every=}, {patience=}."
        )
    if not (0 <= decay < 1 and tolerance >= 0):
        raise ValueError(
            "Expected 0 <= decay < 1 and a tolerance of at least 0, got "
            f"{decay=}, {tolerance=}."
        )
    rule = Settling(
        levels=levels(high, low),
        decay=jnp.float32(decay),
        window=jnp.int32(window),
        tolerance=jnp.float32(tolerance),
        patience=jnp.int32(patience),
        reverse=jnp.bool_(reverse),
    )

    def init(table: Table) -> MaturityState:
        ages = {}
        for c in table.contractions:
            if c.parameter:
                unknown = jnp.full(c.axes, jnp.nan, jnp.float32)
                settled = jnp.zeros(c.axes, jnp.int32)
                ages[c.name] = Age(unknown, unknown, unknown, settled)
        return MaturityState(Scope(table), rule, jnp.int32(0), ages)

    return Schedule(init, _update, every=every, observe=_observe, signals=_signals)


def _update(
    step: Int32[Array, ""], stats: Stats, state: MaturityState
) -> tuple[Plan, MaturityState]:
    del step, stats  # what is decided was decided when the weights were seen
    rule = state.rule
    is_high = {
        name: (age.settled >= rule.patience) == rule.reverse
        for name, age in state.ages.items()
    }
    return choose(state.scope.table, rule.levels, is_high), state


def _observe(
    step: Int32[Array, ""], weights: Weights, state: MaturityState
) -> MaturityState:
    """Follows the ratios, and compares them when a window ends."""
    del step  # a look at a step that was skipped does not count
    looks = state.looks + 1
    ends = looks >= state.rule.window
    ages = {}
    for c in state.scope.table.contractions:
        if c.parameter:
            age = _followed(state.ages[c.name], weights[c.name], c, state.rule)
            ages[c.name] = select(ends, _compared(age, state.rule), age)
    return state._replace(looks=jnp.where(ends, 0, looks), ages=ages)


def _followed(
    age: Age, weight: Weight, contraction: Contraction, rule: Settling
) -> Age:
    """Returns what is known after a look; a ratio not finite is left out."""
    update, value = (
        jnp.sqrt(jnp.sum(jnp.square(vectors(x, contraction)), -1))
        for x in (weight.update, weight.value)
    )
    now = update / value
    ratio = rule.decay * age.ratio + (1 - rule.decay) * now
    ratio = jnp.where(jnp.isnan(age.ratio), now, ratio)
    return age._replace(ratio=jnp.where(jnp.isfinite(now), ratio, age.ratio))


def _compared(age: Age, rule: Settling) -> Age:
    """Returns what is known after a comparison; without a ratio there is none."""
    distance = jnp.abs(age.ratio - age.before)
    # A product, since a layer that does not move at all has no relative change.
    settled = distance <= rule.tolerance * age.before
    compared = ~jnp.isnan(distance)
    return age._replace(
        before=age.ratio,
        change=jnp.where(compared, distance / age.before, age.change),
        settled=jnp.where(
            compared, jnp.where(settled, age.settled + 1, 0), age.settled
        ),
    )


def _signals(state: MaturityState) -> Signals:
    return {
        "update_ratio": {name: age.ratio for name, age in state.ages.items()},
        "ratio_change": {name: age.change for name, age in state.ages.items()},
    }
