"""Which axes of its operands each product sums over, and which tell slices apart."""

from collections.abc import Mapping
from typing import TypeAlias

from adaprec_jax.contractions import jax_internals as internals
from adaprec_jax.contractions.jax_internals import Eqn, aval

# By product and role.
Summed: TypeAlias = Mapping[tuple[str, str], tuple[int, ...]]
# By role.
Sliced: TypeAlias = Mapping[str, tuple[int, ...]]


def summed_axes(eqn: Eqn, weight_side: int) -> Summed:
    """Returns for each operand of each product the axes that it is summed over.

    The gradient of an operand sums over the axes that the other one brings into the
    result. Of a convolution, which also sums over places, only channels are named, and
    for the weight's gradient examples and places.

    Args:
        eqn: The contraction.
        weight_side: Which operand is in the weight slot: 0 left, 1 right.
    """
    summed, free, in_result = _convolution(eqn) if (
        eqn.primitive is internals.conv_general_dilated_p
    ) else _product(eqn)  # fmt: skip
    activation, weight = 1 - weight_side, weight_side
    return {
        ("forward", "activation"): summed[activation],
        ("forward", "weight"): summed[weight],
        ("dgrad", "gradient"): in_result[weight],
        ("dgrad", "weight"): free[weight],
        ("wgrad", "gradient"): in_result[activation],
        ("wgrad", "activation"): free[activation],
    }


def sliced_axes(eqn: Eqn, weight_side: int, *, members: bool) -> Sliced:
    """Returns the axes along which the slices of each operand lie.

    A slice of an activation or a gradient is an example, taken to be the first axis
    that is not summed; one of a weight is an output, what no other axis is summed for.

    Args:
        eqn: The contraction.
        weight_side: Which operand is in the weight slot: 0 left, 1 right.
        members: Whether the axes of a batch are members, each of them rounded alone.
    """
    activation = 1 - weight_side
    if eqn.primitive is internals.conv_general_dilated_p:
        numbers = eqn.params["dimension_numbers"]
        sides = numbers.lhs_spec[:1], numbers.rhs_spec[:1]
        result = numbers.out_spec[activation]
        return {
            "activation": sides[activation],
            "weight": sides[weight_side],
            "gradient": (result,),
        }
    summed, free, in_result = _product(eqn)
    batch = _batch(eqn)
    examples = free[activation], in_result[activation]
    if batch[0] and not members:
        examples = batch[activation], tuple(range(len(batch[0])))
    rank = aval(eqn.invars[weight_side]).ndim
    outputs = (axis for axis in range(rank) if axis not in summed[weight_side])
    return {
        "activation": examples[0][:1],
        "weight": tuple(outputs),
        "gradient": examples[1][:1],
    }


_Sides: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def _product(eqn: Eqn) -> tuple[_Sides, _Sides, _Sides]:
    """Returns by side the summed axes, the others, and where those are in the result.

    Axes of a batch, and the groups of a ragged product, are neither.
    """
    ranks = [aval(atom).ndim for atom in eqn.invars[:2]]
    groups: tuple[int, ...] = ()
    if eqn.primitive is internals.ragged_dot_general_p:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        groups = tuple(numbers.rhs_group_dimensions)
        summed = numbers.dot_dimension_numbers[0]
    else:
        summed = eqn.params["dimension_numbers"][0]
    batch = _batch(eqn)
    taken = [{*summed[0], *batch[0]}, {*summed[1], *batch[1], *groups}]
    left, right = (
        tuple(axis for axis in range(rank) if axis not in those)
        for rank, those in zip(ranks, taken, strict=True)
    )
    first = len(batch[0])
    middle = first + len(left)
    places = (tuple(range(first, middle)), tuple(range(middle, middle + len(right))))
    return (tuple(summed[0]), tuple(summed[1])), (left, right), places


def _batch(eqn: Eqn) -> _Sides:
    """Returns by side the axes of a batch of products."""
    if eqn.primitive is internals.ragged_dot_general_p:
        numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    else:
        numbers = eqn.params["dimension_numbers"]
    left, right = numbers[1]
    return tuple(left), tuple(right)


def _convolution(eqn: Eqn) -> tuple[_Sides, _Sides, _Sides]:
    """Returns as `_product`; the left operand is the input, the right the kernel."""
    numbers = eqn.params["dimension_numbers"]
    (batch, feature, *places), (out, into, *_), result = (
        numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec,
    )  # fmt: skip
    examples, channels, *spots = result
    summed = ((feature,), (into,))
    return summed, ((batch, *places), (out,)), ((examples, *spots), (channels,))
