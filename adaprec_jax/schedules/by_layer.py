"""Numbers by path, laid end to end, so that a rule can compare all layers at once.

The order is that of the rows of a run's metrics: contractions in program order, the
layers along the plan axes of each.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.contractions.statistics import Stats, TensorStats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.formats import Format
from adaprec_jax.scaling import current


def end_to_end(table: Table, by_path: Mapping[str, ArrayLike]) -> Array:
    """Returns the numbers of all layers in a row, broadcast to the plan axes.

    >>> from adaprec_jax.testing import table
    >>> paths = {"Dense_0": 1.0, "Attention": 2.0, "Block/Dense_0": 3.0}
    >>> end_to_end(table(), paths).tolist()
    [1.0, 2.0, 3.0, 3.0, 3.0]
    """
    parts = [
        jnp.broadcast_to(jnp.asarray(by_path[c.name]), c.axes).ravel()
        for c in table.contractions
    ]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.float32)


def by_path(table: Table, row: Array) -> dict[str, Array]:
    """Undoes `end_to_end`: returns the numbers by path, over the plan axes.

    >>> from adaprec_jax.testing import table
    >>> by_path(table(), jnp.arange(5))["Block/Dense_0"].tolist()
    [2, 3, 4]
    """
    found, start = {}, 0
    for c in table.contractions:
        size = math.prod(c.axes)
        found[c.name] = row[start : start + size].reshape(c.axes)
        start += size
    return found


def gathered(
    table: Table, stats: Stats, role: str, field: str, fmt: str | None = None
) -> Float32[Array, "layers"]:
    """Returns a sum over one tensor of each layer, end to end.

    Args:
        table: The contractions.
        stats: Of a step.
        role: Of the tensor.
        field: Of `TensorStats`.
        fmt: Name of a format that is only asked about; None: the one in force.

    Raises:
        ValueError: It was not gathered.

    >>> from adaprec_jax.stats import empty
    >>> nothing = Table((), ())
    >>> gathered(nothing, empty(nothing), "weight", "elements").shape
    (0,)
    """
    tensors = stats.tensors if fmt is None else stats.what_if.get(fmt, {})
    found = {
        c.name: getattr(tensors.get(c.name, {}).get(role, TensorStats()), field)
        for c in table.contractions
    }
    missing = [path for path, value in found.items() if value is None]
    if missing:
        raise not_gathered(
            f"{field} of {f'{fmt} in ' if fmt else ''}the {role} of {missing}"
        )
    return end_to_end(table, found)


def not_gathered(what: str) -> ValueError:
    """Returns the error that a step did not gather what the schedule reads."""
    return ValueError(
        f"The schedule reads {what}, which the step did not gather: give its "
        "`value_and_grad` the Watch that the schedule's `reads` says, and start from "
        "`stats.empty(table, schedule.reads)`."
    )


def vectors(x: Float[Array, "..."], c: Contraction) -> Float[Array, "*axes n"]:
    """Returns one vector for each layer of a parameter of the contraction.

    >>> from adaprec_jax.testing import table
    >>> vectors(jnp.zeros((3, 3, 4)), table().contractions[2]).shape
    (3, 12)
    """
    return x.reshape(*c.axes, -1)


def rounded(
    x: Float32[Array, "*axes n"], fmt: Format, c: Contraction
) -> Float32[Array, "*axes n"]:
    """Returns each layer's vector rounded to its format, scaled by its largest element.

    The scale is a power of two and rounding is to nearest even, as contractions round
    weights unless told otherwise; a format that takes no scale gets none.

    >>> from adaprec_jax.formats import integer
    >>> from adaprec_jax.testing import table
    >>> rounded(jnp.array([0.3, 1.0]), integer(3), table().contractions[0]).tolist()
    [0.5, 1.0]
    """
    fields = jax.tree.map(lambda f: jnp.broadcast_to(f, c.axes)[..., None], fmt)
    values, scale = current().round(x, fields, (), axes=(len(c.axes),), key=None)
    return values * scale
