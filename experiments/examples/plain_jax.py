"""Plain JAX: a closed-loop schedule reads the statistics of the step before."""

import jax
import jax.numpy as jnp
import optax

import adaprec_jax as ap

keys = jax.random.split(jax.random.key(0), 4)
up = jax.random.normal(keys[0], (8, 32)) / 8**0.5
params = {"up": up, "down": jax.random.normal(keys[1], (32, 1)) / 32**0.5}
x = jax.random.normal(keys[2], (256, 8))
y = jnp.sin(x.sum(1, keepdims=True))


def loss(params: dict, x: jax.Array, y: jax.Array) -> tuple[jax.Array, None]:
    out = jax.nn.relu(x @ params["up"]) @ params["down"]
    return jnp.mean((out - y) ** 2), None


table = ap.contraction_table(loss, params, x, y)
watch = ap.Watch(("underflow_fraction",), roles=("activation", "weight"))
schedule = ap.schedules.two_threshold(
    low=0.03, high=0.1, min_bits=3, max_bits=8, start_bits=8, gradient_bits=8, every=20
)
rounded, tx = ap.value_and_grad(loss, watch=watch), optax.adam(1e-2)


@jax.jit
def step(i: jax.Array, params: dict, opt_state: tuple, seen: tuple, state: tuple):
    plan, state = schedule.update(i, seen, state)
    (value, _), grads, seen = rounded(params, x, y, plan=plan)
    updates, opt_state = tx.update(grads, opt_state)
    return value, plan, optax.apply_updates(params, updates), opt_state, seen, state


carried = params, tx.init(params), ap.stats.empty(table, watch), schedule.init(table)
losses = []
for i in range(300):
    value, plan, *carried = step(jnp.int32(i), *carried)
    losses.append(float(value))
print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}", ap.plan.describe(plan), sep="\n")
