"""A small run in plain JAX to test training with: layers in a scan, noise, state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adaprec_jax import loss_scaling
from adaprec_jax.contractions import Options, Watch, contraction_table
from adaprec_jax.scaling import Recipes, current, delayed
from adaprec_jax.schedules import two_threshold
from adaprec_jax.train import Program, init_state

LAYERS, FEATURES, CLASSES, BATCH = 2, 8, 4, 16


class Aux(NamedTuple):
    metrics: dict[str, Any]
    model_state: Any


def init(key):
    def normal(name: str, *shape: int):
        return jax.random.normal(jax.random.fold_in(key, len(name)), shape) / 3

    return {
        "blocks": {"w": normal("blocks", LAYERS, FEATURES, FEATURES)},
        "last": {"w": normal("last", FEATURES, CLASSES)},
    }, {"mean": jnp.zeros(FEATURES)}


def logits_of(params, x):
    layers = params["blocks"]["w"]
    x = x.astype(layers.dtype)
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, layers)[0]


def loss(params, model_state, batch, key):
    """Cross-entropy under noise, with a running mean of the features as model state."""
    x, y = batch
    h = logits_of(params, x)
    h = h * (1 + 0.1 * jax.random.normal(key, h.shape, h.dtype))
    logits = (h @ params["last"]["w"]).astype(jnp.float32)
    value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))
    mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(h.astype(jnp.float32), axis=0)
    return value, Aux({"loss": value, "norm": jnp.sum(h * h)}, {"mean": mean})


def scores(params, model_state, batch):
    x, y = batch
    logits = logits_of(params, x - model_state["mean"][None]) @ params["last"]["w"]
    right = (jnp.argmax(logits, axis=-1) == y).astype(jnp.float32)
    return {"accuracy": right, "first": logits[:, 0]}


def batches(steps: int, start: int = 0, size: int = BATCH):
    """The batches of some steps; each a function of its number alone."""
    rngs = [np.random.default_rng(t) for t in range(start, start + steps)]
    x = np.stack([rng.normal(size=(size, FEATURES)) for rng in rngs])
    x = x.astype(np.float32)
    return x, (x[..., :CLASSES].argmax(-1)).astype(np.int32)


def one(batches, step: int):
    return jax.tree.map(lambda leaf: leaf[step], batches)


TABLE = contraction_table(
    loss, *init(jax.random.key(0)), one(batches(1), 0), jax.random.key(0)
)
# Its plans change every third step, and differ between layers.
CONTROLLER = two_threshold(
    low=0.02,
    high=0.1,
    min_bits=2,
    max_bits=8,
    start_bits=4,
    gradient_bits=8,
    every=3,
)


def rate(count):
    """The learning rate of a step, by the steps applied before it."""
    return 0.5 / (1 + jnp.asarray(count, jnp.float32))


PROGRAM = Program(
    loss,
    TABLE,
    CONTROLLER,
    loss_scaling.dynamic(
        optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=0.9),
        growth_interval=5,
    ),
    Options(Recipes(delayed(4), current(), current(rounding="stochastic"))),
    Watch(("underflow_fraction", "amax")),
    gather_every=3,
)


def first_state(program: Program = PROGRAM, seed: int = 0, dtype: Any = jnp.float32):
    key = jax.random.key(seed)
    params, model_state = init(key)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    return init_state(program, params, model_state, key)


def assert_equal(a, b) -> None:
    """Asserts that two trees are equal to the bit, NaN included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
