"""Higher precision for the backward products once their noise drowns the gradient."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax.contractions.statistics import Stats, Watch
from adaprec_jax.contractions.table import Table
from adaprec_jax.plan import describe_entry, fill
from adaprec_jax.precision import Entry, Plan, Precision, separate
from adaprec_jax.schedules.by_layer import by_path, gathered
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select


class NoiseRule(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        multiple: Of the noise, that the gradient must stay above.
        decay: Of the moving averages.
        patience: Consecutive checks that must find it below.
        every: Calls between two checks.
    """

    multiple: Float32[Array, ""]
    decay: Float32[Array, ""]
    patience: Int32[Array, ""]
    every: Int32[Array, ""]


class Switch(NamedTuple):
    """What is known of every layer, laid end to end; alike in all for the whole run.

    Attributes:
        gradient: Moving average of |g| / sqrt(d); NaN before the first check.
        noise: Moving average of |g - Q(g)| / sqrt(d).
        below: Consecutive checks that found the gradient below its limit.
        raised: Whether the backward products have the higher precision.
    """

    gradient: Float32[Array, "layers"]
    noise: Float32[Array, "layers"]
    below: Int32[Array, "layers"]
    raised: Bool[Array, "layers"]


class Sqrt3State(NamedTuple):
    """State of `sqrt3`.

    Attributes:
        scope: The contractions it plans for.
        rule: The numbers of the rule.
        switch: What is known and decided.
    """

    scope: Scope
    rule: NoiseRule
    switch: Switch


def sqrt3(
    low: Entry,
    high: Entry,
    *,
    per: str = "run",
    multiple: float = math.sqrt(3),
    decay: float = 0.9,
    patience: int = 3,
    every: int = 10,
) -> Schedule:
    """Raises the backward products once the gradient sinks into its rounding noise.

    With d elements in the output gradient g and Q(g) its rounded copy, a check finds
    training stalled if

        |g| / sqrt(d) < multiple * |g - Q(g)| / sqrt(d),

    both sides as moving averages m <- decay m + (1 - decay) x that begin at the first
    value. After `patience` such checks in a row dgrad and wgrad take the formats of
    `high` for the rest of the run; forward keeps those of `low`.

    Decides:
        When the backward products switch, once: for all layers together, by the sums
        over all of them, or for each layer.

    Signal:
        Squares and squared rounding errors of the output gradients (as dgrad rounds
        them), in the format in force.

        Logs both moving averages, per element: `signal/gradient_rms/PATH`, which asks
        for the switch where it is below `multiple` times `signal/gradient_noise/PATH`.
        The formats of the same row follow from them; after the switch both stay as they
        were.

    Costs:
        Four numbers a layer; two sums over each gradient in the steps that are checked.
        The plan has six formats per contraction.

    Source:
        Chmiel et al. 2025, "FP4 All the Way: Fully Quantized Training of LLMs",
        arXiv:2505.19115.

    Against:
        The source states the threshold sqrt(3), for the standard deviation of the noise
        of one coordinate of the gradient in the loss; that of the output gradients
        stands for it here. Under a scale of their own their noise shrinks with them, so
        the rule fires late or never unless a few large elements drown the others.
        Moving average, patience and interval are ours.

    Args:
        low: Formats before the switch; forward's, after it too.
        high: Formats of the backward products after it.
        per: "run" or "layer".
        multiple: Of the noise, above 0.
        decay: Of the moving averages, 0 (none) to below 1.
        patience: Checks in a row, at least 1.
        every: Calls from one check to the next, at least 1.

    Raises:
        ValueError: An argument is out of range; (in `update`) the statistics were not
            gathered.

    >>> from adaprec_jax import formats
    >>> from adaprec_jax.precision import SharedPrecision
    >>> fp4, bfloat16 = (
    ...     SharedPrecision(*[formats.get(name)] * 3)
    ...     for name in ("float4_e2m1fn", "bfloat16")
    ... )
    >>> schedule = sqrt3(fp4, bfloat16, per="layer")
    """
    if per not in ("run", "layer"):
        raise ValueError(f"per must be 'run' or 'layer', got {per!r}.")
    if not 0 < multiple < float("inf"):
        raise ValueError(f"multiple must be a number above 0, got {multiple}.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in 0 to below 1, got {decay}.")
    if patience < 1 or every < 1:
        raise ValueError(
            f"Expected patience and every of at least 1, got {patience=}, {every=}."
        )
    rule = NoiseRule(
        multiple=jnp.float32(multiple),
        decay=jnp.float32(decay),
        patience=jnp.int32(patience),
        every=jnp.int32(every),
    )
    before = separate(low)
    after = Precision(before.forward, *separate(high)[1:])

    def init(table: Table) -> Sqrt3State:
        layers = sum(math.prod(c.axes) for c in table.contractions)
        unknown = jnp.full(layers, jnp.nan, jnp.float32)
        switch = Switch(
            gradient=unknown,
            noise=unknown,
            below=jnp.zeros(layers, jnp.int32),
            raised=jnp.zeros(layers, jnp.bool_),
        )
        fixed = describe_entry(before), describe_entry(after), per
        return Sqrt3State(Scope(table, fixed), rule, switch)

    def update(
        step: Int32[Array, ""], stats: Stats, state: Sqrt3State
    ) -> tuple[Plan, Sqrt3State]:
        table = state.scope.table
        elements, squares, noise = (
            gathered(table, stats, "gradient", field)
            for field in ("elements", "sum_squares", "noise_squares")
        )
        if per == "run":
            elements, squares, noise = (
                jnp.broadcast_to(jnp.sum(row), row.shape)
                for row in (elements, squares, noise)
            )
        due = stats.finite & (step % state.rule.every == 0)
        switch = _check(
            jnp.sqrt(squares / elements),
            jnp.sqrt(noise / elements),
            due,
            state.switch,
            state.rule,
        )
        raised = by_path(table, switch.raised)
        plan: Plan = {
            c.name: fill(c, select(raised[c.name], after, before))
            for c in table.contractions
        }
        return plan, state._replace(switch=switch)

    watched = Watch(("rms", "sqnr_db"), ("gradient",))
    return Schedule(init, update, watched, every, signals=_signals)


def _check(
    gradient: Float32[Array, "layers"],
    noise: Float32[Array, "layers"],
    due: Bool[Array, ""],
    switch: Switch,
    rule: NoiseRule,
) -> Switch:
    """Returns what is known after one call; a layer of NaN or infinity stays as is."""

    def average(mean: Array, value: Array) -> Array:
        moved = rule.decay * mean + (1 - rule.decay) * value
        return jnp.where(jnp.isnan(mean), value, moved)

    counts = due & jnp.isfinite(gradient) & jnp.isfinite(noise)
    mean_gradient = average(switch.gradient, gradient)
    mean_noise = average(switch.noise, noise)
    below = jnp.where(mean_gradient < rule.multiple * mean_noise, switch.below + 1, 0)
    found = Switch(
        gradient=mean_gradient,
        noise=mean_noise,
        below=below,
        raised=switch.raised | (below >= rule.patience),
    )
    # What the higher precision rounds says nothing about the lower one.
    return select(counts & ~switch.raised, found, switch)


def _signals(state: Sqrt3State) -> Signals:
    switch = state.switch
    return {
        "gradient_rms": by_path(state.scope.table, switch.gradient),
        "gradient_noise": by_path(state.scope.table, switch.noise),
    }
