"""Progressive fractional quantisation: the next stage when the loss stops falling."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table
from adaprec_jax.plan import integers, uniform
from adaprec_jax.precision import Plan
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select


class Plateau(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        forward_bits: Of activations and weights, by stage.
        gradient_bits: Of gradients, by stage.
        every: Applied steps of an epoch.
        alpha: Factor of the threshold at each switch but the last.
        scale_epochs: Epochs whose mean loss the changes are measured in.
    """

    forward_bits: Int32[Array, "stages"]
    gradient_bits: Int32[Array, "stages"]
    every: Int32[Array, ""]
    alpha: Float32[Array, ""]
    scale_epochs: Int32[Array, ""]


class Epoch(NamedTuple):
    """The losses of the epoch that is under way.

    Attributes:
        mean: Of the applied steps so far.
        steps: How many they are.
    """

    mean: Float32[Array, ""]
    steps: Int32[Array, ""]


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        stage: In force.
        epsilon: Largest relative change of the loss that counts as none.
        losses: Of the last epochs of this stage, the newest last.
        kept: How many of them there are.
        scale: Mean loss of the first epochs, in which changes are measured.
        epochs: Complete ones, in all stages.
        loss: Of the last complete epoch.
        change: Its largest distance from the epochs kept before it, in units of
            `scale`; NaN while too few are kept.
    """

    stage: Int32[Array, ""]
    epsilon: Float32[Array, ""]
    losses: Float32[Array, "window"]
    kept: Int32[Array, ""]
    scale: Float32[Array, ""]
    epochs: Int32[Array, ""]
    loss: Float32[Array, ""]
    change: Float32[Array, ""]


class PFQState(NamedTuple):
    """State of `pfq`.

    Attributes:
        scope: The contractions it plans for.
        rule: The numbers of the rule.
        epoch: The losses of the epoch under way.
        progress: What the epochs before it led to.
    """

    scope: Scope
    rule: Plateau
    epoch: Epoch
    progress: Progress


def pfq(
    *,
    forward_bits: Sequence[int],
    gradient_bits: Sequence[int],
    every: int,
    epsilon: float = 0.15,
    alpha: float = 0.4,
    window: int = 5,
    scale_epochs: int = 10,
) -> Schedule:
    """Goes from stage to stage of rising bits, each time the training loss levels off.

    An epoch is `every` applied steps, and its loss L the mean of theirs. With the last
    `window` epochs of a stage at hand, the loss has levelled off if every one of the
    older ones has |L_i - L| <= epsilon * scale, where scale is the mean loss of the
    first `scale_epochs` epochs (of those so far, while there are fewer). Then the next
    stage begins with an empty window, and epsilon is multiplied by `alpha`, but not at
    the last switch.

    Decides:
        One width for the activations and weights of all layers and one for their
        gradients, at the end of an epoch; bits never return to an earlier stage.

    Signal:
        The training loss of every step, averaged over epochs.

        Logs the loss of the last epoch, `signal/epoch_loss/PATH`, and the largest of
        its differences from those of the window, relative to scale,
        `signal/loss_change/PATH`: both are alike for all layers. At most `epsilon`, as
        the switches so far have left it, begins the next stage, in the formats of the
        same row.

    Costs:
        A dozen numbers for the run, and no statistics.

    Source:
        Fu et al. 2020, "FracTrain: Fractionally Squeezing Bit Savings Both Temporally
        and Spatially for Efficient DNN Training", NeurIPS 2020, arXiv:2012.13113; the
        details are those of its published code.

    Against:
        The threshold is relative to the first losses, so a loss that ends near zero
        levels off early. The code has epsilon 0.15 and alpha 0.4 for CIFAR, 0.05 and
        0.3 for ImageNet.

    Args:
        forward_bits: Bits of activations and weights, by stage.
        gradient_bits: Bits of gradients, by stage.
        every: Applied steps of an epoch, at least 1.
        epsilon: Largest change of the loss that counts as none, relative, above 0.
        alpha: Factor of epsilon, above 0 and at most 1.
        window: Epochs that are compared, at least 2.
        scale_epochs: Epochs that give the scale, at least 1.

    Raises:
        ValueError: An argument is out of range, or the stages of both lists differ.

    >>> schedule = pfq(forward_bits=[3, 4, 6, 8], gradient_bits=[6, 6, 8, 8], every=100)
    """
    if not forward_bits or len(forward_bits) != len(gradient_bits):
        raise ValueError(
            "Expected one or more stages with bits in both lists, got "
            f"{forward_bits=}, {gradient_bits=}."
        )
    for pair in zip(forward_bits, gradient_bits, strict=True):
        integers(*pair)  # says what is wrong with a width out of range
    if every < 1 or window < 2 or scale_epochs < 1:
        raise ValueError(
            "Expected every and scale_epochs of at least 1 and a window of at least 2, "
            f"got {every=}, {scale_epochs=}, {window=}."
        )
    if not (epsilon > 0 and 0 < alpha <= 1):
        raise ValueError(
            f"Expected epsilon > 0 and 0 < alpha <= 1, got {epsilon=}, {alpha=}."
        )
    rule = Plateau(
        forward_bits=jnp.asarray(forward_bits, jnp.int32),
        gradient_bits=jnp.asarray(gradient_bits, jnp.int32),
        every=jnp.int32(every),
        alpha=jnp.float32(alpha),
        scale_epochs=jnp.int32(scale_epochs),
    )
    nothing = Epoch(jnp.float32(0), jnp.int32(0))
    progress = Progress(
        stage=jnp.int32(0),
        epsilon=jnp.float32(epsilon),
        losses=jnp.zeros(window, jnp.float32),
        kept=jnp.int32(0),
        scale=jnp.float32(0),
        epochs=jnp.int32(0),
        loss=jnp.float32(jnp.nan),
        change=jnp.float32(jnp.nan),
    )

    def init(table: Table) -> PFQState:
        return PFQState(Scope(table), rule, nothing, progress)

    def update(
        step: Int32[Array, ""], stats: Stats, state: PFQState
    ) -> tuple[Plan, PFQState]:
        del step  # an epoch counts the steps that were applied
        known = stats.finite & jnp.isfinite(stats.loss)
        epoch = select(known, _with_loss(state.epoch, stats.loss), state.epoch)
        ends = epoch.steps >= state.rule.every
        after = _after_epoch(state.progress, epoch.mean, state.rule)
        progress = select(ends, after, state.progress)
        bits = (state.rule.forward_bits, state.rule.gradient_bits)
        entry = integers(*(by_stage[progress.stage] for by_stage in bits))
        plan = uniform(state.scope.table, entry)
        return plan, state._replace(
            epoch=select(ends, nothing, epoch), progress=progress
        )

    return Schedule(init, update, signals=_signals)


def _with_loss(epoch: Epoch, loss: Float32[Array, ""]) -> Epoch:
    steps = epoch.steps + 1
    # Not a sum, which a few huge losses would make infinite.
    mean = epoch.mean + (loss - epoch.mean) / steps.astype(jnp.float32)
    return Epoch(mean, steps)


def _after_epoch(
    progress: Progress, loss: Float32[Array, ""], rule: Plateau
) -> Progress:
    """Returns the progress after an epoch of this mean loss."""
    epochs = progress.epochs + 1
    mean = progress.scale + (loss - progress.scale) / epochs.astype(jnp.float32)
    scale = jnp.where(epochs <= rule.scale_epochs, mean, progress.scale)
    losses = jnp.roll(progress.losses, -1).at[-1].set(loss)
    kept = jnp.minimum(progress.kept + 1, losses.size)
    full = kept == losses.size
    farthest = jnp.max(jnp.abs(losses[:-1] - loss))
    last = rule.forward_bits.size - 1
    # A product, since a loss that is zero from the beginning has no relative change.
    level = farthest <= progress.epsilon * jnp.abs(scale)
    switches = full & level & (progress.stage < last)
    shrinks = switches & (progress.stage < last - 1)
    return Progress(
        stage=progress.stage + switches.astype(jnp.int32),
        epsilon=progress.epsilon * jnp.where(shrinks, rule.alpha, 1),
        losses=losses,
        kept=jnp.where(switches, 0, kept),
        scale=scale,
        epochs=epochs,
        loss=loss,
        change=jnp.where(full, farthest / jnp.abs(scale), jnp.nan),
    )


def _signals(state: PFQState) -> Signals:
    """Returns the loss of the last epoch and its change, the same for all layers."""
    numbers = {"epoch_loss": state.progress.loss, "loss_change": state.progress.change}
    return {
        name: {
            c.name: jnp.broadcast_to(number, c.axes)
            for c in state.scope.table.contractions
        }
        for name, number in numbers.items()
    }
