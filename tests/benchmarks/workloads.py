"""The two workloads on which libraries for FP8 training are compared on a CPU.

An MLP 1024-2048-1024 at batch 256, and one pre-norm transformer block (width 256, four
heads, feed-forward 1024, 8 sequences of 128, causal), with Adam and squared error, from
the same float32 parameters. The Dense layers are quantised, attention's products not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.linen import fp8_ops

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Options,
    Watch,
    contraction_table,
    value_and_grad,
)
from adaprec_jax.contractions.kernels import Kernels
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Precision,
    SharedPrecision,
    Wgrad,
)
from adaprec_jax.scaling import Recipes, current

TX = optax.adam(1e-3)
E4M3, E5M2 = formats.get("float8_e4m3fn"), formats.get("float8_e5m2")


class MLP(nn.Module):
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1024, **self.dense)(nn.relu(nn.Dense(2048, **self.dense)(x)))


class Block(nn.Module):
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        h = nn.LayerNorm()(x)
        q, k, v = (
            nn.Dense(width, name=name, **self.dense)(h).reshape(batch, length, 4, -1)
            for name in ("q", "k", "v")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8.0
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = nn.softmax(jnp.where(causal, scores, -1e9))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + nn.Dense(width, name="out", **self.dense)(mixed)
        h = nn.gelu(nn.Dense(1024, name="up", **self.dense)(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down", **self.dense)(h)


CURRENT = Recipes(current(), current(), current())
WORKLOADS = {"mlp": (MLP, (256, 1024)), "block": (Block, (8, 128, 256))}


class Step(NamedTuple):
    """A train step and what it starts from: `fn(carried, batch) -> carried`."""

    fn: Callable[[Any, Any], Any]
    carried: Any


def batch_of(workload: str) -> tuple[jax.Array, jax.Array]:
    shape = WORKLOADS[workload][1]
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], shape)


def _loss(model: nn.Module) -> Callable:
    return lambda variables, batch: (
        jnp.mean((model.apply(variables, batch[0]) - batch[1]) ** 2),
        None,
    )


def float32(workload: str, model: nn.Module | None = None) -> Step:
    """The plain step (or that of a peer whose model is a drop-in)."""
    model = model or WORKLOADS[workload][0]({})
    loss = _loss(model)

    def step(carried: Any, batch: Any) -> Any:
        params, state, _ = carried
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = TX.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = model.init(jax.random.key(0), batch_of(workload)[0])
    return Step(step, (params, TX.init(params), jnp.float32(0)))


def emulated(
    workload: str,
    *,
    shared: bool,
    watch: Watch | None = None,
    every: int = 1,
    recipes: Recipes = CURRENT,
    kernels: Kernels = Kernels(),
) -> Step:
    """This project's step: E4M3 weights and activations, E5M2 gradients."""
    model = WORKLOADS[workload][0]({})
    loss = _loss(model)
    batch = batch_of(workload)
    params = model.init(jax.random.key(0), batch[0])
    options = Options(
        recipes, untouched=lambda contraction: "weight" not in contraction.roles
    )
    table = contraction_table(loss, params, batch, options=options)
    plan = jax.tree.map(jnp.asarray, dict.fromkeys(table.names, fp8(shared=shared)))
    options = options._replace(kernels=dict.fromkeys(table.names, kernels))
    rounded = value_and_grad(loss, options, watch or Watch())

    def step(carried: Any, batch: Any) -> Any:
        params, state, _, plan, calls, _ = carried
        collect = None if watch is None else calls % every == 0
        (value, _), grads, stats = rounded(params, batch, plan=plan, collect=collect)
        updates, state = TX.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, value, plan, calls + 1, watch and stats.tensors

    carried = (params, TX.init(params), jnp.float32(0), plan, jnp.int32(0), None)
    if watch is not None:
        tensors = jax.eval_shape(step, carried, batch)[5]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tensors)
        carried = (*carried[:5], zeros)
    return Step(step, carried)


def fp8(*, shared: bool) -> Entry:
    if shared:
        return SharedPrecision(E4M3, E4M3, E5M2)
    return Precision(Forward(E4M3, E4M3), Dgrad(E5M2, E4M3), Wgrad(E5M2, E4M3))


def flax_fp8(workload: str) -> Step:
    """Flax's delayed scaling; its state comes through the gradient."""
    model = WORKLOADS[workload][0]({"dot_general_cls": fp8_ops.Fp8DirectDotGeneralOp})
    loss = _loss(model)
    carried_away = "_overwrite_with_gradient"

    def step(carried: Any, batch: Any) -> Any:
        variables, state, _ = carried
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables, batch)
        updates, state = TX.update(grads["params"], state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        new = {"params": params, carried_away: grads[carried_away]}
        return new, state, value

    variables = model.init(jax.random.key(0), batch_of(workload)[0])
    return Step(step, (variables, TX.init(variables["params"]), jnp.float32(0)))


def qwix_fp8(workload: str) -> Step:
    """qwix's quantised training, per tensor."""
    import qwix

    rule = qwix.QtRule(
        module_path=".*",
        weight_qtype=jnp.float8_e4m3fn,
        act_qtype=jnp.float8_e4m3fn,
        bwd_qtype=jnp.float8_e5m2,
        disable_channelwise_axes=True,
        op_names=("dot_general",),
    )
    model = WORKLOADS[workload][0]({})
    return float32(workload, qwix.quantize_model(model, qwix.QtProvider([rule])))


def aqt_fp8(workload: str) -> Step:
    """AQT's FP8 in all three products."""
    import functools

    from aqt.jax.v2 import config
    from aqt.jax.v2.flax import aqt_flax

    cfg = config.config_v4(fwd_bits="e4m3", dlhs_bits="e5m2", drhs_bits="e5m2")
    config.set_stochastic_rounding(cfg, False, False, "jax.uniform")
    dot = functools.partial(aqt_flax.AqtDotGeneral, cfg, prng_name=None)
    return float32(workload, WORKLOADS[workload][0]({"dot_general_cls": dot}))
