"""A static mixture of formats that costs as much as a schedule does."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from adaprec_jax.runs.config import (
    Constant,
    Experiment,
    Float32,
    PerLayer,
    Rule,
    Schedule,
    SharedFormats,
)
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.pieces import FLOAT32, bits_of

_NEAR = 0.01  # relative difference of costs that counts as none
_ALL = 14  # operands, up to which all mixtures are tried


class _Layer(NamedTuple):
    """A row of a plan.

    Attributes:
        row: Its name.
        share: In the multiplications of a step.
        is_weighted: Whether one operand is a weight and the other an activation.
    """

    row: str
    share: float
    is_weighted: bool


def static_mixture(
    experiment: Experiment, cost: float, gradient: str = "int8"
) -> Schedule:
    """Returns formats that differ by layer and operand, never change, and cost so much.

    All operands have one of two neighbouring widths; of all choices it is the one
    nearest to the cost. It needs no data, but imports JAX.

    Args:
        experiment: Whose model it is for.
        cost: Bit operations relative to float32.
        gradient: Format of the gradients.

    Raises:
        InputError: No choice comes within 1 %.
    """
    layers = _layers(experiment)
    g = bits_of(gradient)
    even = [(b * b + 2 * b * g) / FLOAT32 for b in range(2, 25)]
    base = 2 + max(int(np.searchsorted(even, cost, side="right")) - 1, 0)
    widths = _widths(layers, base, g, cost)
    reached = _mean_cost(layers, widths, g)
    if abs(reached - cost) > _NEAR * cost:
        raise InputError(
            f"{experiment.name}: no static mixture of {base} and {base + 1} bits costs "
            f"{cost:.4g} to 1 %; the nearest costs {reached:.4g}."
        )
    rules = tuple(
        Rule(
            pattern=layer.row,
            schedule=Constant(
                precision=SharedFormats(
                    activation=f"int{a}", weight=f"int{w}", gradient=gradient
                )
            ),
        )
        for layer, (a, w) in zip(layers, widths.tolist(), strict=True)
    )
    return PerLayer(rules=rules, default=Float32())


def _layers(experiment: Experiment) -> list[_Layer]:
    """Returns what the model multiplies."""
    from adaprec_jax.contractions.table import macs_shares
    from adaprec_jax.runs.build import as_input_error, make_table
    from adaprec_jax.runs.build_task import blank_data, make_task
    from adaprec_jax.train import record

    with as_input_error():
        task = make_task(experiment, blank_data(experiment.task))
        table = make_table(experiment, task)
        shares = macs_shares(table).tolist()
    both = {"activation", "weight"}
    weighted = {c.name: set(c.roles) == both for c in table.contractions}
    rows = record.rows(table)
    return [
        _Layer(row, share, weighted[row.partition("@")[0]])
        for row, share in zip(rows, shares, strict=True)
    ]


def _widths(
    layers: Sequence[_Layer], base: int, gradient: int, cost: float
) -> Int[np.ndarray, "layers 2"]:
    """Returns the bits of both operands of each layer, nearest to the cost."""
    # What is raised by a bit as one: an operand, or both where neither is a weight.
    parts = [
        part
        for k, layer in enumerate(layers)
        for part in ([(k, 0), (k, 1)] if layer.is_weighted else [(k, slice(None))])
    ]

    def raised(chosen: Sequence[int]) -> Int[np.ndarray, "layers 2"]:
        widths = np.full((len(layers), 2), base)
        for part, by in zip(parts, chosen, strict=True):
            widths[part] += by
        return widths

    if len(parts) <= _ALL:
        ways = itertools.product((0, 1), repeat=len(parts))
        tried = [raised(way) for way in ways]
        off = [abs(_mean_cost(layers, each, gradient) - cost) for each in tried]
        return tried[int(np.argmin(off))]
    chosen = [0] * len(parts)
    # The largest first: what is left to fill shrinks to the smallest.
    for k in sorted(range(len(parts)), key=lambda k: -layers[parts[k][0]].share):
        chosen[k] = 1
        if _mean_cost(layers, raised(chosen), gradient) > cost:
            chosen[k] = 0
    return raised(chosen)


def _mean_cost(
    layers: Sequence[_Layer], widths: Int[np.ndarray, "layers 2"], gradient: int
) -> float:
    """Returns the cost of a step, from the bits of both operands of each layer."""
    a, w = widths.T
    costs = (a * w + gradient * w + gradient * a) / FLOAT32
    return float(np.dot([layer.share for layer in layers], costs))
