"""What is said of a whole run, from its metrics."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from adaprec_jax.report.chart import chart

# By name and step, as `adaprec_jax.runs.metrics.read` returns them.
Columns = Mapping[str, Mapping[int, float]]


def totals(columns: Columns, steps: int) -> dict[str, float]:
    """Returns cost and counts of a run.

    Args:
        columns: Its metrics; `cost` and `bits/...` have a value at each change.
        steps: Steps completed.

    >>> totals({"cost": {1: 1.0, 4: 0.25}, "bits/a/x": {1: 32, 4: 16}}, 4)
    {'cost': 0.8125, 'precision_changes': 1.0}
    """
    found: dict[str, float] = {}
    if steps and "cost" in columns:
        found["cost"] = float(np.mean(filled(columns["cost"], steps)))
    changes = {s for name in columns if name.startswith("bits/") for s in columns[name]}
    found["precision_changes"] = float(max(len(changes) - 1, 0))
    if skipped := columns.get("skipped"):
        found["skipped_steps"] = skipped[max(skipped)]
    return found


def precision_chart(columns: Columns, steps: int) -> list[str]:
    """Returns the bits of each layer over the steps, as lines of text.

    They are those of the wider operand of the forward product; the gradients have lines
    of their own if their bits change.
    """
    forward: dict[str, Int[np.ndarray, " steps"]] = {}
    gradient: dict[str, Int[np.ndarray, " steps"]] = {}
    for name, values in columns.items():
        kind, _, rest = name.partition("/")
        row, _, operand = rest.rpartition("/")
        if kind != "bits" or not steps:
            continue
        bits = filled(values, steps).astype(int)
        if operand in ("forward.activation", "forward.weight"):
            forward[row] = np.maximum(forward.get(row, 0), bits)
        elif operand == "dgrad.gradient":
            gradient[row] = bits
    if not forward:
        return []
    lines = ["bits of activations and weights", *chart(forward)]
    if any(np.ptp(bits) for bits in gradient.values()):
        lines += ["bits of gradients", *chart(gradient)]
    return lines


def filled(column: Mapping[int, float], steps: int) -> Float[np.ndarray, " steps"]:
    """Returns the value in force at each of the steps 1 to `steps`.

    >>> filled({1: 8.0, 3: 4.0}, 4).tolist()
    [8.0, 8.0, 4.0, 4.0]
    """
    starts = np.array(sorted(column))
    values = np.array([column[start] for start in starts])
    return values[np.searchsorted(starts, np.arange(1, steps + 1), side="right") - 1]
