"""Equinox: cyclic precision (CPT), 3 to 8 bits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import adaprec_jax as ap

model = eqx.nn.MLP(8, 1, 32, 1, key=jax.random.key(0))
params, static = eqx.partition(model, eqx.is_inexact_array)
x = jax.random.normal(jax.random.key(1), (256, 8))
y = jnp.sin(x.sum(1, keepdims=True))


def loss(params: eqx.Module) -> tuple[jax.Array, None]:
    return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2), None


table = ap.contraction_table(loss, params)
schedule = ap.schedules.cpt(
    min_bits=3, max_bits=8, cycles=4, steps=300, gradient_bits=8
)
tx = optax.adam(1e-2)


@eqx.filter_jit
def step(i: jax.Array, params: eqx.Module, opt_state: optax.OptState, state) -> tuple:
    plan, state = schedule.update(i, ap.stats.empty(table), state)
    (value, _), grads, _ = ap.value_and_grad(loss)(params, plan=plan)
    updates, opt_state = tx.update(grads, opt_state)
    return value, eqx.apply_updates(params, updates), opt_state, state


carried, losses = (params, tx.init(params), schedule.init(table)), []
for i in range(300):
    value, *carried = step(jnp.int32(i), *carried)
    losses.append(float(value))
