"""What a run decided, from its metrics; imports no JAX, but matplotlib."""

from pathlib import Path

import numpy as np

from adaprec_jax.report.figure import Course
from adaprec_jax.report.summary import filled
from adaprec_jax.runs import metrics, store
from adaprec_jax.runs.errors import InputError


class NothingRecordedError(InputError):
    """A run has recorded no formats, or not yet."""


def recorded(directory: Path) -> Course:
    """Returns the course of a run, as far as it came.

    Args:
        directory: Of the run.

    Raises:
        NothingRecordedError: It has recorded no formats yet.
        InputError: Its metrics are damaged.
    """
    path = directory / store.METRICS
    columns = metrics.read(path) if path.is_file() else {}
    bits = {name: each for name, each in columns.items() if name.startswith("bits/")}
    if not bits:
        raise NothingRecordedError(f"{directory} holds no bits of any step to plot.")
    ended = store.outcome(directory)
    last = max(step for column in columns.values() for step in column)
    steps = ended.step if ended else last
    numbers = sorted({step for column in bits.values() for step in column})
    # Steps are counted from 1 in metrics, from 0 in a picture.
    starts = np.array(numbers) - 1
    paths = [name.removeprefix("bits/").rpartition("/") for name in bits]
    layers = tuple(dict.fromkeys(layer for layer, _, _ in paths))
    operands = tuple(dict.fromkeys(operand for _, _, operand in paths))
    decided = [
        [filled(bits[f"bits/{layer}/{operand}"], last)[starts] for operand in operands]
        for layer in layers
    ]
    rates = columns.get("learning_rate", {})
    known = np.array(sorted(rates), np.int64)
    return Course(
        name=directory.name,
        steps=steps,
        starts=starts,
        layers=layers,
        operands=operands,
        bits=np.moveaxis(np.array(decided), 2, 0).astype(np.int64),
        cost=filled(columns["cost"], last)[starts] if "cost" in columns else None,
        rate_steps=known - 1,
        rates=np.array([rates[step] for step in known.tolist()]),
    )
