"""A plan fitted to the contractions of a function, or what is wrong with it."""

import difflib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adaprec_jax.contractions.table import Contraction
from adaprec_jax.formats import Format
from adaprec_jax.precision import Entry, Plan, Precision, SharedPrecision


def fit(plan: Plan, contractions: Sequence[Contraction]) -> Plan:
    """Returns the plan with every leaf broadcast to the axes of its contraction.

    Raises:
        TypeError: The plan is no dict, or as in `fit_entry`.
        ValueError: A path is missing or unknown, or as in `fit_entry`.
    """
    if not isinstance(plan, dict):
        raise TypeError(
            f"A plan is a dict from names to entries, got {type(plan).__name__}."
        )
    names = [contraction.name for contraction in contractions]
    missing = [name for name in names if name not in plan]
    if missing:
        raise ValueError(f"The plan has no entry for the contractions {missing}.")
    for path in plan:
        if path not in names:
            nearest = difflib.get_close_matches(path, names, n=1, cutoff=0.0)
            raise ValueError(
                f"The plan has an entry for {path!r}, which is no contraction; the "
                f"nearest is {nearest}."
            )
    return {c.name: fit_entry(plan[c.name], c) for c in contractions}


def fit_entry(entry: Entry, contraction: Contraction) -> Entry:
    """Returns the entry with every leaf broadcast to the axes of the contraction.

    Raises:
        TypeError: It is no `Precision` or `SharedPrecision` of formats.
        ValueError: A leaf does not broadcast to the plan axes, or is NaN or infinite
            (unless it is traced).
    """
    axes = contraction.axes
    held = jax.tree.leaves(entry, is_leaf=lambda x: x is None or isinstance(x, Format))
    if not isinstance(entry, Precision | SharedPrecision) or not all(
        isinstance(fmt, Format) for fmt in held
    ):
        raise TypeError(
            f"The plan's entry of {contraction.name!r} must be a Precision or a "
            f"SharedPrecision of Formats, got {entry!r:.80}."
        )

    def fit_leaf(path: tuple[object, ...], leaf: jax.typing.ArrayLike) -> object:
        shape = np.shape(leaf)
        if not isinstance(leaf, Tracer) and not np.all(np.isfinite(leaf)):
            fault = f"is {leaf}; every field of a format must be finite"
        elif shape == axes:
            return leaf
        elif _broadcasts(shape, axes):
            return jnp.broadcast_to(leaf, axes)
        else:
            fault = (
                f"has the shape {shape}, which does not broadcast to the plan axes "
                f"{axes}"
            )
        field = jax.tree_util.keystr(path, simple=True, separator=".")
        raise ValueError(f"The plan's {field} of {contraction.name!r} {fault}.")

    return jax.tree_util.tree_map_with_path(fit_leaf, entry)


def _broadcasts(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    trailing = axes[max(len(axes) - len(shape), 0) :]
    return len(shape) <= len(axes) and all(
        size in (1, axis) for size, axis in zip(shape, trailing, strict=True)
    )
