"""What dynamic loss scaling adds to a whole float32 train step."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from adaprec_jax import loss_scaling


def mlp_loss(params, x, y):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    return jnp.mean((hidden @ params["w2"] + params["b2"][None] - y) ** 2)


def plain_step(tx, params, state, x, y):
    grads = jax.grad(mlp_loss)(params, x, y)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def scaled_step(tx, params, state, x, y):
    def scaled_loss(params):
        return loss_scaling.scale_loss(mlp_loss(params, x, y), state)

    updates, new_state = tx.update(jax.grad(scaled_loss)(params), state, params)
    return loss_scaling.apply(params, updates, new_state), new_state


def stepper(step, tx, batch):
    """Returns a function that runs one donated step and returns its seconds."""
    keys = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(keys[0], (1024, 2048)) / 32.0,
        "b1": jnp.zeros(2048),
        "w2": jax.random.normal(keys[1], (2048, 1024)) / 45.0,
        "b2": jnp.zeros(1024),
    }
    carry = [params, tx.init(params)]
    jitted = jax.jit(functools.partial(step, tx), donate_argnums=(0, 1))
    with jax.numpy_dtype_promotion("standard"):  # optax.adam alone needs it
        compiled = jitted.lower(*carry, *batch).compile()

    def run():
        start = time.perf_counter()
        carry[:] = jax.block_until_ready(compiled(*carry, *batch))
        return time.perf_counter() - start

    return run


def test_dynamic_loss_scaling_adds_at_most_a_fifth_to_a_float32_step(benchmark, key):
    """MLP 1024-2048-1024, batch 256, Adam, donated; pairwise, median of 60."""
    batch = tuple(jax.random.normal(k, (256, 1024)) for k in jax.random.split(key))
    plain = stepper(plain_step, optax.adam(1e-3), batch)
    scaled = stepper(scaled_step, loss_scaling.dynamic(optax.adam(1e-3)), batch)
    for _ in range(5):
        plain(), scaled()
    ratios = sorted(1.0 / plain() * scaled() for _ in range(60))
    low, ratio, high = statistics.quantiles(ratios, n=4)
    summary = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
    print(f"\nfloat32 MLP step with dynamic loss scaling over without: {summary}")
    benchmark.extra_info["ratio to the plain step, median (quartiles)"] = summary
    benchmark.pedantic(scaled, rounds=20)
    assert ratio <= 1.20
