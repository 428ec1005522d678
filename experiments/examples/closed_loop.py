"""Plain JAX: each tensor goes to FP8 where the step before measured little error."""

import jax
import jax.numpy as jnp
import optax

import adaprec_jax as ap

keys = jax.random.split(jax.random.key(0), 3)
params = {
    "up": jax.random.normal(keys[0], (8, 32)) / 8**0.5,
    "down": jax.random.normal(keys[1], (32, 1)) / 32**0.5,
}
x = jax.random.normal(keys[2], (256, 8))
y = jnp.sin(x.sum(1, keepdims=True))


def loss(params: dict, x: jax.Array, y: jax.Array) -> tuple[jax.Array, None]:
    out = jax.nn.relu(x @ params["up"]) @ params["down"]
    return jnp.mean((out - y) ** 2), None


table = ap.contraction_table(loss, params, x, y)
fp8, bfloat16 = (
    ap.SharedPrecision(*[ap.formats.get(name)] * 3)
    for name in ("float8_e4m3fn", "bfloat16")
)
schedule = ap.schedules.mor(fp8, bfloat16, threshold=0.027)
rounded = ap.value_and_grad(loss, watch=schedule.reads)  # measures what it reads
tx = optax.adam(1e-2)


@jax.jit
def step(i: jax.Array, params: dict, opt_state: tuple, stats: ap.Stats, state: tuple):
    plan, state = schedule.update(i, stats, state)
    (value, _), grads, stats = rounded(params, x, y, plan=plan)
    updates, opt_state = tx.update(grads, opt_state)
    return value, plan, optax.apply_updates(params, updates), opt_state, stats, state


stats, state = ap.stats.empty(table, schedule.reads), schedule.init(table)
opt_state, losses = tx.init(params), []
for i in range(300):  # `stats` of a step is what the schedule is shown in the next
    value, plan, params, opt_state, stats, state = step(
        jnp.int32(i), params, opt_state, stats, state
    )
    losses.append(float(value))
print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}", ap.plan.describe(plan), sep="\n")
