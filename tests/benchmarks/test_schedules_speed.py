"""What a closed-loop schedule adds to the emulated train step it decides about.

The bundled digits arms at their own or at published intervals, on an MLP of
64-1024-1024-10 at batch 256: a dispatch that is a whole number of intervals, over one
of static 8 bits with the same scaling, pairwise, median of 30. What is measured between
steps counts, as in a run: statistics, accumulated gradients, the decision itself.
"""

import math
import statistics
import time

import jax
import numpy as np
import pytest

from adaprec_jax.runs.build import build
from adaprec_jax.runs.load import bundled, load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.tasks import order
from adaprec_jax.train import make_dispatch, make_train_step

SIZE = ["model.hidden=[1024,1024]", "batch_size=256"]
STATIC = (
    'schedule={"kind":"constant","precision":{"kind":"shared",'
    '"activation":"int8","weight":"int8","gradient":"int8"}}'
)
# The intervals of the publication; a bundled run of 600 steps has shorter ones.
PUBLISHED = {
    "digits-adapt-kummer": ["schedule.max_lookback=100", "schedule.min_lookback=25"],
}
PAIRS, STEPS = 30, 20
LONGER = {"digits-adapt-kummer": 100}  # so that each dispatch holds decisions


def closed(name: str) -> bool:
    return getattr(load(name).schedule, "loop", "open") == "closed"


ARMS = [name for name in bundled() if name.startswith("digits-") and closed(name)]


class Run:
    """A compiled dispatch that goes on from its own state."""

    def __init__(self, settings: list[str], name: str, steps: int):
        built = build(apply(load(name), [*SIZE, *settings]))
        rows = built.split.train
        numbers = order.indices(0, np.arange(steps), 256, len(rows))
        gather, arrays = built.task.data.gather, built.task.data.arrays
        self.batches = jax.device_put(gather(arrays, rows[numbers]))
        dispatch = make_dispatch(make_train_step(built.program))
        self.state = jax.jit(built.init)(built.key)
        self.compiled = dispatch.lower(self.state, self.batches).compile()

    def __call__(self) -> float:
        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.compiled(self.state, self.batches))
        return time.perf_counter() - start


@pytest.mark.parametrize("name", ARMS)
def test_a_closed_loop_costs_at_most_a_tenth_of_the_step(benchmark, name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        every = build(apply(load(name), SIZE)).program.schedule.every
        steps = every * math.ceil(LONGER.get(name, STEPS) / every)
        ours = Run(PUBLISHED.get(name, []), name, steps)
        static = Run([STATIC], name, steps)
    for _ in range(2):
        ours(), static()
    ratios = [1.0 / static() * ours() for _ in range(PAIRS)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    summary = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
    print(f"\n{name}: dispatch over static 8 bits: {summary}")
    benchmark.extra_info["ratio to static 8 bits, median (quartiles)"] = summary
    benchmark.pedantic(ours, rounds=5)
    assert ratio <= 1.10
