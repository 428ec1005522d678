"""What emulated FP8 adds to a float32 train step of each bundled family.

Models and batches of the bundled configs; E4M3 activations and weights and E5M2
gradients in every contraction, shared, as a constant schedule plans them inside the
step; Adam. As in `test_train_step_speed.py`, each timed step runs right after one of
float32, and ratios are taken pairwise. This file measures itself as a script, one
family at a time: eight devices, which the tests make of one CPU, share its cores
between eight threads, and such short steps then wait for each other.

    pytest tests/benchmarks/test_families_speed.py -m speed -s
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import contractions, schedules, stats
from adaprec_jax.contractions import Table, contraction_table
from adaprec_jax.runs.build import build
from adaprec_jax.runs.load import load
from adaprec_jax.tasks.task import Task
from tests.benchmarks.test_train_step_speed import Compiled, summary
from tests.benchmarks.workloads import TX, Step, fp8

PAIRS = 200
LIMIT = 1.25
FAMILIES = (
    "resnet", "vit", "lstm", "gru", "experts", "graph", "denoiser", "function",
)  # fmt: skip
# What the compiled programs show, and the limits in the place of the one above. They
# have one thing in common: the backward pass rounds activations and weights again.
_KERNELS = (
    "a kernel's gradient wants its operands transposed, and XLA:CPU rounds them inside "
    "the transposing copy, at some ten times the time of rounding in order"
)
_TIME = (
    "of a step's nearly twice as many instructions most run in the scan over time, on "
    "64 x 64 numbers: states and their gradients are rounded at each time, with scales"
)
EXCEPTIONS = {
    "resnet": (1.4, _KERNELS),
    "denoiser": (1.4, _KERNELS),
    "lstm": (1.5, _TIME),
    "gru": (1.5, _TIME),
    "experts": (
        2.0,
        "the float32 step is some 110 instructions of a microsecond each, of which "
        "products are 14; roundings and scales are some 60 more",
    ),
    "graph": (
        1.8,
        "the first layer has one feature, so its product is a multiplication to XLA, "
        "which is fused into four readers, and the rounding of both operands with it, "
        "for each of 262144 results",
    ),
    "function": (
        2.6,
        "the sine, two thirds of the float32 step together with its derivative, is "
        "fused into each rounding: it is computed six times instead of twice",
    ),
}


class Family(NamedTuple):
    task: Task
    table: Table
    carried: tuple[Any, ...]
    batch: Any


def family(name: str) -> Family:
    experiment = load(f"{name}-float32")
    built = build(experiment)
    task, key = built.task, jax.random.key(1)
    params, model_state = jax.jit(task.init)(key)
    rows = built.split.train[: experiment.batch_size]
    batch = jax.tree.map(jnp.asarray, task.data.gather(task.data.arrays, rows))
    table = contraction_table(task.loss, params, model_state, batch, key)
    carried = (params, TX.init(params), model_state, jnp.int32(0), jnp.float32(0))
    return Family(task, table, carried, batch)


def float32(family: Family) -> Step:
    gradient = jax.value_and_grad(family.task.loss, has_aux=True)

    def step(carried: Any, batch: Any) -> Any:
        params, state, model_state, i, _ = carried
        (value, aux), grads = gradient(params, model_state, batch, jax.random.key(i))
        updates, state = TX.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, aux.model_state, i + 1, value

    return Step(step, family.carried)


def emulated(family: Family) -> Step:
    gradient = contractions.value_and_grad(family.task.loss)
    schedule = schedules.constant(fp8(shared=True))
    nothing = stats.empty(family.table)

    def step(carried: Any, batch: Any) -> Any:
        params, state, model_state, i, _, schedule_state = carried
        plan, schedule_state = schedule.update(i, nothing, schedule_state)
        (value, aux), grads, _ = gradient(
            params, model_state, batch, jax.random.key(i), plan=plan
        )
        updates, state = TX.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, aux.model_state, i + 1, value, schedule_state

    return Step(step, (*family.carried, schedule.init(family.table)))


def measure(name: str) -> dict[str, Any]:
    """Returns what is printed of a family."""
    built = family(name)
    plain = Compiled(float32(built), built.batch)
    ours = Compiled(emulated(built), built.batch)
    seconds = np.array([(plain(), ours()) for _ in range(3 + PAIRS)])[3:]
    found = summary(ours, list(seconds[:, 1] / seconds[:, 0]))
    return found._asdict() | {
        "float32_ms": 1e3 * np.median(seconds[:, 0]),
        "compilation": ours.seconds / plain.seconds,
        "float32_mib": plain.fn.memory_analysis().temp_size_in_bytes / 2**20,
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_emulated_fp8_costs_a_family_little(benchmark, name: str):
    one_device = {**os.environ, "XLA_FLAGS": ""}
    script = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.test_families_speed", name],
        cwd=Path(__file__).parents[2], env=one_device, stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    m = json.loads(script.stdout)
    limit, reason = EXCEPTIONS.get(name, (LIMIT, ""))
    low, high = m["quartiles"]
    print(
        f"\n{name:9} float32 {m['float32_ms']:6.2f} ms; FP8 {m['step']:.2f} "
        f"({low:.2f}-{high:.2f}), at most {limit:.2f}; compilation "
        f"{m['compilation']:.1f}; temporary {m['temporary_mib']:.1f} over "
        f"{m['float32_mib']:.1f} MiB" + (f"\n{'':9} {reason}" if reason else "")
    )
    benchmark.extra_info |= m
    benchmark.pedantic(lambda: None, rounds=1)  # measured already
    assert m["step"] <= limit


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1]), default=float))
