"""High precision for a layer while the norm of its gradients is changing."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.contractions.weights import Weights
from adaprec_jax.precision import Entry, Plan
from adaprec_jax.schedules.by_layer import vectors
from adaprec_jax.schedules.levels import Levels, choose, levels
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select


class Regime(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        levels: Precision of layers in a critical regime, and of the others.
        window: Applied steps whose gradients are added up.
        threshold: Relative change of the norm from which a regime is critical.
        decays: Steps at which the learning rate falls.
    """

    levels: Levels
    window: Int32[Array, ""]
    threshold: Float32[Array, ""]
    decays: Int32[Array, "decays"]


class Window(NamedTuple):
    """What is known and decided of one weight, over its plan axes.

    Attributes:
        gradient: Sum of the gradients in the window under way.
        norm: Of that sum, of the last complete window; 0 before there is one.
        change: Relative, of the norm in the last window; NaN before there are two.
        critical: Whether the layer has the high precision.
    """

    gradient: Float32[Array, "*axes_and_shape"]
    norm: Float32[Array, "*axes"]
    change: Float32[Array, "*axes"]
    critical: Bool[Array, "*axes"]


class AccordionState(NamedTuple):
    """State of `accordion`.

    Attributes:
        scope: The contractions it plans for.
        regime: The numbers of the rule.
        steps: Applied ones in the window under way.
        windows: By path, of the contractions that have a weight.
    """

    scope: Scope
    regime: Regime
    steps: Int32[Array, ""]
    windows: dict[str, Window]


def accordion(
    high: Entry,
    low: Entry,
    *,
    window: int,
    threshold: float = 0.5,
    decays: Sequence[int] = (),
) -> Schedule:
    """Uses `high` where the gradients of a layer are in a critical regime, else `low`.

    With d the norm of the sum of a layer's gradients over a window of `window` applied
    steps, and d' that of the window before, the layer is in a critical regime for the
    window that follows if

        |d' - d| / d' >= threshold

    or if d' is zero. All layers are in one in the first window (and in the second,
    since there is no window before the first), and from each of the steps `decays` on,
    where a new window begins, until that window ends. Contractions without a weight
    always have the high precision.

    Decides:
        One of two precisions for each layer, at the end of a window.

    Signal:
        The gradients of each weight, added up over a window; the norm of that sum.

        Logs |d' - d| / d' as of the last complete window, `signal/norm_change/PATH`: at
        least `threshold` asks for high, from the step after that row on.

    Costs:
        A float32 buffer as large as all weights, and one addition to it per step.

    Source:
        Agarwal et al. 2021, "Accordion: Adaptive Gradient Communication via Critical
        Learning Regime Identification", MLSys 2021, arXiv:2010.16248, which chooses how
        far gradients are compressed; that it chooses formats is ours.

    Against:
        Nothing published says that the regime in which compression hurts is that in
        which rounding hurts. The length of a window is ours. A noisy norm changes from
        window to window by itself: with few steps in a window every layer is critical.

    Args:
        high: Entry of layers in a critical regime.
        low: Entry of the others, of the same type.
        window: Applied steps of a window, at least 1.
        threshold: Relative change from which a regime is critical, above 0.
        decays: Steps at which the learning rate falls, skipped ones counted, each at
            least 0.

    Raises:
        ValueError: An argument is out of range, or the entries are of both types.

    >>> from adaprec_jax.plan import integers
    >>> schedule = accordion(integers(8, 8), integers(4, 8), window=100)
    """
    if window < 1:
        raise ValueError(f"Expected a window of at least 1 step, got {window}.")
    if not threshold > 0:
        raise ValueError(f"Expected a threshold above 0, got {threshold}.")
    if any(step < 0 for step in decays):
        raise ValueError(f"Expected decays at steps from 0 on, got {list(decays)}.")
    regime = Regime(
        levels=levels(high, low),
        window=jnp.int32(window),
        threshold=jnp.float32(threshold),
        decays=jnp.asarray(decays, jnp.int32),
    )

    def init(table: Table) -> AccordionState:
        windows = {
            c.name: Window(
                gradient=jnp.zeros(c.parameter_shape, jnp.float32),
                norm=jnp.zeros(c.axes, jnp.float32),
                change=jnp.full(c.axes, jnp.nan, jnp.float32),
                critical=jnp.ones(c.axes, bool),
            )
            for c in table.contractions
            if c.parameter
        }
        return AccordionState(Scope(table), regime, jnp.int32(0), windows)

    return Schedule(init, _update, observe=_observe, signals=_signals)


def _update(
    step: Int32[Array, ""], stats: Stats, state: AccordionState
) -> tuple[Plan, AccordionState]:
    del stats  # what they tell was decided when the weights were seen
    decays = jnp.any(step == state.regime.decays)
    windows = {
        name: window._replace(
            gradient=jnp.where(decays, 0, window.gradient),
            critical=window.critical | decays,
        )
        for name, window in state.windows.items()
    }
    is_high = {name: window.critical for name, window in windows.items()}
    plan = choose(state.scope.table, state.regime.levels, is_high)
    steps = jnp.where(decays, 0, state.steps)
    return plan, state._replace(steps=steps, windows=windows)


def _observe(
    step: Int32[Array, ""], weights: Weights, state: AccordionState
) -> AccordionState:
    """Adds up the gradients, and compares their norms when a window ends."""
    del step  # a window counts the steps that were applied
    steps = state.steps + 1
    ends = steps >= state.regime.window
    windows = {}
    for c in state.scope.table.contractions:
        if c.parameter:
            window = state.windows[c.name]
            gradient = window.gradient + weights[c.name].gradient
            window = window._replace(gradient=gradient)
            ended = _ended(window, c, state.regime.threshold)
            windows[c.name] = select(ends, ended, window)
    return state._replace(steps=jnp.where(ends, 0, steps), windows=windows)


def _ended(
    window: Window, contraction: Contraction, threshold: Float32[Array, ""]
) -> Window:
    """Returns what a complete window leads to; one not finite leads to nothing."""
    norm = jnp.sqrt(jnp.sum(jnp.square(vectors(window.gradient, contraction)), -1))
    change = jnp.abs(window.norm - norm) / window.norm
    known = jnp.isfinite(norm)
    critical = (window.norm == 0) | (change >= threshold)
    return Window(
        gradient=jnp.zeros_like(window.gradient),
        norm=jnp.where(known, norm, window.norm),
        change=jnp.where(known & (window.norm > 0), change, window.change),
        critical=jnp.where(known, critical, window.critical),
    )


def _signals(state: AccordionState) -> Signals:
    return {
        "norm_change": {name: window.change for name, window in state.windows.items()}
    }
