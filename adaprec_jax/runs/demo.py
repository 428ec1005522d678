"""The first thing to try: the digits under several precision schedules, side by side.

Arms and seeds differ in numbers only, so all arms whose schedule is a table train as
one pack, in one compilation; the controller, which reads statistics, is a second one.
"""

import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int32, PyTree

from adaprec_jax.report.arms import Arm, Pack, as_json as arms_as_json, as_text
from adaprec_jax.report.chart import bit_range
from adaprec_jax.report.progress import Moment, display
from adaprec_jax.runs.build import Built, build, make_schedule
from adaprec_jax.runs.config import Experiment, ShuffledCPT
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.runs.expected import decay
from adaprec_jax.runs.load import load
from adaprec_jax.runs.rows import bits_of
from adaprec_jax.tasks import order
from adaprec_jax.tasks.task import Split
from adaprec_jax.train import (
    Cadence,
    Hooks,
    Metrics,
    TrainState,
    evaluate,
    init_pack,
    make_pack_dispatch,
    make_score,
    pack_score,
    record,
    train,
)

_BASELINE = "float32"


def demo(
    *, seeds: int, out: Path, more: Mapping[str, Experiment], as_json: bool
) -> None:
    """Trains, prints a table, and writes it as JSON into the folder `out`.

    Args:
        seeds: Runs per arm.
        out: The folder.
        more: Arms beside those of the demo, each compiled on its own.
        as_json: Whether JSON is printed in place of the table.
    """
    bundled = (tabulated(), controlled())
    given = [name for arms in bundled for name in arms]
    if taken := [name for name in more if not name or name in given]:
        raise InputError(
            f"An arm needs a name of its own, got {taken[0]!r}; the demo has "
            f"{', '.join(given)}."
        )
    # First, because they may be wrong.
    own = [train_pack({name: arm}, range(seeds)) for name, arm in more.items()]
    packs = [*(train_pack(arms, range(seeds)) for arms in bundled), *own]
    found = json.dumps(arms_as_json(packs, _BASELINE), indent=2)
    path = out / "demo.json"
    with writing(path):
        path.write_text(found, encoding="utf-8")
    title = (
        f"digits: test accuracy of {seeds} seeds, 95 % intervals; "
        "cost relative to float32"
    )
    table = "\n".join([title, "", *as_text(packs, _BASELINE), f"results in {path}"])
    sys.stdout.write(f"{found if as_json else table}\n")


def tabulated() -> dict[str, Experiment]:
    """Returns the arms whose schedules are tables."""
    cpt = load("digits-cpt")
    settings = cpt.schedule.model_dump(exclude={"kind"})
    shuffled = cpt.model_copy(update={"schedule": ShuffledCPT(**settings)})
    return {
        _BASELINE: load("digits-float32"),
        "8 bit": load("digits-int8"),
        "5 bit": load("digits-int5"),
        "3 bit": load("digits-int3"),
        "CPT": cpt,
        "shuffled CPT": shuffled,
    }


def controlled() -> dict[str, Experiment]:
    """Returns the arm whose schedule reads statistics."""
    return {"two thresholds": load("digits-two-threshold")}


def train_pack(arms: Mapping[str, Experiment], seeds: Sequence[int]) -> Pack:
    """Trains all arms with all seeds together.

    Args:
        arms: Experiments by name, that differ in the numbers of their schedules alone.
        seeds: Those of each arm's runs.
    """
    last = [*arms.values()][-1]
    built = build(last)
    splits = [built.task.data.split(seed) for seed in seeds]
    arrays = jax.device_put(built.task.data.arrays)
    compilations = itertools.count()
    dispatch = make_pack_dispatch(
        built.program, built.task.data.gather, lambda: next(compilations)
    )
    plans: list[np.ndarray] = []  # bits by step, run, layer and operand
    costs: list[np.ndarray] = []
    count = f"{len(arms) * len(seeds)} runs"
    with display(count, 0, last.steps) as shown:
        shown.say(f"{count} as one: {', '.join(arms)}")

        def report(numbers: Int[np.ndarray, " steps"], metrics: Metrics) -> None:
            plans.append(bits_of(metrics.plan))
            costs.append(np.asarray(metrics.scalars["cost"]))
            shown.update(_moment(numbers, metrics, plans[-1]))

        ending = train(
            lambda state, rows: dispatch(state, rows, arrays),
            _first_state(arms, seeds, built),
            Cadence(last.steps, last.steps_per_dispatch, last.steps, last.steps),
            Hooks(_fetcher(seeds, splits, len(arms), last.batch_size), report),
        )
    metric = _test_metric(built, ending.state, splits, arrays)
    bits, cost = np.concatenate(plans), np.concatenate(costs).mean(axis=0)
    changes = (bits[1:] != bits[:-1]).any(axis=(2, 3)).sum(axis=0)
    forward = np.moveaxis(bits[..., :2].max(axis=-1), 0, -1)  # run, layer, step
    layers = record.rows(built.program.table)
    found = {}
    for k, name in enumerate(arms):
        runs = slice(k * len(seeds), (k + 1) * len(seeds))
        by_layer = dict(zip(layers, np.moveaxis(forward[runs], 1, 0), strict=True))
        found[name] = Arm(metric[runs], cost[runs], changes[runs], by_layer)
    return Pack(found, next(compilations))


def _first_state(
    arms: Mapping[str, Experiment], seeds: Sequence[int], built: Built
) -> TrainState:
    """Returns the state of all runs, the seeds of the first arm first."""
    keys = jax.vmap(jax.random.key)(jnp.tile(jnp.array(seeds), len(arms)))
    states = [
        _schedule_state(arm, seed, built) for arm in arms.values() for seed in seeds
    ]
    return init_pack(built.init, keys, states)


def _schedule_state(arm: Experiment, seed: int, built: Built) -> PyTree:
    schedule = arm.schedule
    if isinstance(schedule, ShuffledCPT):
        schedule = schedule.model_copy(update={"shuffle_seed": seed})
    made = make_schedule(schedule, arm.steps, decay(arm))
    return made.init(built.program.table)


def _fetcher(
    seeds: Sequence[int], splits: Sequence[Split], arms: int, batch: int
) -> Callable[[Int[np.ndarray, " steps"]], Int32[np.ndarray, "steps runs batch"]]:
    """Returns what names the rows of a dispatch, for each seed as `run` has them."""

    def fetch(numbers: Int[np.ndarray, " steps"]) -> Int32[np.ndarray, "..."]:
        rows = [
            split.train[order.indices(seed, numbers, batch, len(split.train))]
            for seed, split in zip(seeds, splits, strict=True)
        ]
        return np.tile(np.stack(rows, axis=1), (1, arms, 1))

    return fetch


def _moment(
    numbers: Int[np.ndarray, " steps"], metrics: Metrics, bits: np.ndarray
) -> Moment:
    return Moment(
        step=int(numbers[-1]),
        loss=float(np.mean(metrics.scalars["loss"][-1])),
        precision=bit_range(bits[-1, :, :, :2]),
        saturation=float("nan"),
        skipped=int(np.sum(metrics.scalars["skipped"][-1])),
    )


def _test_metric(
    built: Built, state: TrainState, splits: Sequence[Split], arrays: PyTree
) -> np.ndarray:
    """Returns the metric of each run on its test set, at its highest precision."""
    gather = built.task.data.gather
    score = jax.jit(pack_score(make_score(built.program, built.task.scores), gather))
    rows = np.stack([split.test for split in splits])
    runs = len(state.halted) // len(splits)
    batches = [(np.tile(rows, (runs, 1)), arrays)]
    return evaluate(score, state, batches, rows.shape[1])["highest"][
        built.task.metric.name
    ]
