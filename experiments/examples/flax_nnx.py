"""Flax nnx: 8-bit floats, and the first layer left in bfloat16."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import adaprec_jax as ap

make_rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Linear(8, 32, rngs=make_rngs), nnx.relu, nnx.Linear(32, 1, rngs=make_rngs)
)
graph, params = nnx.split(model, nnx.Param)
x = jax.random.normal(jax.random.key(0), (256, 8))
y = jnp.sin(x.sum(1, keepdims=True))


def loss(params: nnx.State) -> tuple[jax.Array, None]:
    return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2), None


table = ap.contraction_table(loss, params)
e4m3, e5m2 = ap.formats.get("float8_e4m3fn"), ap.formats.get("float8_e5m2")
fp8 = ap.schedules.constant(ap.SharedPrecision(e4m3, e4m3, e5m2))
bfloat16 = ap.schedules.constant(ap.SharedPrecision(*[ap.formats.get("bfloat16")] * 3))
schedule = ap.schedules.per_layer({table.names[0]: bfloat16}, fp8)
plan, _ = schedule.update(jnp.int32(0), ap.stats.empty(table), schedule.init(table))
tx = optax.adam(1e-2)


@jax.jit
def step(params: nnx.State, opt_state: optax.OptState, plan: dict) -> tuple:
    (value, _), grads, _ = ap.value_and_grad(loss)(params, plan=plan)
    updates, opt_state = tx.update(grads, opt_state)
    return value, optax.apply_updates(params, updates), opt_state


carried, losses = (params, tx.init(params)), []
for _ in range(300):
    value, *carried = step(*carried, plan)
    losses.append(float(value))
print(ap.plan.describe(plan))
