"""More bits for the whole network when gradients of several epochs point alike less."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.contractions.weights import Weights
from adaprec_jax.plan import integers, uniform
from adaprec_jax.precision import Plan, SharedPrecision
from adaprec_jax.schedules.by_layer import vectors
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select


class Violations(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        bits: Of all operands, by precision; float32 comes after the last.
        resolution: Epochs from one look at the diversity to the next.
        violations: Looks above the threshold that lead to the next precision.
        alpha: The threshold is alpha + beta exp(-decay epoch).
        beta: As `alpha`.
        decay: As `alpha`.
    """

    bits: Int32[Array, "precisions"]
    resolution: Int32[Array, ""]
    violations: Int32[Array, ""]
    alpha: Float32[Array, ""]
    beta: Float32[Array, ""]
    decay: Float32[Array, ""]


class GradientSums(NamedTuple):
    """The gradients of one weight in the epochs since the last look.

    Attributes:
        vector: Their sum.
        squares: The sum of their squared norms, over the plan axes.
        diversity: What they came to at the last look; NaN before the first, and where
            they added up to zero.
    """

    vector: Float32[Array, "*axes_and_shape"]
    squares: Float32[Array, "*axes"]
    diversity: Float32[Array, "*axes"]


class Stage(NamedTuple):
    """How far a run has come.

    Attributes:
        precision: In force; as many as there are bits is float32.
        epochs: Complete ones.
        seen: Looks above the threshold in this precision.
        largest: Mean diversity in this precision, at its largest; 0 before the first.
    """

    precision: Int32[Array, ""]
    epochs: Int32[Array, ""]
    seen: Int32[Array, ""]
    largest: Float32[Array, ""]


class MuPPETState(NamedTuple):
    """State of `muppet`.

    Attributes:
        scope: The contractions it plans for.
        rule: The numbers of the rule.
        stage: What is decided.
        sums: By path, of the contractions that have a weight.
    """

    scope: Scope
    rule: Violations
    stage: Stage
    sums: dict[str, GradientSums]


def muppet(
    *,
    every: int,
    bits: Sequence[int] = (8, 12, 14, 16),
    resolution: int = 3,
    violations: int = 2,
    alpha: float = 1.0,
    beta: float = 1.5,
    decay: float = 0.1,
) -> Schedule:
    """Raises the bits of all operands when the diversity of gradients falls.

    An epoch is `every` steps. With g_j the gradient of a layer in the last step of
    epoch j, the diversity of the last `resolution` epochs is

        D = sum_j |g_j|^2 / |sum_j g_j|^2

    and S its mean over layers. S is formed every `resolution` epochs and compared with
    the largest S so far in this precision: the look is a violation if

        S_max / S > alpha + beta exp(-decay e)

    where e is the number of complete epochs before this one. After `violations` of
    them, not necessarily in a row, the next precision begins and counts anew. After the
    last bits comes float32, which stays.

    A layer whose gradients add up to zero is left out of the mean. Contractions without
    a weight have the precision of all others.

    Decides:
        One width for all operands of all layers, every `resolution` epochs; it never
        falls.

    Signal:
        The gradient of every weight in the last step of each epoch: its squared norm
        and its sum over epochs.

        Logs D of each layer as of the last look, `signal/gradient_diversity/PATH`.
        S_max over its mean meets the threshold above; the step after that row has the
        next precision.

    Costs:
        A float32 buffer as large as all weights, and one addition to it per epoch.

    Source:
        Rajagopal et al. 2020, "Multi-Precision Policy Enforced Training (MuPPET): A
        Precision-Switching Strategy for Quantised Fixed-Point Training of CNNs", ICML
        2020, arXiv:2006.09049; alpha, beta and decay are those of its published code.

    Against:
        As epochs pass the threshold approaches alpha, and with the default 1 almost
        every look is then a violation, so a long run climbs whatever its gradients do.
        The published code also changes the learning rate after the step to float32 and
        rounds gradients stochastically; neither is decided here. An epoch whose last
        step is skipped does not count.

    Args:
        every: Steps of an epoch, at least 1.
        bits: Of all operands, by precision, rising.
        resolution: Epochs from one look to the next, at least 2: one gradient alone has
            diversity 1.
        violations: Looks above the threshold that lead to the next precision.
        alpha: What the threshold approaches, at least 1.
        beta: How far above it the threshold begins, at least 0.
        decay: How fast it falls, by epoch, at least 0.

    Raises:
        ValueError: An argument is out of range.

    >>> schedule = muppet(every=100)
    """
    if not bits or any(a >= b for a, b in pairwise(bits)):
        raise ValueError(f"Expected one or more bits that rise, got {list(bits)}.")
    for width in bits:
        integers(width, width)  # says what is wrong with a width out of range
    if every < 1 or resolution < 2 or violations < 1:
        raise ValueError(
            "Expected every and violations of at least 1 and a resolution of at least "
            f"2, got {every=}, {violations=}, {resolution=}."
        )
    if not (alpha >= 1 and beta >= 0 and decay >= 0):
        raise ValueError(
            "Expected alpha of at least 1, beta and decay of at least 0, got "
            f"{alpha=}, {beta=}, {decay=}."
        )
    rule = Violations(
        bits=jnp.asarray(bits, jnp.int32),
        resolution=jnp.int32(resolution),
        violations=jnp.int32(violations),
        alpha=jnp.float32(alpha),
        beta=jnp.float32(beta),
        decay=jnp.float32(decay),
    )

    def init(table: Table) -> MuPPETState:
        zero = jnp.int32(0)
        sums = {
            c.name: GradientSums(
                vector=jnp.zeros(c.parameter_shape, jnp.float32),
                squares=jnp.zeros(c.axes, jnp.float32),
                diversity=jnp.full(c.axes, jnp.nan, jnp.float32),
            )
            for c in table.contractions
            if c.parameter
        }
        stage = Stage(zero, zero, zero, jnp.float32(0))
        return MuPPETState(Scope(table), rule, stage, sums)

    return Schedule(init, _update, every=every, observe=_observe, signals=_signals)


def threshold(epoch: Int32[Array, ""], rule: Violations) -> Float32[Array, ""]:
    """Returns what S_max / S must exceed to be a violation."""
    return rule.alpha + rule.beta * jnp.exp(-rule.decay * epoch.astype(jnp.float32))


def _update(
    step: Int32[Array, ""], stats: Stats, state: MuPPETState
) -> tuple[Plan, MuPPETState]:
    del step, stats  # what is decided was decided when the weights were seen
    now, last = state.stage.precision, state.rule.bits.size
    integer = formats.integer(state.rule.bits[jnp.minimum(now, last - 1)])
    fmt = select(now == last, formats.floating(8, 23), integer)
    return uniform(state.scope.table, SharedPrecision(fmt, fmt, fmt)), state


def _observe(
    step: Int32[Array, ""], weights: Weights, state: MuPPETState
) -> MuPPETState:
    """Adds the gradients of an epoch's last step, and looks at them when it is time."""
    del step  # an epoch whose last step was skipped does not count
    rule, stage = state.rule, state.stage
    looks = (stage.epochs + 1) % rule.resolution == 0
    sums = {}
    for c in state.scope.table.contractions:
        if c.parameter:
            sums[c.name] = _with_gradient(
                state.sums[c.name], weights[c.name].gradient, c
            )
    diversities = {
        c.name: _diversity(sums[c.name], c)
        for c in state.scope.table.contractions
        if c.parameter
    }
    mean = _mean(list(diversities.values()))
    after = {
        name: GradientSums(
            vector=jnp.where(looks, 0, each.vector),
            squares=jnp.where(looks, 0, each.squares),
            diversity=jnp.where(looks, diversities[name], each.diversity),
        )
        for name, each in sums.items()
    }
    looked = select(looks, _after_look(stage, mean, rule), stage)
    return state._replace(stage=looked._replace(epochs=stage.epochs + 1), sums=after)


def _with_gradient(
    sums: GradientSums, gradient: Float32[Array, "..."], contraction: Contraction
) -> GradientSums:
    squares = _squared_norm(gradient, contraction)
    return sums._replace(vector=sums.vector + gradient, squares=sums.squares + squares)


def _diversity(sums: GradientSums, contraction: Contraction) -> Float32[Array, "*axes"]:
    """Returns sum |g|^2 / |sum g|^2 by layer; NaN where it is not known."""
    diversity = sums.squares / _squared_norm(sums.vector, contraction)
    return jnp.where(jnp.isfinite(diversity), diversity, jnp.nan)


def _squared_norm(
    x: Float32[Array, "..."], contraction: Contraction
) -> Float32[Array, "*axes"]:
    return jnp.sum(jnp.square(vectors(x, contraction)), -1)


def _mean(diversities: Sequence[Float32[Array, "..."]]) -> Float32[Array, ""]:
    """Returns the mean over layers of those that are known."""
    layers = jnp.concatenate(
        [jnp.zeros(0, jnp.float32), *(d.ravel() for d in diversities)]
    )
    known = ~jnp.isnan(layers)
    count = jnp.sum(known, dtype=jnp.float32)
    return jnp.sum(jnp.where(known, layers, 0)) / count


def _after_look(stage: Stage, mean: Float32[Array, ""], rule: Violations) -> Stage:
    """Returns the stage after a look at the diversity; NaN leaves it as it was."""
    largest = jnp.fmax(stage.largest, mean)
    violated = largest / mean > threshold(stage.epochs, rule)
    seen = stage.seen + violated.astype(jnp.int32)
    rises = (seen >= rule.violations) & (stage.precision < rule.bits.size)
    return stage._replace(
        precision=stage.precision + rises.astype(jnp.int32),
        seen=jnp.where(rises, 0, seen),
        largest=jnp.where(rises, 0, largest),
    )


def _signals(state: MuPPETState) -> Signals:
    return {
        "gradient_diversity": {
            name: sums.diversity for name, sums in state.sums.items()
        }
    }
