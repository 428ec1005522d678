"""The loop on the host: it feeds the device, reports one dispatch late, and ends well.

While the device works on a dispatch, the host gathers the batches of the next one and
reports the metrics of the one before. It waits for the device only where something is
due that needs the state: an evaluation, a checkpoint, the end. Steps are numbered from
1: a number says how many steps were completed.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from adaprec_jax.train.diagnose import Instant
from adaprec_jax.train.state import TrainState
from adaprec_jax.train.step import Metrics


class Cadence(NamedTuple):
    """How long a run is and when it pauses; all multiples of `dispatch`.

    Attributes:
        steps: Of the whole run.
        dispatch: Steps per call of the compiled program.
        evaluate_every: Steps between evaluations; there is one at the end as well.
        save_every: Steps between checkpoints; there is one at the end as well.
    """

    steps: int
    dispatch: int
    evaluate_every: int
    save_every: int


class Hooks(NamedTuple):
    """What the loop calls; all but `fetch` may be left out.

    Attributes:
        fetch: `numbers -> batches`: the batches of the steps with these numbers,
            counted from 0, stacked along the first axis.
        on_metrics: `(numbers, metrics)`: the metrics, on the host, of these steps,
            counted from 1; stacked along the first axis.
        evaluate: `(step, state)`.
        save: `(step, state)`: a checkpoint; it must have copied the state when it
            returns. Never called with a state that has diverged.
        stop: Whether to stop at the next opportunity, with a checkpoint.
        diagnose: What `make_diagnose` returned.
    """

    fetch: Callable[[Int[np.ndarray, " steps"]], PyTree]
    on_metrics: Callable[[Int[np.ndarray, " steps"], Metrics], None] = lambda *_: None
    evaluate: Callable[[int, TrainState], None] = lambda *_: None
    save: Callable[[int, TrainState], None] = lambda *_: None
    stop: Callable[[], bool] = lambda: False
    diagnose: Callable[[TrainState, Instant, PyTree], str] | None = None


class CannotGoOnError(Exception):
    """Raised by a dispatch that cannot be carried out, before it took its state.

    Its message says why, as a part of a sentence.
    """


class Ending(NamedTuple):
    """How a run ended.

    Attributes:
        kind: "done": all steps were taken. "interrupted": `stop` said so. "diverged":
            the loss, the gradients or the parameters did, in all runs of a pack.
            "failed": a dispatch cannot be carried out.
        step: The number of the last step that counts.
        state: After it; after a divergence, the last that was sound.
        message: Of a divergence: the step where it began, and the layer.
    """

    kind: Literal["done", "interrupted", "diverged", "failed"]
    step: int
    state: TrainState
    message: str = ""


def train(
    dispatch: Callable[[TrainState, PyTree], tuple[TrainState, Metrics]],
    state: TrainState,
    cadence: Cadence,
    hooks: Hooks,
) -> Ending:
    """Trains from the state's step to the last one.

    Args:
        dispatch: What `make_dispatch` returned (for a pack, with its arrays bound).
        state: The first state, or a restored one; it is donated.
        cadence: How long and how often.
        hooks: What is called.

    Raises:
        ValueError: The cadence does not fit together.
    """
    _check(cadence)
    step = started = int(state.calls)
    batches = _batches(step, cadence, hooks)
    running: list[_Running] = []
    stops = hooks.stop()
    while step < cadence.steps and not stops:
        try:
            state, metrics = dispatch(state, batches)  # returns before it is computed
        except CannotGoOnError as error:
            saved = step == started or _is_due(step, cadence, cadence.save_every)
            return (
                _report(running, state, hooks, leave=0)
                or (None if saved else _save(step, state, hooks))
                or Ending("failed", step, state, str(error))
            )
        running.append(_Running(step, metrics))
        step += cadence.dispatch
        batches = _batches(step, cadence, hooks)
        stops = hooks.stop()
        evaluates = _is_due(step, cadence, cadence.evaluate_every)
        saves = _is_due(step, cadence, cadence.save_every) or stops
        ending = _report(running, state, hooks, leave=0 if evaluates or saves else 1)
        if not ending and evaluates:
            hooks.evaluate(step, state)
        if not ending and saves:
            ending = _save(step, state, hooks)
        if ending:
            return ending
    return Ending("done" if step == cadence.steps else "interrupted", step, state)


class _Running(NamedTuple):
    """A dispatch that was sent to the device: the steps before it, its metrics."""

    start: int
    metrics: Metrics


def _check(cadence: Cadence) -> None:
    for name, value in cadence._asdict().items():
        if value < 1 or value % cadence.dispatch:
            raise ValueError(
                f"{name} must be a positive multiple of dispatch={cadence.dispatch}, "
                f"got {value}."
            )


def _is_due(step: int, cadence: Cadence, every: int) -> bool:
    return step % every == 0 or step == cadence.steps


def _batches(step: int, cadence: Cadence, hooks: Hooks) -> PyTree | None:
    """Returns what the dispatch after `step` steps reads; None after the last."""
    if step >= cadence.steps:
        return None
    return hooks.fetch(np.arange(step, step + cadence.dispatch))


def _report(
    running: list[_Running], state: TrainState, hooks: Hooks, *, leave: int
) -> Ending | None:
    """Waits for all dispatches but the last `leave`, and reports them.

    Returns how the run ended if it has diverged, with the metrics up to then reported.
    """
    while len(running) > leave:
        start, metrics = running.pop(0)
        metrics = jax.device_get(metrics)
        halted = metrics.halted.reshape(len(metrics.halted), -1).all(axis=1)
        count = int(np.argmax(halted)) + 1 if halted.any() else len(halted)
        kept = jax.tree.map(lambda leaf, n=count: leaf[:n], metrics)
        hooks.on_metrics(start + 1 + np.arange(count), kept)
        if halted.any():
            last = jax.tree.map(lambda leaf: leaf[-1], kept)
            return diverged(start + count, last, state, hooks)
    return None


def diverged(step: int, metrics: Metrics, state: TrainState, hooks: Hooks) -> Ending:
    """Returns the ending of a run that diverged in the step with these metrics.

    Args:
        step: The last step that counts.
        metrics: Of that step, on the host.
        state: The last that was sound, of the run or of its pack.
        hooks: Of the run; `fetch` and `diagnose` are asked where it began.
    """
    scalars = metrics.scalars
    if state.halted.ndim:
        return Ending("diverged", step, state, "every run of the pack has diverged")
    loss, skips = float(scalars["loss"]), int(scalars["consecutive_skips"])
    if scalars["finite"]:
        message = f"the loss rose to {loss:g} at step {step}"
        return Ending("diverged", step, state, message)
    what = "gradient" if np.isfinite(loss) else "loss"
    message = f"the {what} was not finite from step {step - skips + 1} on"
    if hooks.diagnose:
        instant = Instant(jnp.int32(step - 1), metrics.plan, scalars["loss_scale"])
        batches = hooks.fetch(np.array([step - 1]))
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        message = f"{message}; {hooks.diagnose(state, instant, batch)}"
    return Ending("diverged", step, state, message)


def _save(step: int, state: TrainState, hooks: Hooks) -> Ending | None:
    """Saves a state that is sound; returns the ending of a run whose state is not."""
    if ill := ill_parameter(state):
        return Ending("diverged", step, state, f"{ill} at step {step}")
    hooks.save(step, state)
    return None


def ill_parameter(state: TrainState) -> str:
    """Returns a sentence about a parameter that is not finite, "" if all are.

    The loss would tell of it, but only after the next step. A pack is not asked: one
    run's fate is not the others'.

    Args:
        state: Of a run.
    """
    if state.halted.ndim:
        return ""
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.model_state))
    finite = np.asarray(_all_finite([leaf for _, leaf in leaves]))
    if finite.all():
        return ""
    path = jax.tree_util.keystr(leaves[int(np.argmin(finite))][0][1:])
    return f"the parameter {path} is not finite"


@jax.jit
def _all_finite(leaves: list[Array]) -> Bool[Array, " leaves"]:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
