"""8, 16 or 24 bits for each tensor, by how much rounding moves its mean magnitude."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import ROLES, Stats, TensorStats, Watch
from adaprec_jax.contractions.table import Table
from adaprec_jax.precision import Plan, SharedPrecision
from adaprec_jax.schedules.by_layer import not_gathered
from adaprec_jax.schedules.grid import log_step
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select
from adaprec_jax.stats import amax, mean_abs, mean_abs_rounded

WIDTHS = (8, 16, 24)
_ASKED = {width: f"int{width}" for width in WIDTHS}


class Intervals(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        threshold: Largest error measure that needs no more bits.
        alpha: Weight of the newest scale in its moving average.
        beta: Numerator of the interval.
        gamma: What is taken off the interval.
        delta: Weight of the squared error measure in the interval.
        epoch: Steps of an epoch, the longest interval.
        warmup: First steps, in which every look checks.
        every: Calls between two looks.
    """

    threshold: Float32[Array, ""]
    alpha: Float32[Array, ""]
    beta: Float32[Array, ""]
    gamma: Float32[Array, ""]
    delta: Float32[Array, ""]
    epoch: Int32[Array, ""]
    warmup: Int32[Array, ""]
    every: Int32[Array, ""]


class Tensor(NamedTuple):
    """What is decided for one tensor, over its plan axes.

    Attributes:
        bits: Of its integers.
        average: Moving average of the logarithm of its scale; NaN before the first
            check.
        due: Step from which the next check may come.
        difference: Error measure at the last check, in the bits that it led to; NaN
            before the first.
    """

    bits: Int32[Array, "*axes"]
    average: Float32[Array, "*axes"]
    due: Int32[Array, "*axes"]
    difference: Float32[Array, "*axes"]


class QEMState(NamedTuple):
    """State of `qem`.

    Attributes:
        scope: The contractions it plans for.
        rule: The numbers of the rule.
        tensors: By path and role.
    """

    scope: Scope
    rule: Intervals
    tensors: dict[str, dict[str, Tensor]]


def qem(
    *,
    epoch: int,
    every: int = 1,
    warmup_fraction: float = 0.01,
    threshold: float = 0.03,
    alpha: float = 0.04,
    beta: float = 0.1,
    gamma: float = 2.0,
    delta: float = 100.0,
) -> Schedule:
    """Gives a tensor 8 more bits where rounding moves its mean magnitude too far.

    A check of a tensor x, and of each layer of it along its plan axes, begins with the
    bits n that it has and asks what rounding to n bits does:

        diff = log2(|mean|x| - mean|x_n|| / mean|x| + 1)

    While diff is above `threshold` and n below 24, n grows by 8. x_n is x rounded with
    the scale 2^s, s = ceil(log2(max|x| / (2^(n-1) - 1))). How long the tensor then goes
    without a check depends on how far its scale moves. With m the moving average of s,
    less 8 for every growth by 8 bits,

        steps = round(beta / max(alpha |s - m|, delta diff^2) - gamma)

    at least 1 and at most `epoch`, and m becomes alpha s + (1 - alpha) m. In the first
    `warmup_fraction` of the first epoch every look checks; after that epoch, one an
    epoch does.

    Decides:
        8, 16 or 24 bits for each activation, weight and gradient of each layer by
        itself, at a look in steps of its own; they never fall.

    Signal:
        Of every tensor: mean magnitude before and after rounding to each of the three
        widths, and largest magnitude.

        Logs diff as of the last check, `signal/mean_shift_activation/PATH`,
        `signal/mean_shift_weight/PATH` and `signal/mean_shift_gradient/PATH`, with the
        bits that the check chose: at most `threshold`, or the bits are 24. The formats
        of the same row follow from them.

    Costs:
        Four numbers for each tensor of each layer. At each look all tensors are rounded
        to three formats more; `every` makes looks rarer.

    Source:
        Zhang et al. 2020, "Fixed-Point Back-Propagation Training", CVPR 2020,
        arXiv:1911.00361.

    Against:
        The interval and its constants were read in a program of a third party, not in
        the paper; that |s - m| takes m before the update, and the first m from the
        first s, is our reading. A zero mean shift is no proof of small errors: they may
        cancel. Bits never fall, so one bad batch raises them for good.

    Args:
        epoch: Steps of an epoch, at least 1.
        every: Calls from one look at the statistics to the next, at least 1; an
            interval ends at the first look after it.
        warmup_fraction: Part of the first epoch in which every look checks, 0 to 1.
        threshold: Largest measure that needs no more bits, above 0.
        alpha: Weight of the newest scale in its moving average, above 0, at most 1.
        beta: Numerator of the interval, above 0.
        gamma: What is taken off the interval, at least 0.
        delta: Weight of the squared measure, at least 0.

    Raises:
        ValueError: An argument is out of range; (in `update`) the statistics were not
            gathered.

    >>> schedule = qem(epoch=500)
    """
    if epoch < 1 or every < 1:
        raise ValueError(
            f"Expected epoch and every of at least 1, got {epoch=}, {every=}."
        )
    if not (0 <= warmup_fraction <= 1 and 0 < alpha <= 1):
        raise ValueError(
            "Expected warmup_fraction in 0 to 1 and 0 < alpha <= 1, got "
            f"{warmup_fraction=}, {alpha=}."
        )
    if not (threshold > 0 and beta > 0 and gamma >= 0 and delta >= 0):
        raise ValueError(
            "Expected threshold and beta above 0, gamma and delta of at least 0, got "
            f"{threshold=}, {beta=}, {gamma=}, {delta=}."
        )
    rule = Intervals(
        threshold=jnp.float32(threshold),
        alpha=jnp.float32(alpha),
        beta=jnp.float32(beta),
        gamma=jnp.float32(gamma),
        delta=jnp.float32(delta),
        epoch=jnp.int32(epoch),
        warmup=jnp.int32(warmup_fraction * epoch),
        every=jnp.int32(every),
    )

    def init(table: Table) -> QEMState:
        tensors = {
            c.name: {
                role: Tensor(
                    bits=jnp.full(c.axes, WIDTHS[0], jnp.int32),
                    average=jnp.full(c.axes, jnp.nan, jnp.float32),
                    due=jnp.zeros(c.axes, jnp.int32),
                    difference=jnp.full(c.axes, jnp.nan, jnp.float32),
                )
                for role in ROLES
            }
            for c in table.contractions
        }
        return QEMState(Scope(table), rule, tensors)

    watched = Watch(
        quantities=("amax", "mean_abs", "mean_abs_rounded"),
        what_if={name: formats.integer(width) for width, name in _ASKED.items()},
    )
    return Schedule(init, _update, reads=watched, every=every, signals=_signals)


def mean_shift(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the error measure of a rounding: 0 where the mean magnitude is the same.

    >>> mean_shift(TensorStats(elements=jnp.float32(2), sum_abs=jnp.float32(4),
    ...                        sum_abs_rounded=jnp.float32(8)))
    Array(1., dtype=float32)
    """
    before, after = mean_abs(sums), mean_abs_rounded(sums)
    return jnp.log2(jnp.abs(before - after) / before + 1)


def _update(
    step: Int32[Array, ""], stats: Stats, state: QEMState
) -> tuple[Plan, QEMState]:
    looks = stats.finite & (step % state.rule.every == 0)
    missing = [name for name in _ASKED.values() if name not in stats.what_if]
    if missing:
        raise not_gathered(f"what rounding to {missing} does")
    tensors = {
        path: {
            role: _check(
                [stats.what_if[name][path][role] for name in _ASKED.values()],
                looks,
                step,
                tensor,
                state.rule,
            )
            for role, tensor in roles.items()
        }
        for path, roles in state.tensors.items()
    }
    # By slot: each of the two activations of an attention product has its own bits.
    plan: Plan = {
        path: SharedPrecision(
            *(formats.integer(tensors[path][role].bits) for role in ROLES)
        )
        for path in state.scope.table.names
    }
    return plan, state._replace(tensors=tensors)


def _check(
    asked: list[TensorStats],
    looks: Bool[Array, ""],
    step: Int32[Array, ""],
    tensor: Tensor,
    rule: Intervals,
) -> Tensor:
    """Returns the decision after one call; what is not known leaves it as it was."""
    shifts = [mean_shift(sums) for sums in asked]
    bits = tensor.bits
    for narrow, wide, shift in zip(WIDTHS, WIDTHS[1:], shifts, strict=False):
        grows = (bits == narrow) & (shift > rule.threshold)
        bits = jnp.where(grows, wide, bits)
    shift = shifts[0]
    for width, each in zip(WIDTHS[1:], shifts[1:], strict=True):
        shift = jnp.where(bits == width, each, shift)
    largest = amax(asked[0])
    scale = log_step(largest, bits).astype(jnp.float32)
    average = tensor.average - (bits - tensor.bits).astype(jnp.float32)
    average = jnp.where(jnp.isnan(average), scale, average)
    moved = rule.alpha * jnp.abs(scale - average)
    steps = rule.beta / jnp.maximum(moved, rule.delta * jnp.square(shift)) - rule.gamma
    steps = jnp.clip(jnp.round(steps), 1, rule.epoch.astype(jnp.float32))
    steps = jnp.where(step < rule.warmup, 1, steps.astype(jnp.int32))
    steps = jnp.where(step >= rule.epoch, rule.epoch, steps)
    checked = Tensor(
        bits=bits,
        average=average + rule.alpha * (scale - average),
        due=step + steps,
        difference=shift,
    )
    known = jnp.isfinite(shift) & jnp.isfinite(largest)
    return select(looks & known & (step >= tensor.due), checked, tensor)


def _signals(state: QEMState) -> Signals:
    return {
        f"mean_shift_{role}": {
            path: tensors[role].difference for path, tensors in state.tensors.items()
        }
        for role in ROLES
    }
