"""A schedule kept to the formats that a device multiplies."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PyTree

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table
from adaprec_jax.formats import Format
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Plan,
    Precision,
    SharedPrecision,
    Wgrad,
    separate,
)
from adaprec_jax.schedules.combinators import around
from adaprec_jax.schedules.schedule import Schedule, Scope, select
from adaprec_jax.targets import Pair, Target, holds, pairs_of


class NativeOnState(NamedTuple):
    """State of `native_on`: that of the schedule, and the contractions."""

    inner: PyTree
    scope: Scope


def native_on(schedule: Schedule, target: Target, fallback: Format) -> Schedule:
    """Replaces formats of which a device cannot multiply a product.

    A product is native where one of the target's pairs of dtypes holds the formats of
    both operands. Where one of the products that share a rounded copy is not, all
    operands of the contraction take the fallback.

    Args:
        schedule: The schedule to follow.
        target: The device.
        fallback: The format of all operands of such a contraction.

    Raises:
        ValueError: Two operands of the fallback are no native matrix product.

    >>> from adaprec_jax import formats, targets
    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.schedules import constant
    >>> h100, bf16 = targets.get("h100"), formats.get("bfloat16")
    >>> schedule = native_on(constant(integers(16, 16)), h100, bf16)
    """
    if not bool(_native(target.matrix_products, fallback, fallback)):
        raise ValueError(f"{target.title} has no native product of the fallback.")

    def init(table: Table) -> NativeOnState:
        return NativeOnState(schedule.init(table), Scope(table))

    def update(
        step: Int32[Array, ""], stats: Stats, state: NativeOnState
    ) -> tuple[Plan, NativeOnState]:
        plan, inner = schedule.update(step, stats, state.inner)
        kept = {
            c.name: _kept(plan[c.name], pairs_of(target, c.primitive), fallback)
            for c in state.scope.table.contractions
        }
        return kept, state._replace(inner=inner)

    return around(schedule, init, update)


def _kept(entry: Entry, pairs: tuple[Pair, ...], fallback: Format) -> Entry:
    """Returns the entry, with the fallback where a product of it is not native."""
    native = [_native(pairs, *product) for product in separate(entry)]
    if isinstance(entry, SharedPrecision):
        together = functools.reduce(operator.and_, native)
        return SharedPrecision(*(_either(together, fmt, fallback) for fmt in entry))
    kept = [
        [_either(ok, fmt, fallback) for fmt in product]
        for ok, product in zip(native, entry, strict=True)
    ]
    return Precision(Forward(*kept[0]), Dgrad(*kept[1]), Wgrad(*kept[2]))


def _native(pairs: tuple[Pair, ...], left: Format, right: Format) -> Bool[Array, "..."]:
    found = [holds(a, left) & holds(b, right) for a, b in pairs]
    nothing = jnp.zeros(jnp.shape(left.mantissa_bits), bool)
    return functools.reduce(operator.or_, found, nothing)


def _either(native: Bool[Array, "..."], fmt: Format, fallback: Format) -> Format:
    wide = jax.tree.map(jnp.asarray, fallback)
    return select(native, jax.tree.map(jnp.asarray, fmt), wide)
