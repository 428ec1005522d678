"""A schedule that lowers the bits as the loss falls."""

import jax.numpy as jnp

import adaprec_jax as ap


def by_loss(low: int, high: int, *, steps: int) -> ap.schedules.Schedule:
    """Uses `high` bits until the loss is below 1, and in the last tenth of the run."""

    init = lambda table: (ap.schedules.Scope(table), jnp.float32(jnp.inf))

    def update(step, stats, state):
        scope, loss = state[0], jnp.where(stats.finite, stats.loss, state[1])
        coarse = (loss < 1.0) & (10 * step < 9 * steps)
        entry = ap.plan.integers(jnp.where(coarse, low, high), 8)
        plan = {c.name: ap.plan.fill(c, entry) for c in scope.table.contractions}
        return plan, (scope, loss)

    return ap.schedules.Schedule(init, update)
