"""Plans and statistics as a few arrays with one row for each layer of each contraction.

A plan for a hundred contractions has thousands of small arrays, and as many again have
their statistics. What a run carries from step to step, logs and stores is therefore
laid out in rows: those of `rows(table)`, the same for the whole run.

    plan         float32 (rows, 6, 7): see `OPERANDS`, and the fields of `Format`,
                 whose integers are small enough to be exact
    statistics   float32 (rows, roles, 1 + what-if formats, fields)
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from adaprec_jax import formats, stats
from adaprec_jax.contractions import Contraction, Table, Watch
from adaprec_jax.contractions.statistics import Tensors, fields_of, pack, unpack
from adaprec_jax.formats import Format
from adaprec_jax.precision import (
    Dgrad,
    Forward,
    Plan,
    Precision,
    SharedPrecision,
    Wgrad,
    separate,
)

# Of NumPy or JAX, one step's or stacked.
PackedPlan: TypeAlias = Float32[Any, "*rows operands fields"]
# The columns of a packed plan: every operand of every product.
OPERANDS = (
    "forward.activation",
    "forward.weight",
    "dgrad.gradient",
    "dgrad.weight",
    "wgrad.gradient",
    "wgrad.activation",
)


def rows(table: Table) -> tuple[str, ...]:
    """Returns what each row is about: a path, `path@layer` where it has layers.

    >>> from adaprec_jax.contractions import contraction_table
    >>> x = jnp.eye(2)
    >>> rows(contraction_table(lambda p, x: x @ p["w"], {"w": x}, x))
    ('w',)
    """
    return tuple(
        f"{c.name}@{','.join(map(str, place))}" if place else c.name
        for c in table.contractions
        for place in np.ndindex(c.axes)
    )


def pack_plan(plan: Plan, table: Table) -> PackedPlan:
    """Returns the plan in rows; nothing is lost but whether operands were shared."""

    def in_rows(field: Any, axes: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(jnp.asarray(field, jnp.float32), axes).ravel()

    parts = [jnp.zeros((0, len(OPERANDS), len(Format._fields)), jnp.float32)]
    for c in table.contractions:
        operands = [fmt for pair in separate(plan[c.name]) for fmt in pair]
        fields = [[in_rows(field, c.axes) for field in fmt] for fmt in operands]
        parts.append(jnp.stack([jnp.stack(f, axis=-1) for f in fields], axis=-2))
    return jnp.concatenate(parts)


def formats_of(packed: Float32[Any, "*axes fields"]) -> Format:
    """Returns the formats of a packed plan, as one whose fields have its axes.

    `adaprec_jax.formats.bits` and `describe` read it, on the host as well.
    """
    return Format(
        *(
            packed[..., i].astype(np.asarray(field).dtype)
            for i, field in enumerate(formats.get("float32"))
        )
    )


def unpack_plan(packed: PackedPlan, table: Table, like: Plan) -> Plan:
    """Returns the plan that was packed.

    Args:
        packed: What `pack_plan` returned.
        table: The same table.
        like: A plan whose entries have the same types; only the types are read.
    """
    plan: Plan = {}
    for c, where in places(table):
        fields = formats_of(packed[where].reshape(*c.axes, *packed.shape[1:]))
        six = [Format(*(f[..., k] for f in fields)) for k in range(len(OPERANDS))]
        if isinstance(like[c.name], SharedPrecision):
            plan[c.name] = SharedPrecision(six[0], six[1], six[2])
        else:
            plan[c.name] = Precision(
                Forward(*six[:2]), Dgrad(*six[2:4]), Wgrad(*six[4:])
            )
    return plan


def wider(a: PackedPlan, b: PackedPlan) -> PackedPlan:
    """Returns for every operand the format with more bits, else that of `a`."""
    more = formats.bits(formats_of(b)) > formats.bits(formats_of(a))
    return jnp.where(more[..., None], b, a)


def full_precision(packed: PackedPlan) -> PackedPlan:
    """Returns float32 in the place of every format of a packed plan.

    It lies where `packed` lies: another sharding would be another compilation.
    """
    fields = jnp.stack([jnp.float32(field) for field in formats.get("float32")])
    return jnp.zeros_like(packed) + jnp.broadcast_to(fields, packed.shape)


def pack_tensors(
    tensors: Tensors, what_if: Mapping[str, Tensors], table: Table, watch: Watch
) -> Float32[Array, "rows roles formats fields"]:
    """Returns the statistics of a step in rows; the format in force comes first."""
    fields = fields_of(watch.quantities)
    shape = (len(rows(table)), len(watch.roles), 1 + len(watch.what_if), len(fields))
    if not fields or not table.names:
        return jnp.zeros(shape, jnp.float32)

    def in_rows(name: str) -> Array:
        return jnp.stack(
            [
                jnp.stack(
                    [pack(t[name][role], fields) for t in (tensors, *what_if.values())],
                    axis=-2,
                )
                for role in watch.roles
            ],
            axis=-3,
        ).reshape(-1, *shape[1:])

    return jnp.concatenate([in_rows(name) for name in table.names])


def unpack_tensors(
    packed: Float32[Array, "rows roles formats fields"], table: Table, watch: Watch
) -> tuple[Tensors, Mapping[str, Tensors]]:
    """Returns the statistics that were packed: in force, and what-if by name."""
    fields = fields_of(watch.quantities)

    def of_format(index: int) -> Tensors:
        return {
            c.name: {
                role: unpack(
                    packed[where, k, index].reshape(*c.axes, len(fields)), fields
                )
                for k, role in enumerate(watch.roles)
            }
            for c, where in places(table)
        }

    return of_format(0), {
        name: of_format(1 + i) for i, name in enumerate(watch.what_if)
    }


def quantities(
    packed: Float32[Array, "rows roles formats fields"], watch: Watch
) -> dict[str, Float32[Array, "rows roles formats"]]:
    """Returns the watched quantities (ratios of the sums) in rows, by name."""
    sums = unpack(packed, fields_of(watch.quantities))
    return {name: getattr(stats, name)(sums) for name in watch.quantities}


def pack_signals(
    signals: Mapping[str, Mapping[str, Array]], table: Table
) -> dict[str, Float32[Array, "rows"]]:
    """Returns a schedule's own numbers in rows, by name; NaN where it has none."""

    def in_rows(of: Mapping[str, Array]) -> Array:
        parts = [
            jnp.broadcast_to(of.get(c.name, jnp.float32(jnp.nan)), c.axes).ravel()
            for c in table.contractions
        ]
        return jnp.concatenate([jnp.zeros(0, jnp.float32), *parts])

    return {name: in_rows(of) for name, of in signals.items()}


def places(table: Table) -> Iterator[tuple[Contraction, slice]]:
    """Yields every contraction with its rows."""
    start = 0
    for contraction in table.contractions:
        size = math.prod(contraction.axes)
        yield contraction, slice(start, start + size)
        start += size
