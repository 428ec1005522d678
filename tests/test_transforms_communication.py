"""The narrow all-reduce of gradients against a replay in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from adaprec_jax import formats, transforms
from adaprec_jax.transforms.rounding import as_arrays
from tests.test_transforms import numbers, power_of_two_scale

E4M3 = formats.get("float8_e4m3fn")


reduced = jax.jit(transforms.all_reduce)


def replayed_all_reduce(g: np.ndarray, factor: float):
    """FP8-LM's sum in E4M3: one scale, each device rounds, the sum is rounded."""
    multiplier = factor / power_of_two_scale(np.abs(g).max(), 448.0)

    def to_fp8(x):
        x = np.clip(x, -448, 448).astype(np.float32)
        return x.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)

    total = to_fp8(to_fp8(g * multiplier).sum(axis=0))
    return total / multiplier / len(g), np.mean(np.abs(total) >= 448)


def test_the_all_reduce_and_its_factor_follow_a_replay():
    devices, size, window = 8, 2000, 10
    tx = transforms.narrow_all_reduce(E4M3, "data", threshold=0.0103, window=window)
    state = tx.init(jnp.zeros(size))
    update = jax.jit(
        jax.vmap(tx.update, in_axes=(0, None), out_axes=(0, None), axis_name="data")
    )
    factor, seen = 1.0, []
    for step in range(60):
        g = (numbers(devices, size, seed=step) + 1.0).astype(np.float32)
        mean, saturated = replayed_all_reduce(g.astype(np.float64), factor)
        found, state = update(jnp.asarray(g), state)
        np.testing.assert_allclose(found, np.broadcast_to(mean, g.shape), rtol=1e-5)
        factor = factor / 2 if saturated > 0.0103 else factor * 2 ** (1 / window)
        assert state.factor == pytest.approx(factor, rel=1e-5)
        # Powers of two that are a digit off would round elsewhere from here on.
        state = state._replace(factor=jnp.float32(factor))
        factor = float(state.factor)
        seen.append(factor)
    assert min(seen) < 0.5  # eight of them overflow at 1
    assert any(b > a for a, b in itertools.pairwise(seen))


def test_inside_shard_map_it_takes_the_place_of_the_mean():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    g = numbers(8, 64).astype(np.float32)
    reduce = functools.partial(transforms.all_reduce, fmt=E4M3, axis_name="data")
    emulated = jax.jit(jax.vmap(reduce, (0, None), axis_name="data"))(
        g, jnp.float32(0.25)
    )
    sharded = jax.jit(
        jax.shard_map(
            lambda g: reduce(g[0], jnp.float32(0.25)),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P(),
        )
    )(g)
    np.testing.assert_array_equal(sharded.mean, emulated.mean[0])
    np.testing.assert_array_equal(sharded.saturated, emulated.saturated[0])
    np.testing.assert_allclose(sharded.mean, g.mean(axis=0), atol=0.15)


def test_one_sick_device_is_seen_by_all_and_moves_no_factor_out_of_its_range():
    reduce = functools.partial(transforms.all_reduce, fmt=E4M3, axis_name="data")
    reduce = jax.jit(jax.vmap(reduce, (0, None), axis_name="data"))
    for bad in (np.nan, np.inf):
        g = np.ones((4, 3), np.float32)
        g[2, 1] = bad
        found = reduce(g, jnp.float32(1.0))
        assert not np.isfinite(found.mean[:, 1]).any()
        factor = transforms.next_factor(jnp.float32(1.0), found.saturated[0])
        assert 0.5 <= factor <= 1.001


@pytest.mark.parametrize("factor", [2.0**-32, 1.0, 2.0**32])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1.0, 3e38])
def test_no_finite_gradient_makes_a_nan_or_an_infinity(factor, value):
    g = jnp.full(4, value, jnp.float32)
    for name in ("float8_e4m3fn", "float8_e5m2", "int8", "bfloat16"):
        fmt = formats.get(name)
        found = reduced(g, jnp.float32(factor), fmt=as_arrays(fmt))
        assert np.isfinite(found.mean).all()
        assert np.isfinite(found.saturated)


def test_a_format_that_is_not_scaled_travels_as_it_is():
    g = np.r_[numbers(50), 1e-42].astype(np.float32)
    for name in ("float32", "bfloat16"):
        fmt = as_arrays(formats.get(name))
        found = reduced(jnp.asarray(g), jnp.float32(0.1), fmt=fmt)
        np.testing.assert_array_equal(found.mean, g.astype(name).astype(np.float32))


def test_the_factor_doubles_in_a_thousand_steps_and_stays_in_its_bounds():
    factor = jnp.float32(0.5)
    grow = jax.jit(lambda f: transforms.next_factor(f, jnp.float32(0.0)))
    for _ in range(1000):
        factor = grow(factor)
    assert factor == pytest.approx(1.0, rel=1e-4)
    highest = transforms.next_factor(jnp.float32(2.0**32), jnp.float32(0.0))
    lowest = transforms.next_factor(jnp.float32(2.0**-32), jnp.float32(1.0))
    assert (highest, lowest) == (2.0**32, 2.0**-32)
