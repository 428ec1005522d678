"""The metrics of a run as columns of one table, to plot and to compute with."""

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
from jaxtyping import Float, Int, Shaped

from adaprec_jax.display import html_table, text_table
from adaprec_jax.report.summary import filled, is_cost
from adaprec_jax.runs.errors import suggest

_HEAD = ("column", "values", "first", "last", "smallest", "largest")


class MetricsTable(dict[str, Shaped[np.ndarray, " rows"]]):
    """An array for each column by name, with an element for each row.

    The column `step` says after which step a row was written, each step once. Where a
    row has no value, as between two evaluations, there is NaN (and where it was NaN, as
    the loss of a run that diverged); formats (`bits/...`) and
    costs hold until they change. `pandas.DataFrame(table)` makes a data frame of it.

    >>> table = metrics_table({"loss": {1: 4.0, 2: 2.0, 3: 1.0}, "bits/a": {1: 3.0}})
    >>> table["step"].tolist(), table["bits/a"].tolist()
    ([1, 2, 3], [3.0, 3.0, 3.0])
    >>> table
    column  values  first  last  smallest  largest
    loss         3      4     1         1        4
    bits/a       3      3     3         3        3
    """

    def points(
        self, name: str
    ) -> tuple[Int[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """Returns the steps at which a column has a value, and the values.

        >>> table = metrics_table({"loss": {1: 4.0, 2: 2.0}, "validation": {2: 3.0}})
        >>> steps, values = table.points("validation")
        >>> steps.tolist(), values.tolist()
        ([2], [3.0])
        """
        known = ~np.isnan(self[name])
        return self["step"][known], self[name][known]

    def __missing__(self, name: str) -> NoReturn:
        """Says which column may have been meant."""
        raise KeyError(f"There is no column {name!r}; {suggest(name, self)}")

    def __repr__(self) -> str:
        """Returns a line for each column."""
        return text_table(_HEAD, self._lines())

    def _repr_html_(self) -> str:
        caption = f"{len(self['step'])} rows"
        return html_table(_HEAD, self._lines(), caption=caption)

    def _lines(self) -> list[tuple[str | int | float, ...]]:
        return [(name, *_summary(self.points(name)[1])) for name in [*self][1:]]


def metrics_table(columns: Mapping[str, Mapping[int, float]]) -> MetricsTable:
    """Returns the table of a run.

    Args:
        columns: Values by name and step, as `adaprec_jax.runs.metrics.read` has them.
    """
    steps = np.array(sorted({step for column in columns.values() for step in column}))
    table = MetricsTable(step=steps.astype(np.int64))
    for name, column in columns.items():
        # In force until they change.
        if is_cost(name) or name.partition("/")[0] in ("bits", "plan"):
            table[name] = filled(column, int(steps[-1]))[steps - 1]
            continue
        table[name] = np.full(len(steps), np.nan)
        table[name][np.searchsorted(steps, [*column])] = [*column.values()]
    return table


def _summary(values: Float[np.ndarray, " points"]) -> tuple[str | int | float, ...]:
    """Returns what the display says of the values of a column."""
    if not len(values):
        return 0, "", "", "", ""
    ends = (values[0], values[-1], values.min(), values.max())
    return len(values), *map(float, ends)
