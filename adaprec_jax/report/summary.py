"""What is said of a whole run, from its metrics."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from adaprec_jax.report.chart import chart

# By name and step, as `adaprec_jax.runs.metrics.read` returns them.
Columns = Mapping[str, Mapping[int, float]]

_PRODUCTS = (
    ("forward.activation", "forward.weight"),
    ("dgrad.gradient", "dgrad.weight"),
    ("wgrad.gradient", "wgrad.activation"),
)


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


def narrow_share(
    columns: Columns, steps: int, work: Mapping[str, float], max_bits: int
) -> float:
    """Returns the share of a run's multiplications whose operands were both narrow.

    Counted from the formats that were in force, each layer by its work; see
    `adaprec_jax.cost.narrow_share`.

    Args:
        columns: Its metrics; `bits/LAYER/OPERAND` have a value at each change.
        steps: Steps completed, at least 1.
        work: Share of each layer in the multiply-accumulates of a step.
        max_bits: The most bits that either operand may have.

    >>> bits = {"forward.activation": 4.0, "forward.weight": 4.0, "dgrad.weight": 4.0}
    >>> bits |= {"dgrad.gradient": 8.0, "wgrad.gradient": 8.0, "wgrad.activation": 4.0}
    >>> columns = {f"bits/a/{operand}": {1: b} for operand, b in bits.items()}
    >>> round(narrow_share(columns, 10, {"a": 1.0}, 4), 4)  # forward alone
    0.3333
    """
    narrow = 0.0
    for layer, share in work.items():
        for product in _PRODUCTS:
            pair = [columns[f"bits/{layer}/{operand}"] for operand in product]
            starts = sorted({s for column in pair for s in column if s <= steps})
            lengths = np.diff([*starts, steps + 1])
            bits = np.array([_in_force(column, starts) for column in pair])
            narrow += share * float(lengths[(bits <= max_bits).all(axis=0)].sum())
    return narrow / (len(_PRODUCTS) * steps)


def is_cost(name: str) -> bool:
    """Returns whether a column tells what a step costs.

    >>> is_cost("cost"), is_cost("cost/joules"), is_cost("costly")
    (True, True, False)
    """
    return name.partition("/")[0] == "cost"


def precision_chart(columns: Columns, steps: int) -> list[str]:
    """Returns the bits of each layer over the steps, as lines of text.

    Activations and weights of the forward product have lines of their own where they
    differ; the gradients have some if their bits change.
    """
    operands = ("forward.activation", "forward.weight", "dgrad.gradient")
    bits: dict[str, dict[str, Int[np.ndarray, " steps"]]] = {o: {} for o in operands}
    for name, values in columns.items():
        kind, _, rest = name.partition("/")
        row, _, operand = rest.rpartition("/")
        if kind == "bits" and operand in bits and steps:
            bits[operand][row] = filled(values, steps).astype(int)
    activation, weight, gradient = bits.values()
    if not activation:
        return []
    if all(np.array_equal(activation[row], weight[row]) for row in activation):
        lines = ["bits of activations and weights", *chart(activation)]
    else:
        lines = ["bits of activations", *chart(activation)]
        lines += ["bits of weights", *chart(weight)]
    if any(np.ptp(each) for each in gradient.values()):
        lines += ["bits of gradients", *chart(gradient)]
    return lines


def filled(column: Mapping[int, float], steps: int) -> Float[np.ndarray, " steps"]:
    """Returns the value in force at each of the steps 1 to `steps`.

    >>> filled({1: 8.0, 3: 4.0}, 4).tolist()
    [8.0, 8.0, 4.0, 4.0]
    """
    return _in_force(column, np.arange(1, steps + 1))


def _in_force(
    column: Mapping[int, float], steps: Sequence[int] | Int[np.ndarray, "places"]
) -> Float[np.ndarray, "places"]:
    """Returns the value in force at each of some steps."""
    starts = np.array(sorted(column))
    values = np.array([column[start] for start in starts])
    return values[np.searchsorted(starts, steps, side="right") - 1]
