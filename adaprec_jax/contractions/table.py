"""The table of contractions: what a function multiplies, and under which names."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from adaprec_jax.display import Cell, html_table


class Contraction(NamedTuple):
    """One contraction of a traced function, as a plan addresses it.

    Attributes:
        name: The path that plans, statistics and reports use; unique in its table.
        primitive: Name of the JAX primitive, for instance `dot_general`.
        einsum: The contraction in einsum notation; the kernel layout for a convolution.
        shapes: Shapes of left operand, right operand and result of one execution.
        roles: What stands in the activation slot and in the weight slot: "weight"
            where a parameter reaches the operand, else "activation". Both products of
            attention have two activations; the first slot then has the one that JAX
            puts on the left, which need not be the one an einsum names first.
        axes: The plan axes, outermost first: layers of a scanned stack, then members
            of a vmapped layer or experts. Leaves of the plan's entry broadcast to it.
            Members are found where they are a batch axis of the product; a vmapped
            convolution and a product of all members with one input have none.
        macs: Multiply-accumulates of one execution of the forward product.
        executions: How often it runs per call; None in the body of a `while` loop.
        differentiated: Whether dgrad and wgrad can run; false in a `while` loop.
        parameter: Path of the parameter in the weight slot, with its leaf; "" if none
            reaches it. Of several that are combined on the way, the first.
        parameter_shape: Its shape, with the plan axes; () if there is none.
    """

    name: str
    primitive: str
    einsum: str
    shapes: tuple[tuple[int, ...], ...]
    roles: tuple[str, str]
    axes: tuple[int, ...]
    macs: int
    executions: int | None
    differentiated: bool
    parameter: str = ""
    parameter_shape: tuple[int, ...] = ()


class NotReached(NamedTuple):
    """Arithmetic that a plan has no say over, with the reason."""

    where: str
    what: str
    reason: str


class Table(NamedTuple):
    """All contractions in program order, and what the plan does not reach."""

    contractions: tuple[Contraction, ...]
    not_reached: tuple[NotReached, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the contractions in program order."""
        return tuple(contraction.name for contraction in self.contractions)

    def _repr_html_(self) -> str:
        """Shows a notebook what is multiplied, and what no plan reaches."""
        head = ("contraction", "einsum", "operands", "shapes", "plan axes")
        counts = ("executions", "multiply-accumulates each", "note")
        found = html_table((*head, *counts), map(_cells, self.contractions))
        if not self.not_reached:
            return found
        return found + html_table(
            NotReached._fields, self.not_reached, caption="not reached by a plan"
        )


class Slot(NamedTuple):
    """One enclosing loop or mesh that repeats a contraction.

    Attributes:
        kind: "layer" (a scan whose xs hold parameters), "time" (any other scan) or
            "shard" (a shard_map).
        size: How many repetitions.
    """

    kind: str
    size: int


class Site(NamedTuple):
    """Where the walk finds a contraction, and how its data is laid out there.

    Attributes:
        contraction: The public record.
        weight_side: Which operand is in the weight slot: 0 left, 1 right.
        slots: The enclosing repetitions, outermost first.
        members: Sizes of the batch dimensions that are members of a vmapped layer.
    """

    contraction: Contraction
    weight_side: int
    slots: tuple[Slot, ...]
    members: tuple[int, ...]

    @property
    def probe_shape(self) -> tuple[int, ...]:
        """Shape of the probe without its last axis, the fields of the statistics."""
        return (*(slot.size for slot in self.slots), *self.members)


def forward_macs(table: Table) -> int:
    """Returns the multiply-accumulates of the forward products of one call.

    Raises:
        ValueError: A contraction runs inside a `while` loop, whose trip count is not
            known before it runs.

    >>> forward_macs(Table((), ()))
    0
    """
    unknown = [c.name for c in table.contractions if c.executions is None]
    if unknown:
        raise ValueError(
            f"The contractions {unknown} run inside a while loop, so how often they "
            "execute is not known; use a scan (or fori_loop with static bounds)."
        )
    return sum(c.macs * (c.executions or 0) for c in table.contractions)


def macs_shares(table: Table) -> Float64[np.ndarray, "rows"]:
    """Returns the share of each layer in the multiply-accumulates of a step.

    One number for each layer of each contraction, in the order of the rows of a record
    (`adaprec_jax.train.record.rows`); they sum to 1.

    Raises:
        ValueError: The table holds no multiplication, or one inside a `while` loop.

    >>> from adaprec_jax.testing import table
    >>> macs_shares(table()).round(3).tolist()
    [0.333, 0.333, 0.111, 0.111, 0.111]
    """
    total = forward_macs(table)
    if not total:
        raise ValueError(
            "The table holds no multiplication whose cost could be counted."
        )
    layers = [math.prod(c.axes) for c in table.contractions]
    shares = [c.macs * (c.executions or 0) / total for c in table.contractions]
    return np.repeat(np.divide(shares, layers), layers)


def _cells(c: Contraction) -> tuple[Cell, ...]:
    """Returns what a notebook shows of a contraction."""
    left, right, out = c.shapes
    return (
        c.name,
        c.einsum,
        " x ".join(c.roles),
        f"{left} x {right} -> {out}",
        ", ".join(map(str, c.axes)),
        "unknown" if c.executions is None else c.executions,
        c.macs,
        "" if c.differentiated else "forward only",
    )


def dot_einsum(dimension_numbers: Any, left_rank: int, right_rank: int) -> str:
    """Returns the einsum of a `dot_general`; it does not depend on shapes.

    >>> dot_einsum((((1,), (0,)), ((), ())), 2, 2)
    'ab,bc->ac'
    >>> dot_einsum((((2,), (2,)), ((0,), (0,))), 3, 3)
    'abc,adc->abd'
    """
    (left_contracting, right_contracting), (left_batch, right_batch) = dimension_numbers
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    left = list(letters[:left_rank])
    fresh = iter(letters[left_rank:])
    right = [""] * right_rank
    for i, j in zip(
        (*left_batch, *left_contracting),
        (*right_batch, *right_contracting),
        strict=True,
    ):
        right[j] = left[i]
    right = [letter or next(fresh) for letter in right]
    out = [left[i] for i in left_batch]
    out += [x for i, x in enumerate(left) if i not in (*left_batch, *left_contracting)]
    out += [
        x for j, x in enumerate(right) if j not in (*right_batch, *right_contracting)
    ]
    return f"{''.join(left)},{''.join(right)}->{''.join(out)}"


def conv_macs(
    right_shape: tuple[int, ...], out_shape: tuple[int, ...], out_feature_axis: int
) -> int:
    """Returns the multiply-accumulates of a convolution, padding counted as work.

    Every element of the result sums over the kernel's window and input features,
    which is the kernel's size divided by its output features.
    """
    return math.prod(out_shape) * (
        math.prod(right_shape) // out_shape[out_feature_axis]
    )
