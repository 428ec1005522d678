"""A schedule that adds bits where weights underflow."""

import jax.numpy as jnp

import adaprec_jax as ap


def by_underflow(
    low: int, high: int, most: float = 0.05, every: int = 1
) -> ap.schedules.Schedule:
    """Adds a bit to a layer whenever more than `most` of its weights become zero."""

    def init(table):
        bits = {c.name: jnp.full(c.axes, low, jnp.int32) for c in table.contractions}
        return ap.schedules.Scope(table), bits

    def update(step, stats, state):
        scope, bits = state
        plan, after = {}, {}
        for c in scope.table.contractions:
            lost = ap.stats.underflow_fraction(stats.tensors[c.name]["weight"])
            more = jnp.minimum(bits[c.name] + 1, high)
            due = stats.finite & (step % every == 0)
            after[c.name] = jnp.where(due & (lost > most), more, bits[c.name])
            plan[c.name] = ap.plan.fill(c, ap.plan.integers(after[c.name], 8))
        return plan, (scope, after)

    reads = ap.Watch(("underflow_fraction",), roles=("weight",))
    return ap.schedules.Schedule(init, update, reads, every)
