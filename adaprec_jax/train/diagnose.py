"""Where a number that is not finite came from: which layer's, in which tensor."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, PyTree

from adaprec_jax.contractions import Table, Watch
from adaprec_jax.contractions.statistics import fields_of, unpack
from adaprec_jax.train import record
from adaprec_jax.train.gradients import make_gradients
from adaprec_jax.train.record import PackedPlan
from adaprec_jax.train.state import Program, TrainState, plan_of

# An infinity shows in the largest magnitude, a NaN in the sum of them (on a CPU XLA's
# maximum passes over it). A sum of large finite numbers may be infinite as well.
_WATCH = Watch(("amax", "mean_abs"))


class Instant(NamedTuple):
    """What a diverged step used that the state no longer holds.

    Its parameters, model state and scaling recipes the state still holds, because from
    that step on none was applied.

    Attributes:
        calls: The steps before it.
        plan: Its plan, in rows.
        loss_scale: Its loss scale.
    """

    calls: Int32[Array, ""]
    plan: PackedPlan
    loss_scale: Float32[Array, ""]


def make_diagnose(program: Program) -> Callable[[TrainState, Instant, PyTree], str]:
    """Returns `diagnose(state, instant, batch)`: a sentence on where a step broke.

    It computes the step again and looks at every tensor's largest magnitude and sum.
    """
    gradients_of = make_gradients(program, _WATCH)

    @jax.jit
    def look(state: TrainState, instant: Instant, batch: PyTree) -> Bool[Array, "..."]:
        scaling = state.opt_state._replace(scale=instant.loss_scale)
        before = state._replace(calls=instant.calls, opt_state=scaling)
        plan = plan_of(program, state, instant.plan)
        found = gradients_of(before, plan, batch, None)
        rows = record.pack_tensors(found.stats.tensors, {}, program.table, _WATCH)
        sums = unpack(rows[:, :, 0], fields_of(_WATCH.quantities))
        amax, total = jnp.asarray(sums.amax), jnp.asarray(sums.sum_abs)
        return ~jnp.isfinite(amax) | jnp.isnan(total)

    def diagnose(state: TrainState, instant: Instant, batch: PyTree) -> str:
        bad = np.asarray(look(state, instant, batch))
        where = first_bad(program.table, bad)
        if where is None:
            return "every tensor that a contraction reads was finite"
        return f"the first tensor that was not finite is {where}"

    return diagnose


def first_bad(table: Table, bad: Bool[np.ndarray, "rows roles"]) -> str | None:
    """Returns the first tensor in the order of computation that is marked.

    Activations and weights come in the order of the program, layer by layer where a
    stack of layers is scanned; gradients after them, from the end.

    Args:
        table: The contractions.
        bad: In rows (`record.rows`), for activation, weight and gradient.
    """
    names = record.rows(table)
    order = list(_in_order(table))
    for row in order:
        for k, role in enumerate(_WATCH.roles[:2]):
            if bad[row, k]:
                return f"the {role} of {names[row]}"
    for row in reversed(order):
        if bad[row, 2]:
            return f"the gradient of {names[row]}"
    return None


def _in_order(table: Table) -> Iterator[int]:
    """Yields the rows in the order of computation."""
    keyed: list[tuple[int, tuple[int, ...], int, int]] = []
    group, axis = 0, None
    for number, c in enumerate(table.contractions):
        # Neighbours with as many layers are in one scan, which runs layer by layer.
        if not c.axes or c.axes[0] != axis:
            group, axis = number, c.axes[0] if c.axes else None
        for place in np.ndindex(c.axes):
            keyed.append((group, place[:1], number, len(keyed)))
    yield from (row for *_, row in sorted(keyed))
