"""Models of both kinds as functions: batch statistics, penalties, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

from adaprec_jax.tasks import models, objectives
from adaprec_jax.tasks.network import of, of_linen, of_nnx
from adaprec_jax.tasks.task import (
    Batch,
    Data,
    Split,
    from_arrays,
    from_linen,
    from_nnx,
    gather_rows,
)

NUMBERS = np.random.default_rng(0)
INPUTS = NUMBERS.normal(2, 3, (20, 4)).astype(np.float32)
TARGETS = NUMBERS.normal(0, 1, (20, 3)).astype(np.float32)
DATA = Data(
    Batch(INPUTS, TARGETS), lambda seed: Split(*[np.arange(8, dtype=np.int32)] * 3),
    gather_rows, "made up",
)  # fmt: skip


def test_examples_are_split_anew_by_each_seed_and_named_by_their_bytes():
    data = from_arrays(INPUTS, TARGETS)
    splits = [data.split(seed) for seed in (0, 1)]
    assert [len(rows) for rows in splits[0]] == [12, 4, 4]
    for split in splits:
        assert sorted(np.concatenate(split).tolist()) == list(range(20))
    assert splits[0].test.tolist() != splits[1].test.tolist()
    assert from_arrays(INPUTS, TARGETS).fingerprint == data.fingerprint
    assert from_arrays(INPUTS, TARGETS + 1).fingerprint != data.fingerprint
    with pytest.raises(ValueError, match="as many inputs as targets, at least 5"):
        from_arrays(INPUTS[:4], TARGETS[:4])


class LinenNormal(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        return nn.Dense(3, name="dense")(x)


class NnxNormal(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x))


TASKS = {
    "linen": lambda: from_linen("t", DATA, LinenNormal(), objectives.regression(), abs),
    "nnx": lambda: from_nnx("t", DATA, NnxNormal, objectives.regression(), abs),
}


def statistics_of(model_state):
    """Mean and variance, wherever the kind of model keeps them."""
    norm = model_state.get("batch_stats", model_state)["norm"]
    return np.array(norm["mean"]), np.array(norm["var"])


@pytest.mark.parametrize("kind", TASKS)
def test_a_model_normalises_by_the_batch_and_then_by_running_averages(kind, key):
    task = TASKS[kind]()
    params, state = jax.jit(task.init)(key)
    batch = Batch(INPUTS[:8], TARGETS[:8])
    inputs = np.abs(INPUTS[:8]).astype(float)
    weight = np.array(params["dense"]["kernel"], float)

    def errors(mean, variance):
        rows = (inputs - mean) / np.sqrt(variance + 1e-5) @ weight
        return np.mean((rows - TARGETS[:8]) ** 2, axis=1)

    mean, variance = inputs.mean(axis=0), inputs.var(axis=0)
    loss, aux = jax.jit(task.loss)(params, state, batch, key)
    np.testing.assert_allclose(loss, errors(mean, variance).mean(), rtol=1e-4)
    running = 0.1 * mean, 0.9 + 0.1 * variance  # from 0 and 1
    for found, expected in zip(statistics_of(aux.model_state), running, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    scores = jax.jit(task.scores)(params, aux.model_state, batch)
    np.testing.assert_allclose(scores["loss"], errors(*running), rtol=1e-4)


def test_linen_and_nnx_are_the_same_function_of_the_same_parameters(key):
    class NnxMLP(nnx.Module):
        def __init__(self, *, rngs):
            self.Dense_0 = nnx.Linear(4, 5, rngs=rngs)
            self.Dense_1 = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.Dense_1(jax.nn.relu(self.Dense_0(x)))

    one, other = of(models.MLP((5,), 3)), of(NnxMLP)
    params, state = one.init(key, jnp.asarray(INPUTS))
    assert state == {}
    shapes = jax.tree.map(jnp.shape, other.init(key, INPUTS)[0])
    assert shapes == jax.tree.map(jnp.shape, params)
    for train in (True, False):
        found, expected = (
            network.apply(params, {}, jnp.asarray(INPUTS), train=train)
            for network in (other, one)
        )
        np.testing.assert_array_equal(found.outputs, expected.outputs)
        assert found.model_state == expected.model_state == {}


def test_nnx_draws_its_first_parameters_from_the_key():
    first, again, other = (
        jax.jit(of_nnx(NnxNormal).init)(jax.random.key(seed))[0]["dense"]["kernel"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_what_a_model_sows_as_a_loss_is_added_in_training_alone(key):
    class Decays(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones_init(), ())
            self.sow("losses", "decay", 3 * scale**2)
            self.sow("losses", "constant", jnp.float32(0.5))
            return scale * x[:, :3]

    task = from_linen("t", DATA, Decays(), objectives.regression(), abs)
    params, state = task.init(key)
    batch = Batch(INPUTS, TARGETS)
    (loss, aux), gradient = jax.value_and_grad(task.loss, has_aux=True)(
        params, state, batch, key
    )
    plain = np.mean(task.scores(params, state, batch)["loss"])
    np.testing.assert_allclose(loss, plain + 3.5, rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["loss"], plain, rtol=1e-6)
    assert (state, aux.model_state) == ({}, {})
    rows = np.abs(INPUTS[:, :3])
    expected = np.mean(2 * (rows - TARGETS) * rows) + 6
    np.testing.assert_allclose(gradient["scale"], expected, rtol=1e-5)


def test_other_state_than_batch_statistics_is_refused(key):
    class Untold(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(x)

    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            self.variable("counter", "calls", lambda: jnp.int32(0))
            return nn.Dense(3)(x)

    class Drops(nnx.Module):
        def __init__(self, *, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.dense(x))

    x = jnp.asarray(INPUTS)
    with pytest.raises(ValueError, match=r"Untold .*batch_stats.*write its Task out"):
        of_linen(Untold()).init(key, x)
    with pytest.raises(ValueError, match=r"Counts has the collections \['counter'\]"):
        of_linen(Counts()).init(key, x)
    with pytest.raises(ValueError, match=r"Drops .*dropout.*write its Task out"):
        of_nnx(Drops).init(key, x)
