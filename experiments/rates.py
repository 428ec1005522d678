"""Learning rates of the arms of a question: one grid for all, and the best of each.

    adaprec sweep experiments/QUESTION/tuning.py --name QUESTION-tuning --out RUNS
    python -m experiments.rates QUESTION RUNS

prints the mean validation loss of each arm at each rate, as `rates.md` has it, and
writes the best of each arm to `rates.json`. A rate at an end of the grid is refused:
the optimum must lie inside. Only validation is looked at, on seeds that are used for
nothing else.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from adaprec_jax.runs import identity
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.overrides import apply
from adaprec_jax.studies.columns import evaluations
from adaprec_jax.studies.results import gathered
from adaprec_jax.studies.study import load_study
from adaprec_jax.studies.sweep import seeds

LOSS = "validation/highest/loss"
RATE = "optimizer.learning_rate.peak"
TUNING = range(800, 803)


def at(experiment: Experiment, rate: float) -> Experiment:
    """Returns an experiment at another learning rate."""
    return apply(experiment, [f"{RATE}={rate}"])


def tuning(
    arms: Iterable[Experiment],
    rates: Iterable[float],
    tuned_on: Iterable[int] = TUNING,
) -> list[Experiment]:
    """Returns every arm at every rate, on the seeds of tuning."""
    rates = [*rates]
    return seeds([at(each, rate) for each in arms for rate in rates], tuned_on)


def chosen(folder: Path) -> dict[str, float]:
    """Returns the learning rate of each arm of a question."""
    return json.loads((folder / "rates.json").read_text())


def tuned(arms: Iterable[Experiment], folder: Path) -> list[Experiment]:
    """Returns every arm at its own rate."""
    rates = chosen(folder)
    return [at(each, rates[each.name]) for each in arms]


def together(*studies: Iterable[Experiment]) -> list[Experiment]:
    """Returns the runs of several studies, each once, for packs that they share."""
    every = [each for study in studies for each in study]
    return [*{identity.run_id(each): each for each in every}.values()]


def losses(study: str, out: Path) -> dict[str, dict[float, float]]:
    """Returns the mean last validation loss by arm and learning rate.

    A run that diverged counts as infinite.
    """
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    # Nothing is claimed from these runs, so that their environments may differ.
    results = gathered(load_study(study, out), out, exploratory=True)
    for arm in results.arms:
        for run in arm.runs.values():
            experiment = run.cell.experiment
            rate = experiment.optimizer.learning_rate.peak
            last = np.inf
            if run.outcome.state == "done":
                by_step = evaluations(run, LOSS)
                last = by_step[max(by_step)]
            found[experiment.name][rate].append(last)
    return {
        name: {rate: float(np.mean(each)) for rate, each in sorted(rates.items())}
        for name, rates in found.items()
    }


def best(table: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    """Returns the rate of the lowest loss of each arm.

    Raises:
        ValueError: It is the lowest or highest rate that was tried for some arm.
    """
    found = {name: min(row, key=lambda rate: row[rate]) for name, row in table.items()}
    edge = [n for n, rate in found.items() if rate in (min(table[n]), max(table[n]))]
    if edge:
        raise ValueError(
            f"The best rate is at an end of the grid for {', '.join(edge)}."
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning rates by validation loss.")
    parser.add_argument("question", help="a folder of experiments/")
    parser.add_argument("runs", type=Path)
    asked = parser.parse_args()
    table = losses(f"{asked.question}-tuning", asked.runs)
    rates = sorted({rate for row in table.values() for rate in row})
    print("| arm |", " | ".join(f"{rate:g}" for rate in rates), "|")
    print("| --- |", " | ".join("---" for _ in rates), "|")
    for name, row in table.items():
        print(f"| {name} |", " | ".join(f"{row[rate]:.4f}" for rate in rates), "|")
    try:
        found = best(table)
    except ValueError as error:
        parser.error(str(error))
    path = Path(__file__).parent / asked.question / "rates.json"
    path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
