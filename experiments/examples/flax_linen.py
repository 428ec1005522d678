"""Flax linen: 4 bits, bfloat16 at the end; dynamic loss scaling around optax."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import adaprec_jax as ap

model = nn.Sequential([nn.Dense(32), nn.LayerNorm(), nn.relu, nn.Dense(1)])
x = jax.random.normal(jax.random.key(0), (256, 8))
y = jnp.sin(x.sum(1, keepdims=True))
params = model.init(jax.random.key(1), x)


def loss(params: dict, scaling: ap.loss_scaling.LossScalingState) -> tuple:
    mse = jnp.mean((model.apply(params, x) - y) ** 2)
    return ap.loss_scaling.scale_loss(mse, scaling), mse


tx = ap.loss_scaling.dynamic(optax.adam(1e-2))
table = ap.contraction_table(loss, params, tx.init(params))
bfloat16 = ap.SharedPrecision(*[ap.formats.get("bfloat16")] * 3)
int4 = ap.plan.integers(4, 8)
schedule = ap.schedules.late_switch(int4, bfloat16, steps=300, fraction=0.8)


@jax.jit
def step(i: jax.Array, params: dict, scaling: ap.loss_scaling.LossScalingState, state):
    plan, state = schedule.update(i, ap.stats.empty(table), state)
    (_, mse), grads, _ = ap.value_and_grad(loss)(params, scaling, plan=plan)
    updates, scaling = tx.update(grads, scaling, params)
    return mse, ap.loss_scaling.apply(params, updates, scaling), scaling, state


carried, losses = (params, tx.init(params), schedule.init(table)), []
for i in range(300):
    mse, *carried = step(jnp.int32(i), *carried)
    losses.append(float(mse))
