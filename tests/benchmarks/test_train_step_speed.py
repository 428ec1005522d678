"""What emulated FP8 adds to a float32 train step, beside other libraries' FP8.

Each timed unit runs right after one of float32, and the ratio is taken pairwise;
medians with quartiles. Compilation counts tracing, lowering and compiling, the fastest
of three after a first one.

    pytest tests/benchmarks/test_train_step_speed.py -m speed -s
"""

import functools
import re
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

from adaprec_jax.contractions import Watch
from tests.benchmarks import workloads
from tests.benchmarks.workloads import Step

PAIRS = 80
WATCH = Watch(("underflow_fraction", "sqnr_db"))
OURS = {
    "shared": functools.partial(workloads.emulated, shared=True),
    "six formats": functools.partial(workloads.emulated, shared=False),
    "shared, statistics every 10": functools.partial(
        workloads.emulated, shared=True, watch=WATCH, every=10
    ),
}
PEERS = {
    "flax": workloads.flax_fp8,
    "qwix": workloads.qwix_fp8,
    "AQT": workloads.aqt_fp8,
}
# Step over float32; statistics: added to the step without them.
LIMITS = {"mlp": (1.10, 1.15, 0.10), "block": (1.05, 1.10, 0.10)}


class Measured(NamedTuple):
    step: float
    quartiles: tuple[float, float]
    compile_seconds: float
    temporary_mib: float
    transposes: int


class Compiled:
    """A compiled, donated step that can be timed again and again."""

    def __init__(self, step: Step, batch: tuple):
        carried = jax.tree.map(jax.numpy.copy, step.carried)
        seconds = []
        for _ in range(4):  # The first time imports, and fills caches of Python.
            jax.clear_caches()
            start = time.perf_counter()
            lowered = jax.jit(step.fn, donate_argnums=0).lower(carried, batch)
            self.fn = lowered.compile()
            seconds.append(time.perf_counter() - start)
        self.seconds = min(seconds[1:])
        self.carried, self.batch = carried, batch

    def __call__(self) -> float:
        start = time.perf_counter()
        self.carried = jax.block_until_ready(self.fn(self.carried, self.batch))
        return time.perf_counter() - start


def measure(workload: str, variants: dict) -> dict[str, Measured]:
    batch = workloads.batch_of(workload)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain = Compiled(workloads.float32(workload), batch)
        steps = {
            name: Compiled(make(workload), batch) for name, make in variants.items()
        }
    steps = {"float32": plain} | steps
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for pair in range(PAIRS + 3):
        for name, step in steps.items():
            base = plain()
            ratio = step() / base
            if pair >= 3:
                ratios[name].append(ratio)
    return {name: summary(step, ratios[name]) for name, step in steps.items()}


def summary(step: Compiled, ratios: list[float]) -> Measured:
    low, median, high = np.percentile(ratios, [25, 50, 75])
    sizes = [x.size for x in jax.tree.leaves(step.carried[0]) if x.ndim == 2]
    text = step.fn.as_text()
    shapes = re.findall(r"f32\[(\d+),(\d+)\]\S* transpose\(", text)
    transposes = sum(int(a) * int(b) in sizes for a, b in shapes)
    temporary = step.fn.memory_analysis().temp_size_in_bytes / 2**20
    return Measured(median, (low, high), step.seconds, temporary, transposes)


# Peers of this age use what jax 0.10 and flax 0.12 are about to remove.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workload", LIMITS)
def test_emulated_fp8_costs_little_and_less_than_any_peer(benchmark, workload: str):
    table = measure(workload, OURS | PEERS)
    plain = table["float32"]
    print(f"\n{workload:28}   step  (quartiles)   compile  temp MiB  transposes")
    for name, m in table.items():
        print(
            f"{name:28} {m.step:6.2f}  ({m.quartiles[0]:.2f}-{m.quartiles[1]:.2f})"
            f" {m.compile_seconds / plain.compile_seconds:9.2f}"
            f" {m.temporary_mib:9.1f} {m.transposes:11d}"
        )
    benchmark.extra_info |= {name: m._asdict() for name, m in table.items()}
    benchmark.pedantic(lambda: None, rounds=1)
    shared, six, statistics = (table[name] for name in OURS)
    limits = LIMITS[workload]
    assert shared.transposes == six.transposes == 0
    for ours in (shared, six):
        assert round(ours.temporary_mib / plain.temporary_mib, 2) <= 1.15
        assert ours.compile_seconds <= 2.2 * plain.compile_seconds
    assert shared.step < min(table[peer].step for peer in PEERS)
    assert shared.step <= limits[0]
    assert six.step <= limits[1]
    assert statistics.step - shared.step <= limits[2]
