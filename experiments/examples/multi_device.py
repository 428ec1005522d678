"""Several devices: the batch is spread over them; one scale, one finite test."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

import adaprec_jax as ap

mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
x = jax.random.normal(jax.random.key(0), (256, 8))
y = jnp.sin(x.sum(1, keepdims=True))
x, y = jax.device_put((x, y), spread)
weights = jax.random.normal(jax.random.key(1), (9, 32)) / 3
params = jax.device_put({"up": weights[:8], "down": weights[8:].T}, everywhere)
tx = ap.loss_scaling.dynamic(optax.adam(1e-2), init_scale=2.0**10)


def loss(params: dict, scaling: ap.loss_scaling.LossScalingState, x, y) -> tuple:
    mse = jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"] - y) ** 2)
    return ap.loss_scaling.scale_loss(mse, scaling), mse


scaling = jax.device_put(tx.init(params), everywhere)
table = ap.contraction_table(loss, params, scaling, x, y)
plan = jax.device_put(ap.plan.uniform(table, ap.plan.integers(5, 8)), everywhere)


@jax.jit
def step(params: dict, scaling: ap.loss_scaling.LossScalingState, x, y) -> tuple:
    (_, mse), grads, _ = ap.value_and_grad(loss)(params, scaling, x, y, plan=plan)
    updates, scaling = tx.update(grads, scaling, params)
    return mse, ap.loss_scaling.apply(params, updates, scaling), scaling


losses = []
for _ in range(300):
    mse, params, scaling = step(params, scaling, x, y)
    losses.append(float(mse))
