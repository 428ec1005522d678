"""Under shard_map and under sharded jit the walk sees whole tensors, once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Options,
    Watch,
    contraction_table,
    init_recipes,
    value_and_grad,
    with_precision,
)
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import Recipes, current, delayed
from tests.walk_models import normal
from tests.walk_stats import assert_stats

F32, INT4 = formats.get("float32"), formats.get("int4")
E4M3, E5M2 = formats.get("float8_e4m3fn"), formats.get("float8_e5m2")
FULL = SharedPrecision(F32, F32, F32)
LOW = SharedPrecision(E4M3, INT4, E5M2)

PARAMS = {"w1": normal(1, 8, 16), "w2": normal(2, 16, 4)}
X = normal(3, 16, 8)


def plain_loss(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["w1"])
    return jnp.mean(jnp.square(h @ p["w2"])), None


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def data_parallel(p: Any, x: Any, *, check: bool = True) -> Any:
    """The examples are spread over one axis of the mesh, copied along the other."""

    def shard(p: Any, x: Any) -> Any:
        return lax.pmean(plain_loss(p, x)[0], "data")

    specs = {"mesh": mesh(), "in_specs": (P(), P("data")), "out_specs": P()}
    return jax.shard_map(shard, check_vma=check, **specs)(p, x), None


def tensor_parallel(p: Any, x: Any) -> Any:
    """The hidden units are spread as well."""

    def shard(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["w1"])
        y = lax.psum(h @ p["w2"], "model")
        return lax.pmean(jnp.mean(jnp.square(y)), "data")

    specs = {"w1": P(None, "model"), "w2": P("model", None)}
    mapped = jax.shard_map(
        shard, mesh=mesh(), in_specs=(specs, P("data")), out_specs=P()
    )
    return mapped(p, x), None


def tensors() -> dict[str, dict[str, np.ndarray]]:
    """Every tensor of the plain model, by hand."""
    w1, w2, x = (np.asarray(a, np.float64) for a in (PARAMS["w1"], PARAMS["w2"], X))
    h = np.maximum(x @ w1, 0)
    dy = 2 * (h @ w2) / (16 * 4)
    return {
        "w1": {"activation": x, "weight": w1, "gradient": (dy @ w2.T) * (h > 0)},
        "w2": {"activation": h, "weight": w2, "gradient": dy},
    }


@functools.cache
def step(loss: Any, entry: Any) -> Any:
    watch = Watch(("mean_abs", "rms", "amax", "zero_fraction"))
    plan = uniform(contraction_table(loss, PARAMS, X), entry)
    return jax.jit(value_and_grad(loss, watch=watch))(PARAMS, X, plan=plan)


def assert_all_stats(seen: Any, expected: Any):
    for name, roles in expected.items():
        for role, x in roles.items():
            assert_stats(seen[name][role], [x])


def test_copies_along_a_mesh_axis_count_once():
    assert_all_stats(step(data_parallel, FULL)[2].tensors, tensors())


def test_spread_parameters_are_seen_whole():
    expected = tensors()
    # Each half of the hidden units has the cotangent of its own part of the sum.
    expected["w2"]["gradient"] = np.tile(expected["w2"]["gradient"], (2, 1))
    assert_all_stats(step(tensor_parallel, FULL)[2].tensors, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_jit_sees_whole_tensors(kind: AxisType):
    flat = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    plan = uniform(contraction_table(plain_loss, PARAMS, X), FULL)
    watch = Watch(("mean_abs", "rms", "amax", "zero_fraction"))
    x = jax.device_put(X, NamedSharding(flat, P("data")))
    p = jax.device_put(PARAMS, NamedSharding(flat, P()))
    fn = value_and_grad(plain_loss, watch=watch)
    with jax.set_mesh(flat):
        (loss, _), gradients, stats = jax.jit(fn)(p, x, plan=plan)
    assert_all_stats(stats.tensors, tensors())
    (plain, _), expected = jax.jit(jax.value_and_grad(plain_loss, has_aux=True))(
        PARAMS, X
    )
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        gradients, expected,
    )  # fmt: skip


@pytest.mark.parametrize(
    "loss",
    [data_parallel, functools.partial(data_parallel, check=False), tensor_parallel],
    ids=["data", "unchecked", "tensor"],
)
def test_scales_are_those_of_whole_tensors(loss: Any):
    """Not so for halves of a sum, which are rounded each by its own: float32 there."""
    entry = LOW
    if loss is tensor_parallel:
        entry = LOW._replace(gradient=F32)
    (value, _), gradients, _ = step(loss, entry)
    (whole, _), expected, _ = step(plain_loss, entry)
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        gradients, expected,
    )  # fmt: skip


def test_a_transform_inside_the_callers_shard_map_takes_scales_over_its_axes():
    """Whole-tensor scales, and amax for recipes with a state, over `axis_names`."""
    recipes = Recipes(delayed(history=2), delayed(history=2), current())
    options = Options(recipes, axis_names=("data",))
    table = contraction_table(plain_loss, PARAMS, X)
    states = init_recipes(table, recipes)
    plan = uniform(table, LOW)

    def shard(p: Any, x: Any, plan: Any) -> Any:
        p = jax.tree.map(lambda w: lax.pcast(w, "data", to="varying"), p)
        fn = value_and_grad(plain_loss, options)
        (loss, _), gradients, stats = fn(p, x, plan=plan, states=states)
        return lax.pmean((loss, gradients), "data"), stats.amax

    flat = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("data"), P()), "out_specs": (P(), P())}
    mapped = jax.shard_map(shard, mesh=flat, **specs)
    (loss, gradients), amax = jax.jit(mapped)(PARAMS, X, plan)
    whole = jax.jit(value_and_grad(plain_loss, Options(recipes)))
    (expected, _), expected_gradients, stats = whole(
        PARAMS, X, plan=plan, states=states
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_allclose, amax, stats.amax)
    for w in PARAMS:
        np.testing.assert_allclose(gradients[w], expected_gradients[w], rtol=1e-5)


def looping(p: Any, x: Any) -> Any:
    """A layer in each kind of loop and branch, inside a shard_map."""

    def shard(p: Any, x: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            return jnp.tanh(x @ w), None

        x, _ = lax.scan(jax.checkpoint(layer), x, p["layers"])
        x = lax.cond(p["flag"][0] > 0, lambda x: x @ p["yes"], lambda x: x, x)
        return lax.pmean(jnp.mean(jnp.square(x)), "data")

    flat = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("data")), "out_specs": P()}
    return jax.shard_map(shard, mesh=flat, **specs)(p, x), None


@functools.cache
def compiled_loops() -> Any:
    watched = value_and_grad(looping, watch=Watch(("mean_abs",)))
    return jax.jit(watched), jax.jit(looping)


@pytest.mark.parametrize("flag", [-1.0, 1.0])
@pytest.mark.parametrize("collect", [None, True, False])
def test_loops_and_branches_run_inside_shard_map(flag: float, collect: bool | None):
    p = {
        "layers": normal(4, 2, 8, 8),
        "yes": normal(5, 8, 8),
        "flag": jnp.full(1, flag),
    }
    table = contraction_table(looping, p, X)
    assert table.names == ("layers", "yes")
    asked = None if collect is None else jnp.bool_(collect)
    watched, looped = compiled_loops()
    (loss, _), _, stats = watched(p, X, plan=uniform(table, FULL), collect=asked)
    plain, _ = looped(p, X)
    np.testing.assert_array_equal(loss, plain)
    seen, taken = collect is not False, flag > 0
    for role, size in (("activation", X.size), ("weight", 64), ("gradient", X.size)):
        counts = stats.tensors["layers"][role].elements
        np.testing.assert_array_equal(counts, [size * seen] * 2)
        assert stats.tensors["yes"][role].elements == size * seen * taken


def test_shard_map_runs_inside_a_scan_over_layers():
    """One slot per layer and device; inner jits keep the shardings they declare."""
    flat = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(flat, P("data"))

    def fn(p: Any, x: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            x = jax.shard_map(
                lambda x, w: jnp.tanh(x @ w), mesh=flat,
                in_specs=(P("data"), P()), out_specs=P("data"),
            )(x, w)  # fmt: skip
            return jax.jit(lambda x: x @ p["v"], out_shardings=spread)(x), None

        return jnp.mean(jnp.square(lax.scan(layer, x, p["w"])[0])), None

    p = {"w": normal(4, 3, 8, 8), "v": normal(5, 8, 8)}
    table = contraction_table(fn, p, X)
    assert [(c.name, c.axes) for c in table.contractions] == [("w", (3,)), ("v", (3,))]
    watched = value_and_grad(fn, watch=Watch(("mean_abs",)))
    (loss, _), gradients, stats = jax.jit(watched)(p, X, plan=uniform(table, FULL))
    (plain, _), expected = jax.jit(jax.value_and_grad(fn, has_aux=True))(p, X)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    for name in p:
        np.testing.assert_allclose(
            gradients[name], expected[name], rtol=1e-5, atol=1e-8
        )
        for role, size in (
            ("activation", X.size),
            ("weight", 64),
            ("gradient", X.size),
        ):
            np.testing.assert_array_equal(
                stats.tensors[name][role].elements, [size] * 3
            )


def test_while_runs_inside_shard_map():
    def fn(p: Any, x: Any) -> Any:
        def shard(p: Any, x: Any) -> Any:
            rounds = jnp.int32(p["rounds"])
            return lax.fori_loop(0, rounds, lambda _, x: jnp.tanh(x @ p["w"]), x)

        flat = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        return jax.shard_map(
            shard, mesh=flat, in_specs=(P(), P("data")), out_specs=P("data")
        )(p, x)

    p = {"w": normal(4, 8, 8), "rounds": jnp.float32(3)}
    plan = uniform(contraction_table(fn, p, X), FULL)
    out = jax.jit(with_precision(fn))(plan, p, X)
    np.testing.assert_allclose(out, jax.jit(fn)(p, X), rtol=1e-6, atol=1e-6)


def test_stochastic_rounding_differs_between_devices_except_in_copies():
    """Equal rows on every device: the weight rounds alike, the rows do not."""

    def fn(p: Any, x: Any) -> Any:
        flat = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        return jax.shard_map(
            lambda p, x: x @ p["w"], mesh=flat, in_specs=(P(), P("data")),
            out_specs=P("data"),
        )(p, x)  # fmt: skip

    stochastic = current(rounding="stochastic")
    rounded = with_precision(fn, Options(Recipes(stochastic, stochastic, stochastic)))
    x, p = jnp.tile(normal(1, 1, 8), (8, 1)), {"w": normal(2, 8, 8)}
    differing = {}
    for role, entry in {
        "weight": FULL._replace(weight=INT4),
        "activation": FULL._replace(activation=INT4),
    }.items():
        out = jax.jit(rounded)({"w": entry}, p, x, key=jax.random.key(0))
        differing[role] = len(np.unique(np.asarray(out), axis=0))
    assert differing == {"weight": 1, "activation": 8}
