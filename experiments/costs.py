"""What is saved, by which lens: the tables of the README and their picture.

    python -m experiments.costs [--seeds 2] [--out runs] [--picture FILE]

prints as Markdown what bundled configs save over float32 and over bfloat16, and the
field's claims beside what is counted, and draws test accuracy against modelled energy
for twelve arms of digits, which it trains as runs of their own (a run that is there is
not trained again). Training takes about a quarter of a minute for each run.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from adaprec_jax.cost.devices import device
from adaprec_jax.cost.lenses import look
from adaprec_jax.cost.quantity import Saving, saving
from adaprec_jax.runs import store
from adaprec_jax.runs.costing import foreseen_cost
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.runs.run import run

ARMS = (
    "float32", "bf16", "int8", "int5", "int3", "cpt", "two-threshold", "cyclic-rr",
    "late-switch", "step-list", "pfq", "snip",
)  # fmt: skip
LARGE = (
    "model.layers=8", "model.width=4096", "model.heads=32", "task.context=2048",
    "batch_size=8", "compute_dtype=bfloat16",
)  # fmt: skip
TABLE = {
    "`digits-int8`": ("digits-int8", ()),
    "`digits-cpt`": ("digits-cpt", ()),
    "`fashion-mnist-cpt`": ("fashion-mnist-cpt", ()),
    "`shakespeare-fp8`": ("shakespeare-fp8", ()),
    "`shakespeare-nvfp4`": ("shakespeare-nvfp4", ()),
    "FP8, width 4096": ("shakespeare-fp8", LARGE),
}
LENSES = ("bitops", "arith7", "arith7_mem", "chip", "roofline")


def saved(found: Saving | None) -> str:
    """Returns a saving in % with its band."""
    if found is None:
        return "n/a"
    low, high = 100 * found.low, 100 * found.high
    band = "" if high - low < 0.5 else f" ({low:.0f} to {high:.0f})"
    return f"{100 * found.value:.0f}{band}"


def lens_table() -> None:
    """Prints what some configs save."""
    h100 = device("h100")
    print(f"| saved over float32; over bfloat16, % | {' | '.join(LENSES)} |")
    print(f"| --- | {' | '.join('---' for _ in LENSES)} |")
    for name, (config, settings) in TABLE.items():
        spent = foreseen_cost(apply(load(config), settings))
        cells = []
        for lens in LENSES:
            done = (spent.float32, spent.bfloat16, spent.done)
            ends = [look(lens, each, h100) for each in done]
            shares = [saving(base, ends[2]) for base in ends[:2]]
            cells.append("; ".join(map(saved, shares)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def trained(seeds: int, out: Path) -> list[Path]:
    """Returns the directories of all runs of the study."""
    directories = []
    for seed in range(seeds):
        for arm in ARMS:
            experiment = apply(load(f"digits-{arm}"), [f"seed={seed}"])
            directory = store.locate(out, experiment)
            if store.outcome(directory) is None:
                run(experiment, out=out)
            directories.append(directory)
    return directories


def main() -> None:
    parser = argparse.ArgumentParser(description="What is saved, by which lens.")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each arm")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument(
        "--picture", type=Path, default=Path("accuracy-cost.png"), metavar="FILE"
    )
    asked = parser.parse_args()
    lens_table()
    print(flush=True)
    command = [sys.executable, "-c", "from adaprec_jax.cli import main; main()"]
    subprocess.run([*command, "claims", "--markdown"], check=True)
    print(flush=True)
    directories = map(str, trained(asked.seeds, asked.out))
    plot = ["--lens", "arith7_mem", "--plot", str(asked.picture)]
    subprocess.run([*command, "cost", *directories, *plot], check=True)


if __name__ == "__main__":
    main()
