"""Low precision where a device is faster for it, high precision everywhere else."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table
from adaprec_jax.cost.bottleneck import seconds
from adaprec_jax.cost.devices import device as device_of
from adaprec_jax.precision import Entry, Plan
from adaprec_jax.schedules.levels import Levels, choose, levels
from adaprec_jax.schedules.schedule import Schedule, Scope


class BottleneckState(NamedTuple):
    """State of `by_bottleneck`, constant over the run.

    Attributes:
        scope: The table.
        levels: Both precisions.
        is_high: Which contractions have the high one, by path.
    """

    scope: Scope
    levels: Levels
    is_high: dict[str, Bool[Array, ""]]


def by_bottleneck(
    device: str, low: Entry, high: Entry, *, min_saving: float = 0.1
) -> Schedule:
    r"""Lowers the precision of those contractions that a device computes faster by it.

    With the roofline time t of the three products of a contraction
    (`adaprec_jax.cost.bottleneck.seconds`), it gets `low` if

    $$ t_{low} \le (1 - s) \, t_{high} $$

    with the least saving s, and `high` otherwise: a product that is bound by writing a
    float32 result gains nothing from narrow operands, and only loses accuracy.

    Decides:
        One of two precisions for each contraction, once; its layers get the same.

    Signal:
        The shapes of the contractions, and the published rates of the device: nothing
        that is measured. Logs no column of its own.

    Costs:
        Nothing during the run; a few divisions for each contraction before it.

    Source:
        Ours, on the roofline model of Williams et al. 2009, "Roofline: an insightful
        visual performance model for multicore architectures", CACM 52(4).

    Against:
        A roofline is the best that a device can do: kernels, scaling and what lies
        between contractions take time that it does not have. It says nothing of
        accuracy: what is cheap to lower may be what must not be lowered.

    Args:
        device: A short name of `adaprec_jax.cost.devices`.
        low: The entry where it pays.
        high: The entry elsewhere.
        min_saving: Share of its time that a contraction must gain, 0 to 1.

    Raises:
        ValueError: The device is unknown, the share out of range, or the entries of
            both types.

    >>> from adaprec_jax.plan import integers
    >>> schedule = by_bottleneck("h100", integers(8, 8), integers(16, 16))
    """
    chosen = device_of(device)
    if not 0 <= min_saving < 1:
        raise ValueError(f"min_saving must be from 0 to below 1, got {min_saving}.")
    both = levels(high, low)

    def init(table: Table) -> BottleneckState:
        is_high = {}
        for c in table.contractions:
            fast, slow = seconds(c, low, chosen), seconds(c, high, chosen)
            pays = (
                fast is not None
                and slow is not None
                and fast <= (1 - min_saving) * slow
            )
            is_high[c.name] = jnp.bool_(not pays)
        return BottleneckState(Scope(table), both, is_high)

    return Schedule(init, _update)


def _update(
    step: Int32[Array, ""], stats: Stats, state: BottleneckState
) -> tuple[Plan, BottleneckState]:
    del step, stats  # the shapes decided
    table = state.scope.table
    is_high = {
        c.name: jnp.broadcast_to(state.is_high[c.name], c.axes)
        for c in table.contractions
    }
    return choose(table, state.levels, is_high), jax.tree.map(jnp.asarray, state)
