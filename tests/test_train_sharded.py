"""A model that is spread over devices trains as on one, and is rounded alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Options,
    contraction_table,
    init_recipes,
    update_recipes,
    value_and_grad,
)
from adaprec_jax.contractions.kernels import Kernel, Kernels
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import Recipes, current, delayed
from adaprec_jax.train import (
    Split,
    data_mesh,
    everywhere,
    layout,
    make_dispatch,
    make_train_step,
    put,
    shard,
)
from tests.small_run import PROGRAM, batches, first_state
from tests.test_train_mesh import PROGRAMS, trained

# Devices that share a layer, which axes they split, and whether masters are spread.
LAYOUTS = {
    "tensor": (4, (Split("last/*", 0),), False),
    "fsdp": (1, (), True),
    "both": (2, (), True),
}
INT8 = Kernels(*[Kernel("int8", "int8")] * 3)


def specs(name: str) -> list[P]:
    tensor, splits, spread = LAYOUTS[name]
    state = jax.eval_shape(first_state)
    where = layout(state, data_mesh(tensor=tensor), splits, spread=spread)
    inner = [leaf for leaf in jax.tree.leaves(where.opt_state.inner) if leaf.spec]
    assert len(inner) == 2  # The momentum lies as the parameters do.
    assert [leaf.spec for leaf in inner] == [
        s.spec for s in jax.tree.leaves(where.params)
    ]
    assert not any(leaf.spec for leaf in jax.tree.leaves(where.recipe_states))
    return [leaf.spec for leaf in inner]


def test_parameters_and_what_the_optimizer_keeps_of_them_lie_alike():
    # Of shapes (2, 8, 8) and (8, 4).
    assert specs("tensor") == [P(None, None, "model"), P("model", None)]
    assert specs("fsdp") == [P(None, None, "data"), P("data", None)]
    assert specs("both") == [P(None, "data", "model"), P("model", "data")]


@pytest.mark.parametrize(
    ("splits", "sentence"),
    [
        ([Split("first/*", 0)], "'first/.' names no parameter; there are blocks/w"),
        ([Split("last/w", 2)], r"last/w has shape \[8, 4\], and no axis 2\."),
        ([Split("last/w", 1)], r"Axis 1 of last/w, whose shape is \[8, 4\], cannot be "
                               r"divided into 8 equal parts\."),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(splits, sentence):
    with pytest.raises(ValueError, match=sentence):
        layout(jax.eval_shape(first_state), data_mesh(tensor=8), splits)


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match="8 devices cannot share layers in groups of 3"
    ):
        data_mesh(tensor=3)


def two_layers(params, batch):
    """Each contraction's operands come from sums that are exact in integers."""
    x, weights = batch
    hidden = jax.nn.relu(x @ params["a"])
    return jnp.sum((hidden @ params["b"]) * weights), None


@pytest.mark.parametrize("kernels", [{}, INT8], ids=["emulated", "native"])
@pytest.mark.parametrize("layout_", [(1, P(None, "data"), P("data", None)),
                                     (4, P(None, "model"), P("model", None)),
                                     (2, P("data", "model"), P("model", "data"))],
                         ids=["fsdp", "tensor", "both"])  # fmt: skip
def test_scales_and_integer_operands_are_those_of_one_device_to_the_bit(
    kernels, layout_
):
    """A scale off by a bit on one device would show in the products of its operands."""
    rng = np.random.default_rng(3)
    params = {name: jnp.float32(rng.normal(size=(16, 16))) for name in "ab"}
    batch = tuple(jnp.float32(rng.normal(size=(16, 16))) for _ in range(2))
    recipes = Recipes(delayed(4), current(), current(rounding="stochastic"))
    options = Options(recipes)
    table = contraction_table(two_layers, params, batch, options=options)
    if kernels:
        options = options._replace(kernels=dict.fromkeys(table.names, kernels))
    entry = SharedPrecision(*[formats.get("int8")] * 3)
    plan = jax.tree.map(jnp.asarray, dict.fromkeys(table.names, entry))
    rounded = value_and_grad(two_layers, options)
    states = init_recipes(table, recipes)
    key = jax.random.key(1)

    @jax.jit
    def step(params, batch):
        _, gradients, stats = rounded(params, batch, plan=plan, key=key, states=states)
        return gradients, update_recipes(recipes, table, states, stats)

    tensor, a, b = layout_
    mesh = data_mesh(tensor=tensor)
    put_ = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    spread = {"a": put_(params["a"], a), "b": put_(params["b"], b)}
    one = jax.device_get(step(params, batch))
    eight = step(spread, tuple(put_(leaf, P("data")) for leaf in batch))
    assert len(jax.tree.leaves(eight)[0].sharding.device_set) == 8
    for x, y in zip(*map(jax.tree.leaves, (one, jax.device_get(eight))), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(one[0]))


@functools.cache
def spread_run(program: str, name: str, steps: int):
    """As `trained` of `test_train_mesh`, with the state in a layout."""
    tensor, splits, spread = LAYOUTS[name]
    mesh, state = data_mesh(tensor=tensor), first_state(PROGRAMS[program])
    where = layout(state, mesh, splits, spread=spread)
    shardings = (where, everywhere(mesh))
    dispatch = make_dispatch(make_train_step(PROGRAMS[program]), shardings)
    state, losses = put(state, where), []
    length = min(steps, 8)
    for start in range(0, steps, length):
        state, metrics = dispatch(state, shard(batches(length, start), mesh))
        losses.append(np.asarray(metrics.scalars["loss"]))
    for leaf, at in zip(
        *map(jax.tree.leaves, (state.params, where.params)), strict=True
    ):
        assert leaf.sharding == at
        assert leaf.addressable_shards[0].data.size < leaf.size
    return np.concatenate(losses), state, metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_one_step_differs_by_the_order_of_its_reductions_alone(name):
    one, spread = trained("controlled", 1, 1), spread_run("controlled", name, 1)
    np.testing.assert_allclose(spread[0], one[0], rtol=1e-6)
    np.testing.assert_array_equal(spread[2].plan, one[2].plan)
    for a, b in zip(
        *(jax.tree.leaves(run[1].params) for run in (one, spread)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_two_hundred_steps_stay_within_1e_5_of_the_loss(name):
    one, spread = trained("float32", 1, 200)[0], spread_run("float32", name, 200)[0]
    np.testing.assert_allclose(spread, one, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_an_overflow_on_one_device_skips_the_step_on_all():
    tensor, splits, spread = LAYOUTS["both"]
    mesh, state = data_mesh(tensor=tensor), first_state(PROGRAM)
    before = jax.device_get(state.params)
    where = layout(state, mesh, splits, spread=spread)
    dispatch = make_dispatch(make_train_step(PROGRAM), (where, everywhere(mesh)))
    x, y = batches(1)
    x[0, 3, 0] = np.inf
    after, metrics = dispatch(put(state, where), shard((x, y), mesh))
    assert metrics.scalars["skipped"] == 1
    for a, b in zip(*map(jax.tree.leaves, (after.params, before)), strict=True):
        np.testing.assert_array_equal(a, b)
