"""A schedule of one's own: more bits while the gradient norm is above its average."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import adaprec_jax as ap


class State(NamedTuple):
    scope: ap.schedules.Scope
    average: jax.Array


def by_gradient_norm(low: int, high: int, decay: float = 0.9) -> ap.schedules.Schedule:
    def init(table: ap.Table) -> State:
        return State(ap.schedules.Scope(table), jnp.float32(0))

    def update(step: jax.Array, stats: ap.Stats, state: State) -> tuple[dict, State]:
        norm = jnp.where(stats.finite, stats.gradient_norm, state.average)
        average = decay * state.average + (1 - decay) * norm
        entry = ap.plan.integers(jnp.where(norm > average, high, low), 8)
        table = state.scope.table
        plan = {c.name: ap.plan.fill(c, entry) for c in table.contractions}
        return plan, state._replace(average=average)

    return ap.schedules.Schedule(init, update)
