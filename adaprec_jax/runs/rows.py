"""What is written about each step: numbers by name, in rows of the metrics.

loss, accuracy, gradient_norm, ...        every `log_every` steps
underflow_fraction/Dense_0/activation     where statistics were asked for
signal/gradient_diversity/Dense_0         numbers that a schedule decides from
cost, bits/Dense_0/forward.activation     at the first step, and where formats change
plan                                      likewise; its line in `plan_log`
validation/now/accuracy                   where the model was evaluated
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int

from adaprec_jax import formats
from adaprec_jax.report.summary import is_cost
from adaprec_jax.runs import plan_log
from adaprec_jax.train import Metrics, Program, record
from adaprec_jax.train.record import OPERANDS, PackedPlan

Row: TypeAlias = tuple[int, Mapping[str, float]]
Bits: TypeAlias = Int[np.ndarray, "rows operands"]


class Layout(NamedTuple):
    """What the rows of a run hold.

    Attributes:
        layers: Names of the rows of a plan.
        roles: Of which statistics are gathered.
        statistics: Those that are logged.
        gather_every: Steps between two gatherings.
        log_every: Steps between rows.
    """

    layers: tuple[str, ...]
    roles: tuple[str, ...]
    statistics: tuple[str, ...]
    gather_every: int
    log_every: int


def layout(program: Program, statistics: tuple[str, ...], log_every: int) -> Layout:
    """Returns what the rows of a run hold."""
    return Layout(
        layers=record.rows(program.table),
        roles=program.watch.roles,
        statistics=statistics,
        gather_every=program.gather_every,
        log_every=log_every,
    )


def rows(
    layout: Layout,
    numbers: Int[np.ndarray, " steps"],
    metrics: Metrics,
    before: PackedPlan,
    number_of: Callable[[Any], int] | None = None,
) -> Iterator[Row]:
    """Yields a row for each step about which there is something to be said.

    Args:
        layout: What the rows hold.
        numbers: The steps, counted from 1.
        metrics: Of these steps, on the host.
        before: The packed plan of the step before them.
        number_of: Returns the line of a packed plan in the run's log of plans; None
            leaves it out.
    """
    plans = np.asarray(metrics.plan)
    bits = bits_of(plans)
    earlier = [before, *plans[:-1]]
    for k, number in enumerate(numbers.tolist()):
        row: dict[str, float] = {}
        changed = number == 1 or (plans[k] != earlier[k]).any()
        if number % layout.log_every == 0 or metrics.halted[k]:
            row |= {name: float(column[k]) for name, column in metrics.scalars.items()}
            row |= _signals(layout, metrics, k)
            if number % layout.gather_every == 0:
                row |= _statistics(layout, metrics, k)
        if changed:
            row |= _bits(layout, bits[k])
            if number_of is not None:
                row[plan_log.COLUMN] = number_of(plans[k])
            row |= {
                name: float(column[k])
                for name, column in metrics.scalars.items()
                if is_cost(name)
            }
        if row:
            yield number, row


def blocks(
    rows: Iterator[Row],
) -> Iterator[tuple[list[int], Mapping[str, Sequence[float]]]]:
    """Yields steps and columns of neighbouring rows that hold the same names.

    >>> list(blocks(iter([(1, {"a": 5.0}), (2, {"a": 6.0}), (3, {"b": 7.0})])))
    [([1, 2], {'a': [5.0, 6.0]}), ([3], {'b': [7.0]})]
    """
    for names, group in groupby(rows, key=lambda row: tuple(row[1])):
        steps, values = zip(*group, strict=True)
        yield list(steps), {name: [row[name] for row in values] for name in names}


def bits_of(plan: Any) -> Int[np.ndarray, "*steps rows operands"]:
    """Returns the width of every format of a packed plan, or of one for each step."""
    return np.asarray(formats.bits(record.formats_of(np.asarray(plan))))


def largest(quantity: np.ndarray, start: float) -> float:
    """Returns the largest value of the last step that gathered, else `start`."""
    gathered = ~np.isnan(quantity).all(axis=tuple(range(1, quantity.ndim)))
    if not gathered.any():
        return start
    return float(np.nanmax(quantity[gathered][-1]))


def _bits(layout: Layout, bits: Bits) -> dict[str, float]:
    return {
        f"bits/{layer}/{operand}": float(bits[i, j])
        for i, layer in enumerate(layout.layers)
        for j, operand in enumerate(OPERANDS)
    }


def _signals(layout: Layout, metrics: Metrics, step: int) -> dict[str, float]:
    """Returns the schedule's own numbers, of the layers about which it has some."""
    return {
        f"signal/{name}/{layer}": float(values[step, i])
        for name, values in metrics.signals.items()
        for i, layer in enumerate(layout.layers)
        if not np.isnan(values[step, i])
    }


def _statistics(layout: Layout, metrics: Metrics, step: int) -> dict[str, float]:
    """Returns what was asked for, of the format in force."""
    return {
        f"{name}/{layer}/{role}": float(metrics.quantities[name][step, i, j, 0])
        for name in layout.statistics
        for i, layer in enumerate(layout.layers)
        for j, role in enumerate(layout.roles)
    }
