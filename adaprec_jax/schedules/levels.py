"""Two precisions, one of which each layer has at a time."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from adaprec_jax.contractions.table import Table
from adaprec_jax.plan import fill
from adaprec_jax.precision import Entry, Plan
from adaprec_jax.schedules.schedule import select


class Levels(NamedTuple):
    """The two precisions, of one type; their formats may differ between runs."""

    high: Entry
    low: Entry


def levels(high: Entry, low: Entry) -> Levels:
    """Returns the two precisions as strongly typed arrays.

    Raises:
        ValueError: The entries are of both types.

    >>> from adaprec_jax.plan import integers
    >>> int(levels(integers(8, 8), integers(4, 8)).low.weight.mantissa_bits)
    2
    """
    if type(high) is not type(low):
        raise ValueError(
            "high and low must be entries of one type, got "
            f"{type(high).__name__} and {type(low).__name__}; precision.separate "
            "writes a shared entry out."
        )
    return Levels(jax.tree.map(jnp.asarray, high), jax.tree.map(jnp.asarray, low))


def choose(table: Table, of: Levels, is_high: Mapping[str, Bool[Array, "..."]]) -> Plan:
    """Returns the plan in which each layer has the precision said for it.

    Args:
        table: The contractions.
        of: The two precisions.
        is_high: By path, over the plan axes; the others are high.

    Raises:
        ValueError: As in `adaprec_jax.plan.fill`.

    >>> from adaprec_jax.plan import integers
    >>> choose(Table((), ()), levels(integers(8, 8), integers(4, 8)), {})
    {}
    """
    always = jnp.bool_(True)
    return {
        c.name: fill(c, select(is_high.get(c.name, always), of.high, of.low))
        for c in table.contractions
    }
