"""Every bundled schedule of a task over seeds, beside static formats of equal cost.

    python -m experiments.schedules [--task digits] [--seeds 5] [--out DIR]
                                    [--one-by-one] [ARM ...]

trains the bundled arms of a task, each with all seeds as one pack, and static formats:
integers of 2 to 8 bits, bfloat16 and float32. It prints for each arm the test metric
with its 95 % t-interval, the bit operations relative to float32, the changes of
precision per run, and what static formats reach at that cost: the metric of each seed,
interpolated between the two static arms whose costs enclose the schedule's, and the
paired difference; both are blank for the static arms themselves. What is trained
already lies in DIR and is not trained again.

--one-by-one trains the seeds one after another, as suits convolutions on a CPU: in a
pack they become grouped ones, which are several times slower. Shell variables that
help there: JAX_COMPILATION_CACHE_DIR, and glibc's MALLOC_MMAP_THRESHOLD_ and
MALLOC_TRIM_THRESHOLD_ of a few GiB, so that the memory of a step is kept for the next.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaprec_jax.report.arms import t_interval
from adaprec_jax.runs import identity
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.demo import train_pack
from adaprec_jax.runs.load import bundled, load
from adaprec_jax.runs.overrides import apply

STATIC_BITS = range(2, 9)
STATIC = (
    '{{"kind":"constant","precision":'
    '{{"kind":"shared","activation":"int{0}","weight":"int{0}","gradient":"int8"}}}}'
)


class Trained(NamedTuple):
    """What came of one arm, over its seeds."""

    metric: np.ndarray
    cost: np.ndarray
    changes: np.ndarray


class Frontier(NamedTuple):
    """What static formats reach: cost by format, and the metric by format and seed."""

    cost: np.ndarray
    metric: np.ndarray


def arms_of(task: str) -> list[str]:
    """Returns the bundled arms of a task, in their order."""
    return [name.removeprefix(f"{task}-") for name in bundled()
            if name.startswith(f"{task}-")]  # fmt: skip


def static(task: str, bits: int) -> Experiment:
    """Returns static integers for activations and weights, and 8 bits for gradients."""
    return apply(load(f"{task}-int8"), [f"schedule={STATIC.format(bits)}"])


def static_arms(task: str) -> list[dict[str, Experiment]]:
    """Returns the static arms, by name: those of a dictionary can train together."""
    return [
        {f"static {bits}": static(task, bits) for bits in STATIC_BITS},
        *({name: load(f"{task}-{name}")} for name in ("bf16", "float32")),
    ]


def trained(
    arms: Mapping[str, Experiment], seeds: int, out: Path, *, one_by_one: bool
) -> list[Trained]:
    """Returns what came of experiments that can train together.

    They differ in the numbers of their schedules alone; runs in `out` are read.
    """
    out.mkdir(parents=True, exist_ok=True)
    packs = [(arms, [*range(seeds)])]
    if one_by_one:
        packs = [({n: arm}, [k]) for k in range(seeds) for n, arm in arms.items()]
    for group, pack in packs:
        missing = {
            name: arm
            for name, arm in group.items()
            if not all(_path(out, arm, seed).exists() for seed in pack)
        }
        if missing:
            _train(missing, pack, out)
    return [
        Trained(*np.transpose([_stored(out, arm, seed) for seed in range(seeds)]))
        for arm in arms.values()
    ]


def _train(arms: Mapping[str, Experiment], seeds: Sequence[int], out: Path) -> None:
    """Trains experiments as one pack, and stores each run."""
    for name, found in train_pack(arms, seeds).arms.items():
        for k, seed in enumerate(seeds):
            path = _path(out, arms[name], seed)
            run = {field: getattr(found, field)[k].item() for field in Trained._fields}
            partial = path.with_suffix(".partial")
            partial.write_text(
                json.dumps({"name": arms[name].name, "seed": seed} | run)
            )
            partial.replace(path)


def _path(out: Path, arm: Experiment, seed: int) -> Path:
    return out / f"{identity.run_id(arm)}-{seed}.json"


def _stored(out: Path, arm: Experiment, seed: int) -> list[float]:
    run = json.loads(_path(out, arm, seed).read_text())
    return [run[field] for field in Trained._fields]


def at_cost(frontier: Frontier, cost: np.ndarray) -> np.ndarray:
    """Returns for each seed the metric of static formats at its cost, interpolated.

    NaN beyond the frontier: nothing is extrapolated.

    >>> edge = Frontier(np.array([1.0, 3.0]), np.array([[0.5], [0.9]]))
    >>> at_cost(edge, np.array([2.0]))
    array([0.7])
    """
    return np.array([
        np.interp(own, frontier.cost, metric, left=np.nan, right=np.nan)
        for own, metric in zip(cost, frontier.metric.T, strict=True)
    ])  # fmt: skip


def row(name: str, found: Trained, frontier: Frontier | None, scale: float) -> str:
    """Returns a line of the table; metrics are multiplied by `scale`.

    Without a frontier, as for the arms that it is made of, the last cells are blank.
    """

    def interval(values: np.ndarray, sign: str = "") -> str:
        if np.isnan(values).any():
            return "-"
        mean, half = t_interval(scale * values)
        return f"{mean:{sign}.2f} ± {half:.2f}"

    low, high = int(found.changes.min()), int(found.changes.max())
    cells = [
        name,
        interval(found.metric),
        f"{found.cost.mean():.4f}",
        f"{low}" if low == high else f"{low} to {high}",
    ]
    if frontier is None:
        return " | ".join([*cells, "", ""])
    equal = at_cost(frontier, found.cost)
    return " | ".join([*cells, interval(equal), interval(found.metric - equal, "+")])


def frontier_of(arms: Sequence[Trained]) -> Frontier:
    """Returns the frontier of static arms, cheapest first."""
    ordered = sorted(arms, key=lambda arm: arm.cost.mean())
    return Frontier(
        np.array([arm.cost.mean() for arm in ordered]),
        np.stack([arm.metric for arm in ordered]),
    )


def arguments() -> argparse.ArgumentParser:
    """Returns what the command line may say."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.schedules",
        description="Trains the bundled arms of a task over seeds, and prints each "
        "beside static formats of equal cost. The static arms train first, before a "
        "line is printed, whatever arms are asked for: integers of 2 to 8 bits as one "
        "pack, then bfloat16 and float32. On two cores digits take about two minutes "
        "for a family of arms that trains as one pack.",
    )
    parser.add_argument(
        "arms",
        nargs="*",
        metavar="ARM",
        help="an arm of the task without the task's name, such as cpt; all of them "
        "where none is named",
    )
    parser.add_argument(
        "--task",
        default="digits",
        help="whose bundled configs are TASK-ARM (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="how many, from 0 on, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/schedules"),
        metavar="DIR",
        help="where each run is stored; one that lies there is not trained again "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--one-by-one",
        action="store_true",
        help="train the seeds one after another instead of as one pack: faster for "
        "convolutions on a CPU",
    )
    return parser


def main() -> None:
    parser = arguments()
    asked = parser.parse_args()
    known = arms_of(asked.task)
    if not known:
        parser.error(f"no bundled config is called {asked.task}-...")
    if unknown := [arm for arm in asked.arms if arm not in known]:
        parser.error(f"unknown arm {unknown[0]!r}; known are {', '.join(known)}")
    if asked.seeds < 2:
        parser.error("an interval needs at least 2 seeds")

    def measured(arms: Mapping[str, Experiment]) -> list[Trained]:
        return trained(arms, asked.seeds, asked.out, one_by_one=asked.one_by_one)

    static_found = {
        name: found
        for group in static_arms(asked.task)
        for name, found in zip(group, measured(group), strict=True)
    }
    frontier = frontier_of([*static_found.values()])
    accuracy = bool((frontier.metric <= 1).all())
    scale = 100.0 if accuracy else 1.0
    columns = ["schedule", "test metric", "bit operations", "changes",
               "static at equal cost", "difference"]  # fmt: skip
    print(" | ".join(columns))
    for name, found in static_found.items():
        print(row(name, found, None, scale))
    for arm in asked.arms or known:
        (found,) = measured({arm: load(f"{asked.task}-{arm}")})
        print(row(arm, found, frontier, scale), flush=True)


if __name__ == "__main__":
    main()
