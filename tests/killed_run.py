"""A small run with metrics and checkpoints, to be killed: `python -m tests.killed_run`.

It goes on from the last checkpoint in its folder, to the end.
"""

import sys
from pathlib import Path

from adaprec_jax.runs import metrics as store
from adaprec_jax.train import (
    Cadence,
    Hooks,
    make_dispatch,
    make_train_step,
    train,
)
from adaprec_jax.train.checkpoint import restore, saving
from tests.small_run import PROGRAM, batches, first_state

STEPS = 200
CADENCE = Cadence(STEPS, dispatch=4, evaluate_every=STEPS, save_every=20)


def main(folder: Path) -> None:
    restored = restore(folder / "checkpoints", first_state())
    step, state = (restored.step, restored.state) if restored else (0, first_state())
    file = store.start(folder / "metrics.jsonl", step)

    def log(numbers, metrics):
        columns = {name: column.tolist() for name, column in metrics.scalars.items()}
        bits = metrics.plan[..., 0].sum(axis=(1, 2)).tolist()
        store.append(file, numbers.tolist(), columns | {"bits": bits})

    def fetch(numbers):
        return batches(len(numbers), int(numbers[0]))

    with saving(folder / "checkpoints", step) as save:
        hooks = Hooks(fetch, on_metrics=log, save=save)
        ending = train(make_dispatch(make_train_step(PROGRAM)), state, CADENCE, hooks)
    print(ending.kind, ending.step)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
