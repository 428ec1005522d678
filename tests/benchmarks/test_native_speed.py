"""What native products gain on this CPU, and what switching between them costs.

Each timed unit runs right after one of float32, and the ratio is taken pairwise;
medians. A CPU without units for a dtype says nothing about it, and is told so.

    pytest tests/benchmarks/test_native_speed.py -m speed -s
"""

import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import formats, loss_scaling, schedules, targets
from adaprec_jax.contractions import Options, contraction_table, with_precision
from adaprec_jax.contractions.kernels import Kernel, Kernels
from adaprec_jax.native import Native, make_native_dispatch
from adaprec_jax.plan import integers, uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.train import Program, init_state
from tests.benchmarks import workloads
from tests.small_run import Aux

PAIRS = 15
FLAGS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "int8": ("avx512_vnni", "avx_vnni")}
WIDTH, HIDDEN, BATCH = 2048, 4096, 1024  # matrix products dominate


class Wide(nn.Module):
    dense: dict

    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH)(nn.relu(nn.Dense(HIDDEN)(x)))


def needs_units(dtype: str) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    if not set(FLAGS[dtype]) & set(flags):
        pytest.skip(f"not available: this CPU has none of {', '.join(FLAGS[dtype])}")


def all_in(dtype: str) -> tuple[SharedPrecision, Kernels]:
    fmt = formats.get(dtype)
    return SharedPrecision(fmt, fmt, fmt), Kernels(*[Kernel(dtype, dtype)] * 3)


def paired(plain, other) -> float:
    """Returns the median of the time of one over that of the other."""

    def seconds(run) -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    ratios = [seconds(plain) / seconds(other) for _ in range(PAIRS + 2)]
    return float(np.median(ratios[2:]))


def test_a_native_bfloat16_step_is_faster_than_float32(benchmark, monkeypatch):
    needs_units("bfloat16")
    entry, kernels = all_in("bfloat16")
    monkeypatch.setitem(workloads.WORKLOADS, "wide", (Wide, (BATCH, WIDTH)))
    monkeypatch.setattr(workloads, "fp8", lambda shared: entry)
    batch = workloads.batch_of("wide")

    def runner(step: workloads.Step):
        compiled = jax.jit(step.fn, donate_argnums=0).lower(step.carried, batch)
        fn, carried = compiled.compile(), [jax.tree.map(jnp.copy, step.carried)]

        def run():
            carried[0] = fn(carried[0], batch)
            return carried[0]

        return run

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain = runner(workloads.float32("wide"))
        native = runner(workloads.emulated("wide", shared=True, kernels=kernels))
    faster = paired(plain, native)
    print(f"\nbfloat16 step: {faster:.2f} times as fast as float32")
    benchmark.extra_info["faster"] = faster
    benchmark.pedantic(lambda: None, rounds=1)
    assert faster >= 1.5


def test_a_native_int8_forward_is_faster_than_float32(benchmark):
    needs_units("int8")
    entry, kernels = all_in("int8")
    model = Wide({})
    x = jax.random.normal(jax.random.key(0), (BATCH, WIDTH))
    params = model.init(jax.random.key(1), x)
    table = contraction_table(model.apply, params, x)
    options = Options(kernels=dict.fromkeys(table.names, kernels))
    rounded = with_precision(model.apply, options)
    plan = uniform(table, entry)
    plain = jax.jit(model.apply)
    native = jax.jit(lambda plan, params, x: rounded(plan, params, x))
    faster = paired(lambda: plain(params, x), lambda: native(plan, params, x))
    print(f"\nint8 forward: {faster:.2f} times as fast as float32")
    benchmark.extra_info["faster"] = faster
    benchmark.pedantic(lambda: None, rounds=1)
    assert faster >= 1.3


def test_switching_costs_little(benchmark):
    """2000 steps with 65 switches, of dtypes and so of executables."""
    steps, every, size = 2000, 30, 10
    entries = [integers(8, 8), all_in("bfloat16")[0]]
    boundaries = list(range(every, steps, every))
    schedule = schedules.piecewise(
        boundaries, [entries[k % 2] for k in range(len(boundaries) + 1)]
    )
    model = nn.Sequential([nn.Dense(1024), nn.relu, nn.Dense(512)])
    x = jax.random.normal(jax.random.key(0), (256, 1024))
    params = model.init(jax.random.key(1), x)

    def loss(params, model_state, batch, key):
        value = jnp.mean((model.apply(params, batch) - 1.0) ** 2)
        return value, Aux({"loss": value}, model_state)

    table = contraction_table(loss, params, {}, x, jax.random.key(0))
    program = Program(loss, table, schedule, loss_scaling.none(optax.adam(1e-3)))
    state = init_state(program, params, {}, jax.random.key(0))
    native = Native(targets.get("cpu"), steps, size)
    dispatch = make_native_dispatch(program, native, state)
    batches = jnp.broadcast_to(x, (size, *x.shape))
    state, _ = jax.block_until_ready(dispatch(state, batches))
    start = time.perf_counter()
    for _ in range(steps // size - 1):
        state, metrics = dispatch(state, batches)
        jax.block_until_ready(metrics.halted)
    seconds = time.perf_counter() - start
    report = dispatch.report()
    dispatch.close()
    lost, step = report.waited / seconds, 1e3 * seconds / (steps - size)
    assert step >= 5
    print(f"\n{len(boundaries)} switches between {report.executables} executables in "
          f"{steps} steps of {step:.1f} ms: {report.waited:.2f} s waited, "
              f"{lost:.2%}")  # fmt: skip
    benchmark.extra_info |= {"lost": lost, "step_ms": step}
    benchmark.pedantic(lambda: None, rounds=1)
    assert len(boundaries) >= 64
    assert report.executables == 2
    assert lost < 0.02
