"""Critical learning periods: does low precision early in training do lasting harm?

    python -m experiments.critical_period [--seeds 3] [--low 3] [--steps 600]

trains the digits by both protocols of arXiv:2403.02243, and prints the test accuracy at
the high precision with 95 % t-intervals, and the difference that the deficit makes,
paired by seed:

- initial deficit: low precision for R steps, then a complete normal run, over which
  alone the learning rate falls. The control is as long, without the deficit.
- probe window: runs of two normal lengths, of which low precision takes up half, from
  another step on in each. The control has none.

Runs of one length are one pack. The bits are integers of activations and weights;
gradients have 8 throughout, as in the paper, and there is no weight decay.
"""

import argparse
from collections.abc import Iterator

from adaprec_jax.report.arms import Arm, t_interval
from adaprec_jax.runs.config import (
    Deficit,
    Experiment,
    SharedFormats,
    WarmupStableDecay,
)
from adaprec_jax.runs.demo import train_pack
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import written
from adaprec_jax.runs.validation import validate

DEFICITS = (0, 1 / 4, 1 / 2, 1)  # of a normal run
OFFSETS = (0, 1 / 8, 1 / 4, 1 / 2)


def arm(*, steps: int, total: int, start: int, length: int, low: int) -> Experiment:
    """Returns a run of `total` steps with a deficit, of which `steps` are normal.

    Args:
        steps: Of a normal run; over the last `steps` the learning rate falls.
        total: Of this run.
        start: First step of the deficit.
        length: Of the deficit.
        low: Bits of activations and weights in it.

    Raises:
        InputError: A number does not fit.
    """
    digits = load("digits-int8")
    peak = digits.optimizer.learning_rate.peak
    rate = WarmupStableDecay(peak=peak, decay_steps=steps, fall="cosine")
    few = SharedFormats(activation=f"int{low}", weight=f"int{low}", gradient="int8")
    deficit = Deficit(start=start, length=length, low=few)
    tree = written(digits)
    tree["optimizer"]["learning_rate"] = rate.model_dump(mode="json")
    tree |= {
        "steps": total,
        "steps_per_dispatch": 10,
        "schedule": deficit.model_dump(mode="json"),
    }
    return validate(tree)


def initial_deficit(
    steps: int, low: int, seeds: int
) -> Iterator[tuple[float, dict[str, Arm]]]:
    """Yields each deficit, as a share of a normal run, with what came of its arms."""
    for share in DEFICITS:
        length = round(share * steps)
        arms = {
            name: arm(
                steps=steps, total=steps + length, start=0, length=deficit, low=low
            )
            for name, deficit in (("control", 0), ("deficit", length))
        }
        yield share, dict(train_pack(arms, range(seeds)).arms)


def probe_windows(steps: int, low: int, seeds: int) -> dict[str, Arm]:
    """Returns what came of the control, and of a window at each offset."""
    total, length = 2 * steps, steps
    arms = {"control": arm(steps=steps, total=total, start=0, length=0, low=low)}
    for share in OFFSETS:
        start = round(share * steps)
        arms[f"{share:g}"] = arm(
            steps=steps, total=total, start=start, length=length, low=low
        )
    return dict(train_pack(arms, range(seeds)).arms)


def row(name: str, found: Arm, control: Arm) -> str:
    """Returns a line of a table: accuracy, and what the deficit changed, in %."""
    mean, half = t_interval(100 * found.metric)
    change, change_half = t_interval(100 * (found.metric - control.metric))
    return (
        f"{name:8} | {mean:5.1f} ± {half:4.1f} | {change:+5.1f} ± {change_half:4.1f} | "
        f"{found.cost.mean():.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Critical learning periods.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--low", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error("--seeds must be at least 2, for an interval")
    if asked.steps < 40 or asked.steps % 40:
        parser.error("--steps must be a multiple of 40, which quarters divide by 10")
    head = "test accuracy, % | minus control, paired | cost"
    print(f"initial deficit of int{asked.low}, in normal runs | {head}")
    for share, arms in initial_deficit(asked.steps, asked.low, asked.seeds):
        print(row(f"{share:g}", arms["deficit"], arms["control"]), flush=True)
    print(f"start of a window of int{asked.low}, in normal runs | {head}")
    arms = probe_windows(asked.steps, asked.low, asked.seeds)
    for name, found in arms.items():
        print(row(name, found, arms["control"]), flush=True)


if __name__ == "__main__":
    main()
