"""Eight devices that share a batch train as one device that has all of it."""

import functools

import jax
import numpy as np
import optax
import pytest

from adaprec_jax import formats, loss_scaling
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.schedules import constant
from adaprec_jax.train import (
    data_mesh,
    everywhere,
    make_dispatch,
    make_train_step,
    replicate,
    shard,
)
from tests.small_run import PROGRAM, batches, first_state

DISPATCH = 8
FLOAT32 = SharedPrecision(*[formats.get("float32")] * 3)
PROGRAMS = {
    # Delayed and current scaling, stochastic rounding, statistics, a closed loop.
    "controlled": PROGRAM,
    "float32": PROGRAM._replace(
        schedule=constant(FLOAT32),
        transformation=loss_scaling.none(optax.sgd(0.2)),
    ),
}


@functools.cache
def trained(name: str, devices: int, steps: int):
    """The losses of all steps, and the last state."""
    program = PROGRAMS[name]
    mesh = data_mesh(jax.devices()[:devices])
    dispatch = make_dispatch(make_train_step(program), everywhere(mesh))
    state, losses = replicate(first_state(program), mesh), []
    length = min(steps, DISPATCH)
    for start in range(0, steps, length):
        examples = shard(batches(length, start), mesh)
        state, metrics = dispatch(state, examples)
        losses.append(np.asarray(metrics.scalars["loss"]))
    return np.concatenate(losses), state, metrics


@pytest.mark.slow
def test_one_step_differs_by_the_order_of_its_reductions_alone():
    one, eight = (trained("controlled", devices, 1) for devices in (1, 8))
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-6)
    for a, b in zip(*(jax.tree.leaves(run[1].params) for run in (one, eight)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert b.sharding.is_fully_replicated


def test_an_overflow_on_one_device_skips_the_step_on_all():
    program, mesh = PROGRAMS["controlled"], data_mesh()
    before = jax.device_get(first_state(program).params)
    dispatch = make_dispatch(make_train_step(program), everywhere(mesh))
    x, y = batches(1)
    x[0, 3, 0] = np.inf
    after, metrics = dispatch(
        replicate(first_state(program), mesh), shard((x, y), mesh)
    )
    assert metrics.scalars["skipped"] == 1
    for a, b in zip(*map(jax.tree.leaves, (after.params, before)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_two_hundred_steps_stay_within_1e_5_of_the_loss():
    one, eight = (trained("float32", devices, 200)[0] for devices in (1, 8))
    assert one[-20:].mean() < 0.8 * one[:20].mean()
    np.testing.assert_allclose(eight, one, atol=1e-5, rtol=0)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="12 examples cannot be spread equally over 8"):
        shard(batches(1, size=12), data_mesh())
