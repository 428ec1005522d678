"""The model families over seeds: float32, static 8 and 4 bits, and cyclic precision.

    python -m experiments.families [--seeds 5] [FAMILY ...]

trains the four bundled arms of each family with all seeds as one pack, and prints the
test metric with 95 % t-intervals, and the difference to float32, paired by seed. All
eight take about half an hour on two CPU cores; convolutions most of it.
"""

import argparse
from collections.abc import Sequence

from adaprec_jax.report.arms import Arm, t_interval
from adaprec_jax.runs.demo import train_pack
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply

ARMS = ("float32", "int8", "int4", "cpt")
FAMILIES = (
    "resnet", "vit", "lstm", "gru", "experts", "graph", "denoiser", "function",
)  # fmt: skip


def trained(family: str, seeds: int, settings: Sequence[str] = ()) -> dict[str, Arm]:
    """Returns what came of each arm; `settings` are as after `--set`."""
    arms = {arm: apply(load(f"{family}-{arm}"), settings) for arm in ARMS}
    return dict(train_pack(arms, range(seeds)).arms)


def row(family: str, arms: dict[str, Arm]) -> str:
    """Returns a line of the table: mean and interval, and those of the difference."""
    base = arms["float32"].metric
    cells = []
    for name, arm in arms.items():
        mean, half = t_interval(arm.metric)
        cell = f"{mean:.3g} ± {half:.1g}"
        if name != "float32":
            mean, half = t_interval(arm.metric - base)
            cell += f" ({mean:+.2g} ± {half:.1g})"
        cells.append(cell)
    return " | ".join([family, *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description="The model families over seeds.")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    if unknown := sorted({*asked.families} - {*FAMILIES}):
        parser.error(f"unknown {unknown[0]!r}; known are {', '.join(FAMILIES)}")
    print(" | ".join(["family", *ARMS]))
    for family in asked.families or FAMILIES:
        print(row(family, trained(family, asked.seeds)), flush=True)


if __name__ == "__main__":
    main()
