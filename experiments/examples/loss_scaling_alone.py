"""Loss scaling alone: float16 parameters and gradients, a float32 master inside."""

import jax
import jax.numpy as jnp
import optax

import adaprec_jax as ap

x = jax.random.normal(jax.random.key(0), (256, 8), jnp.float16)
y = jnp.sin(x.astype(jnp.float32).sum(1, keepdims=True))
params = {
    "up": jax.random.normal(jax.random.key(1), (8, 32), jnp.float16) / 8**0.5,
    "down": jax.random.normal(jax.random.key(2), (32, 1), jnp.float16) / 32**0.5,
}
tx = ap.loss_scaling.dynamic(
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), init_scale=2.0**20
)


@jax.jit
def step(params: dict, state: ap.loss_scaling.LossScalingState) -> tuple:
    def scaled(params: dict) -> tuple[jax.Array, jax.Array]:
        out = jax.nn.relu(x @ params["up"]) @ params["down"]
        mse = jnp.mean((out.astype(jnp.float32) - y) ** 2)
        return ap.loss_scaling.scale_loss(mse, state), mse

    grads, mse = jax.grad(scaled, has_aux=True)(params)
    updates, state = tx.update(grads, state, params)
    return mse, ap.loss_scaling.apply(params, updates, state), state


state, losses = tx.init(params), []
for _ in range(300):
    mse, params, state = step(params, state)
    losses.append(float(mse))
print(f"scale {state.scale:g}, {state.skipped} of {state.calls} steps skipped")
