"""The learning rate of each arm: the lowest mean validation loss of the tuning study.

    python -m experiments.cpt_against_static.choose RUNS

prints the table and writes `rates.json`. A rate at an end of the grid is refused: the
optimum must lie inside.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from adaprec_jax.studies.columns import evaluations
from adaprec_jax.studies.results import gathered
from adaprec_jax.studies.study import load_study

HERE = Path(__file__).parent
LOSS = "validation/highest/loss"


def losses(out: Path) -> dict[str, dict[float, float]]:
    """Returns the mean last validation loss by arm and learning rate."""
    found = defaultdict(lambda: defaultdict(list))
    # Nothing is claimed from these runs, so that their environments may differ.
    results = gathered(load_study("cpt-tuning", out), out, exploratory=True)
    for arm in results.arms:
        for run in arm.runs.values():
            experiment = run.cell.experiment
            rate = experiment.optimizer.learning_rate.peak
            by_step = evaluations(run, LOSS)
            last = by_step[max(by_step)] if run.outcome.state == "done" else np.inf
            found[experiment.name][rate].append(last)
    return {
        name: {rate: float(np.mean(each)) for rate, each in sorted(rates.items())}
        for name, rates in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning rates by validation loss.")
    parser.add_argument("runs", type=Path)
    table = losses(parser.parse_args().runs)
    rates = sorted(next(iter(table.values())))
    print("| arm |", " | ".join(f"{rate:g}" for rate in rates), "|")
    print("| --- |", " | ".join("---" for _ in rates), "|")
    best = {}
    for name, row in table.items():
        print(f"| {name} |", " | ".join(f"{row[rate]:.4f}" for rate in rates), "|")
        best[name] = min(row, key=lambda rate: row[rate])
    edge = [name for name, rate in best.items() if rate in (rates[0], rates[-1])]
    if edge:
        parser.error(f"the best rate is at an end of the grid for {', '.join(edge)}")
    (HERE / "rates.json").write_text(json.dumps(best, indent=2) + "\n")


if __name__ == "__main__":
    main()
