"""Each model computes what its paper says, where it is short by loops in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from adaprec_jax.tasks import models
from adaprec_jax.tasks.models.denoiser import sinusoids
from adaprec_jax.tasks.models.experts import imbalance, top_gates
from adaprec_jax.tasks.models.graph import normalised_grid
from adaprec_jax.tasks.models.vit import patches
from adaprec_jax.tasks.network import of
from tests.walk_models import filled, normal

SMALL = models.Transformer(layers=2, heads=2, width=16, context=8)


def made_up_parameters(init, *args):
    """Parameters of the right shapes, without compiling an initialisation."""
    return jax.tree.map(lambda leaf: 0.2 * leaf, filled(jax.eval_shape(init, *args)))


def as_numpy(params):
    return jax.tree.map(lambda leaf: np.array(leaf, float), params)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_max_pool_equals_the_reduced_window(key):
    x = jax.random.normal(key, (3, 8, 6, 5))
    field = (1, 2, 2, 1)
    expected = lax.reduce_window(x, -jnp.inf, lax.max, field, field, "VALID")
    np.testing.assert_array_equal(models.max_pool(x), expected)


def test_the_convolutional_net_has_the_published_size(key):
    params = jax.eval_shape(models.CNN().init, key, jnp.zeros((1, 28, 28, 1)))
    sizes = (9 * 16 + 16) + (9 * 16 * 32 + 32) + (7 * 7 * 32 * 10 + 10)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sizes


def test_the_transformer_does_not_look_ahead(key):
    symbols = jnp.arange(16).reshape(2, 8)
    params, apply = made_up_parameters(SMALL.init, key, symbols), jax.jit(SMALL.apply)
    before = apply(params, symbols)
    after = apply(params, symbols.at[:, 5].add(1))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.any(before[:, 5:] != after[:, 5:], axis=-1))


@pytest.mark.slow
def test_scan_and_remat_change_no_result(key):
    symbols = jnp.arange(16).reshape(2, 8)
    params = made_up_parameters(SMALL.init, key, symbols)["params"]

    def unstacked(params):
        """The parameters under the names of separate blocks."""
        rest = {name: leaf for name, leaf in params.items() if name != "blocks"}
        first, second = (
            jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(2)
        )
        return rest | {"block_0": first, "block_1": second}

    def gradient(model, params):
        loss = lambda params: jnp.sum(model.apply({"params": params}, symbols) ** 2)
        return jax.jit(jax.grad(loss))(params)

    expected = gradient(SMALL, params)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    again = gradient(SMALL.clone(remat=True), params)
    jax.tree.map(close, again, expected)
    for remat in (False, True):
        apart = gradient(SMALL.clone(scan=False, remat=remat), unstacked(params))
        jax.tree.map(close, apart, unstacked(expected))


def test_attention_agrees_with_loops_in_numpy(key):
    x = jax.random.normal(key, (1, 4, 6))
    layer = models.Attention(heads=2)
    params = made_up_parameters(layer.init, key, x)["params"]
    qkv, out = (np.array(params[name]["kernel"], float) for name in ("qkv", "out"))
    rows = np.array(x[0], float)
    expected = np.zeros((4, 6))
    for head in range(2):
        q, k, v = (rows @ qkv[:, part, head] for part in range(3))
        for t in range(4):
            weights = np.exp(k[: t + 1] @ q[t] / np.sqrt(3))
            mixed = weights @ v[: t + 1] / weights.sum()
            expected[t] += mixed @ out[head]
    np.testing.assert_allclose(layer.apply({"params": params}, x)[0], expected, 1e-4)


def test_too_long_an_input_is_refused(key):
    with pytest.raises(ValueError, match="at most 8 bytes, got 9"):
        SMALL.init(key, jnp.zeros((1, 9), jnp.int32))


def test_a_residual_block_that_adds_nothing_passes_its_input_on(key):
    block = models.resnet.Residual(channels=4, strides=1)
    x = normal(0, 2, 6, 6, 4)
    variables = block.init(key, x, train=False)
    scale = variables["params"]["norm_2"]["scale"]
    variables["params"]["norm_2"]["scale"] = jnp.zeros_like(scale)
    out = block.apply(variables, x, train=False)
    np.testing.assert_array_equal(out, np.maximum(x, 0))


def test_the_stages_of_a_residual_network_halve_the_image(key):
    model = models.ResNet(channels=(4, 8, 16), blocks=2)
    x = normal(0, 2, 8, 8, 1)
    variables = jax.eval_shape(partial(model.init, train=False), key, x)
    apply = partial(model.apply, train=False, capture_intermediates=True)
    _, seen = jax.eval_shape(apply, variables, x)
    shapes = [
        seen["intermediates"][f"stage_{stage}_block_{block}"]["__call__"][0].shape
        for stage in range(3)
        for block in range(2)
    ]
    assert shapes == [
        (2, 8, 8, 4), (2, 8, 8, 4), (2, 4, 4, 8), (2, 4, 4, 8), (2, 2, 2, 16),
        (2, 2, 2, 16),
    ]  # fmt: skip


def test_patches_are_those_of_a_loop():
    x = normal(0, 2, 4, 6, 3)
    expected = [
        x[:, row : row + 2, column : column + 2].reshape(2, -1)
        for row in (0, 2)
        for column in (0, 2, 4)
    ]
    np.testing.assert_array_equal(patches(x, 2), np.stack(expected, axis=1))


def test_a_vision_transformer_sees_a_set_of_patches_with_places(key):
    network = of(
        partial(models.ViT, image=(4, 4, 1), patch=2, layers=1, width=8, heads=2,
                outputs=3)
    )  # fmt: skip
    params = filled(jax.eval_shape(network.init, key)[0])
    run = jax.jit(lambda params, x: network.apply(params, {}, x, train=False).outputs)
    x = normal(0, 2, 4, 4, 1)
    turned = jnp.roll(x, 2, axis=1)  # The upper patches are the lower ones.
    before = run(params, x)
    assert not np.allclose(run(params, turned), before, atol=1e-3)
    places = params["positions"]
    moved = places.at[:, 1:].set(jnp.roll(places[:, 1:], 2, axis=1))
    np.testing.assert_allclose(
        run(params | {"positions": moved}, turned), before, rtol=1e-4, atol=1e-6
    )


def test_patches_that_do_not_fill_the_image_are_refused():
    with pytest.raises(ValueError, match="3 x 3 do not fill an image of 8 x 8"):
        models.ViT((8, 8, 1), 3, 1, 8, 2, 10, rngs=nnx.Rngs(0))


def lstm(p, state, x):
    h, c = state
    i, f, g, o = (
        x @ p[f"i{gate}"]["kernel"]
        + h @ p[f"h{gate}"]["kernel"]
        + p[f"h{gate}"]["bias"]
        for gate in "ifgo"
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(p, state, x):
    (h,) = state
    r, z = (
        sigmoid(x @ p[f"i{gate}"]["kernel"] + p[f"i{gate}"]["bias"]
                + h @ p[f"h{gate}"]["kernel"])
        for gate in "rz"
    )  # fmt: skip
    n = x @ p["in"]["kernel"] + p["in"]["bias"]
    n = np.tanh(n + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"]))
    return ((1 - z) * n + z * h,)


@pytest.mark.parametrize(
    ("cell", "step", "states"), [("lstm", lstm, 2), ("gru", gru, 1)]
)
def test_recurrent_cells_agree_with_loops_in_numpy(key, cell, step, states):
    model = models.Recurrent(cell=cell, width=5, outputs=3)
    x = normal(0, 2, 4, 6)
    params = made_up_parameters(model.init, key, x)["params"]
    p, state = as_numpy(params), (np.zeros((2, 5)),) * states
    for t in range(4):
        state = step(p["cell"], state, np.array(x[:, t], float))
    expected = state[0] @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, x), expected, rtol=1e-4)


def test_experts_agree_with_a_loop_that_asks_only_the_chosen_ones(key):
    model = models.Experts(members=4, top=2, width=6, hidden_width=5, outputs=3)
    x = normal(0, 7, 8)
    params = made_up_parameters(model.init, key, x)["params"]
    p, rows = as_numpy(params), []
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]
    for row in np.array(x, float):
        stem = np.maximum(dense(p["stem"], row), 0)
        logits = dense(p["gate"], stem)
        chosen = np.argsort(logits)[-2:]
        gates = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
        mixed = stem.copy()
        for expert, gate in zip(chosen, gates, strict=True):
            inside = jax.tree.map(lambda leaf, e=expert: leaf[e], p["experts"])
            hidden = np.maximum(dense(inside["Dense_0"], stem), 0)
            mixed += gate * dense(inside["Dense_1"], hidden)
        rows.append(dense(p["head"], np.maximum(mixed, 0)))
    np.testing.assert_allclose(model.apply({"params": params}, x), rows, rtol=1e-4)


def test_imbalance_is_one_for_even_choices_and_reaches_experts_nobody_chose():
    even = jnp.eye(4) + 0.1 * jnp.roll(jnp.eye(4), 1, axis=0)
    np.testing.assert_allclose(imbalance(even, top_gates(even, 2)), 1, rtol=1e-5)
    same = jnp.tile(jnp.array([[3.0, 2.0, 0.0, 0.0]]), (5, 1))
    loss = lambda logits: imbalance(logits, top_gates(logits, 2))
    assert loss(same) > 1.5
    gradient = jax.grad(loss)(same)
    assert np.all(gradient[:, :1] > 0)
    assert np.all(gradient[:, 2:] < 0)


def test_the_grid_of_pixels_agrees_with_loops():
    places = [(row, column) for row in range(3) for column in range(4)]
    linked = [
        [j for j, (r, c) in enumerate(places) if abs(row - r) <= 1 >= abs(column - c)]
        for row, column in places
    ]
    # Corners have 3 neighbours, edges 5, the inside 8; each counts itself, too.
    assert sorted(map(len, linked)) == [4] * 4 + [6] * 6 + [9] * 2
    expected = np.zeros((12, 12))
    for i, neighbours in enumerate(linked):
        for j in neighbours:
            expected[i, j] = 1 / np.sqrt(len(neighbours) * len(linked[j]))
    np.testing.assert_allclose(normalised_grid(3, 4), expected, rtol=1e-6)


def test_a_pixel_reaches_its_neighbours_in_each_graph_convolution():
    layers = [models.graph.Convolution(2, rngs=nnx.Rngs(seed)) for seed in range(2)]

    def run(x):
        for layer in layers:
            x = layer(x, normalised_grid(8, 8))
        return x

    x = normal(0, 1, 64, 2)
    changed = run(x.at[:, 3 * 8 + 4].add(1)) != run(x)
    found = np.argwhere(np.any(changed, axis=-1).reshape(8, 8)).tolist()
    assert found == [[row, column] for row in range(1, 6) for column in range(2, 7)]


def test_timesteps_are_sinusoids():
    found = sinusoids(jnp.array([0, 3, 999]), 8)
    angles = np.outer([0, 3, 999], 1e4 ** (-np.arange(4) / 3))
    np.testing.assert_allclose(found[:, :4], np.sin(angles), atol=1e-4)
    np.testing.assert_allclose(found[:, 4:], np.cos(angles), atol=1e-4)


def test_the_denoiser_is_told_the_time(key):
    model = models.Denoiser(width=8)
    noisy, timesteps = normal(0, 2, 8, 8, 1), jnp.array([1, 900])
    variables = filled(jax.eval_shape(model.init, key, noisy, timesteps))
    apply = jax.jit(model.apply)
    other = apply(variables, noisy, timesteps.at[1].set(800))
    same, told = np.abs(apply(variables, noisy, timesteps) - other)
    assert same.max() < 1e-5
    assert told.max() > 1e-2


def test_the_sums_inside_a_network_of_sines_begin_with_variance_one(key):
    """Theorem 1.8 of Sitzmann et al."""
    model = models.Siren(2, (256, 256, 256), 30.0, 1, rngs=nnx.Rngs(key))
    x = 30 * jax.random.uniform(key, (1000, 2), minval=-1, maxval=1)
    for layer in model.layers[:-1]:
        x = jnp.sin(layer(x))
    np.testing.assert_allclose(np.std(model.layers[-1](x)), 1, atol=0.1)
