"""The parameters that contractions multiply by, with what a step did to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from adaprec_jax.contractions.names import parameter_paths
from adaprec_jax.contractions.table import Table


class Weight(NamedTuple):
    """One parameter in one step, float32; leading axes are the plan axes.

    Attributes:
        value: Before the step, of the master where there is one.
        gradient: Of the loss, without the loss scale, before clipping.
        update: What the optimizer added.
    """

    value: Float32[Array, "*axes_and_shape"]
    gradient: Float32[Array, "*axes_and_shape"]
    update: Float32[Array, "*axes_and_shape"]


Weights: TypeAlias = Mapping[str, Weight]
"""By contraction; those that multiply by no parameter are left out."""


def weights_of(table: Table, values: Any, gradients: Any, updates: Any) -> Weights:
    """Returns the weight of each contraction that has one.

    Args:
        table: The contractions.
        values: The parameters that they were listed with.
        gradients: A tree of the same structure.
        updates: As `gradients`.

    Raises:
        ValueError: The layers of a parameter do not lie along its first axes, so they
            cannot be told apart; or a parameter of the table is not in the trees.

    >>> from adaprec_jax.contractions import contraction_table
    >>> params = {"Dense_0": {"kernel": jnp.eye(2)}}
    >>> layer = lambda params, x: x @ params["Dense_0"]["kernel"]
    >>> table = contraction_table(layer, params, jnp.eye(2))
    >>> list(weights_of(table, params, params, params))
    ['Dense_0']
    """
    paths = parameter_paths(values)
    trees = [jax.tree.leaves(tree) for tree in (values, gradients, updates)]
    by_path = {
        path: Weight(*(leaf.astype(jnp.float32) for leaf in leaves))
        for path, *leaves in zip(paths, *trees, strict=True)
    }
    found = {}
    for c in table.contractions:
        if not c.parameter:
            continue
        if c.parameter not in by_path:
            raise ValueError(
                f"The parameter {c.parameter!r} of {c.name!r} is not among {paths}."
            )
        weight = by_path[c.parameter]
        if weight.value.shape[: len(c.axes)] != c.axes:
            raise ValueError(
                f"The layers {c.axes} of {c.name!r} must lie along the first axes of "
                f"its parameter {c.parameter!r}, whose shape is {weight.value.shape}."
            )
        found[c.name] = weight
    return found
