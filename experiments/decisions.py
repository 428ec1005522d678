"""What the closed loops decide on the digits, for the gallery of the documentation.

    python -m experiments.decisions [ARM ...]

trains each bundled digits arm whose schedule reads what it measures, seed 0, on a
network with four hidden layers, and writes its course into `docs/decisions/ARM.json`:
the formats' bits and the cost wherever they change, and every 20th learning rate.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from adaprec_jax.report.course_file import dumps
from adaprec_jax.report.figure import Course
from adaprec_jax.runs import store
from adaprec_jax.runs.load import bundled, load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.runs.recorded import recorded
from adaprec_jax.runs.run import run

FOLDER = Path(__file__).parents[1] / "docs" / "decisions"
SIZE = "model.hidden=[64, 64, 64, 64]"
_EVERY = 20  # steps between learning rates that are kept


def arms() -> list[str]:
    """Returns the bundled digits arms whose schedule is a closed loop."""
    names = [name for name in bundled() if name.startswith("digits-")]
    loops = {name: getattr(load(name).schedule, "loop", "open") for name in names}
    return [n.removeprefix("digits-") for n in names if loops[n] == "closed"]


def course_of(arm: str) -> Course:
    """Returns what came of a run of an arm.

    Raises:
        RuntimeError: The run did not end well.
    """
    experiment = apply(load(f"digits-{arm}"), [SIZE])
    with tempfile.TemporaryDirectory() as folder:
        ended = run(experiment, out=Path(folder))
        if ended.state != "done":
            raise RuntimeError(f"digits-{arm} ended as {ended.state}: {ended.message}")
        found = recorded(store.locate(Path(folder), experiment))
    last = len(found.rates) - 1
    kept = np.unique([*range(0, last, _EVERY), last])
    return found._replace(
        name=f"digits-{arm}",
        rate_steps=found.rate_steps[kept],
        rates=found.rates[kept],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Decisions for the gallery.")
    parser.add_argument("arms", nargs="*", metavar="ARM")
    asked = parser.parse_args()
    known = arms()
    if unknown := [arm for arm in asked.arms if arm not in known]:
        parser.error(f"unknown arm {unknown[0]!r}; known are {', '.join(known)}")
    FOLDER.mkdir(exist_ok=True)
    for arm in asked.arms or known:
        (FOLDER / f"{arm}.json").write_text(dumps(course_of(arm)))


if __name__ == "__main__":
    main()
