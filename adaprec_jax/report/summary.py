"""What is said of a whole run, from its metrics."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from adaprec_jax.report.chart import chart

# By name and step, as `adaprec_jax.runs.metrics.read` returns them.
Columns = Mapping[str, Mapping[int, float]]


def totals(columns: Columns, steps: int) -> dict[str, float]:
    """Returns costs and counts of a run.

    Args:
        columns: Its metrics; `cost`, `cost/...` and `bits/...` have a value at each
            change.
        steps: Steps completed.

    >>> totals({"cost": {1: 1.0, 4: 0.25}, "bits/a/x": {1: 32, 4: 16}}, 4)
    {'cost': 0.8125, 'precision_changes': 1.0}
    """
    found: dict[str, float] = {}
    for name in columns if steps else ():
        if is_cost(name):
            found[name] = float(np.mean(filled(columns[name], steps)))
    changes = {s for name in columns if name.startswith("bits/") for s in columns[name]}
    found["precision_changes"] = float(max(len(changes) - 1, 0))
    if skipped := columns.get("skipped"):
        found["skipped_steps"] = skipped[max(skipped)]
    return found


def is_cost(name: str) -> bool:
    """Returns whether a column tells what a step costs.

    >>> is_cost("cost"), is_cost("cost/joules"), is_cost("costly")
    (True, True, False)
    """
    return name.partition("/")[0] == "cost"


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
