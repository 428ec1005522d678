"""A plan says which formats every contraction of a table uses: path -> entry.

Its leaves are data, scalars or arrays over the plan axes of the contraction (the layers
of a scanned stack, experts), so a plan may be traced, mapped and carried. Describing,
hashing and checking happen on the host.
"""

import fnmatch
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int32, PyTree

from adaprec_jax import formats
from adaprec_jax.contractions.fitting import fit, fit_entry
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.display import Shown, html_table
from adaprec_jax.formats import Format
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Plan,
    Precision,
    SharedPrecision,
    Wgrad,
    format_names,
    separate,
)


def integers(
    forward_bits: int | Int32[Array, "*axes"], gradient_bits: int | Int32[Array, ""]
) -> SharedPrecision:
    """Returns signed integers for activation and weight, and for the gradient.

    >>> entry = integers(4, 8)
    >>> formats.describe(entry.weight), formats.describe(entry.gradient)
    ('int4', 'int8')
    """
    forward = formats.integer(forward_bits)
    return SharedPrecision(forward, forward, formats.integer(gradient_bits))


def fill(contraction: Contraction, entry: Entry) -> Entry:
    """Adapts an entry that is meant for any contraction to this one.

    Each operand takes the formats of its own role: where the weight slot holds an
    activation, as in both products of attention, it takes the activation's formats.
    Leaves are broadcast to the plan axes.

    Raises:
        ValueError: A leaf does not broadcast to the plan axes, or is NaN or infinite
            (unless it is traced).

    >>> import jax.numpy as jnp
    >>> from adaprec_jax.contractions import contraction_table
    >>> scores = lambda params, queries, keys: queries @ keys
    >>> table = contraction_table(scores, {}, jnp.eye(2), jnp.eye(2))
    >>> (product,) = table.contractions
    >>> product.roles
    ('activation', 'activation')
    >>> int4, int8 = formats.get("int4"), formats.get("int8")
    >>> formats.describe(fill(product, SharedPrecision(int4, int8, int8)).weight)
    'int4'
    """
    left, right = contraction.roles
    if isinstance(entry, SharedPrecision):
        filled = by_slot(contraction, entry)
    else:
        forward = entry.forward._asdict()
        backward = {
            "activation": entry.wgrad.activation,
            "weight": entry.dgrad.weight,
        }
        filled = Precision(
            Forward(forward[left], forward[right]),
            Dgrad(entry.dgrad.gradient, backward[right]),
            Wgrad(entry.wgrad.gradient, backward[left]),
        )
    return fit_entry(filled, contraction)


def by_slot(contraction: Contraction, entry: SharedPrecision) -> SharedPrecision:
    """Returns for each operand the format of the role of what stands there.

    >>> from adaprec_jax.testing import table
    >>> entry = integers(4, 8)._replace(activation=formats.get("int6"))
    >>> [formats.describe(by_slot(c, entry).weight) for c in table().contractions]
    ['int4', 'int6', 'int4']
    """
    left, right = contraction.roles
    shared = {"activation": entry.activation, "weight": entry.weight}
    return SharedPrecision(shared[left], shared[right], entry.gradient)


def uniform(table: Table, entry: Entry) -> Plan:
    """Returns the plan that gives every contraction the same entry, `fill`ed.

    Raises:
        ValueError: As in `fill`, for some contraction.

    >>> import jax.numpy as jnp
    >>> from adaprec_jax.contractions import contraction_table
    >>> layers = lambda p, x: x @ p["Dense_0"]["kernel"] @ p["Dense_1"]["kernel"]
    >>> params = {name: {"kernel": jnp.eye(2)} for name in ("Dense_0", "Dense_1")}
    >>> table = contraction_table(layers, params, jnp.eye(2))
    >>> print(describe(uniform(table, integers(4, 8))))
    Dense_0: activation int4, weight int4, gradient int8
    Dense_1: activation int4, weight int4, gradient int8
    """
    return {
        contraction.name: fill(contraction, entry) for contraction in table.contractions
    }


def check(plan: Plan, table: Table) -> None:
    """Checks that `plan` says something usable about each contraction of `table`.

    The functions of `adaprec_jax.contractions` check their plans in the same way.

    Raises:
        ValueError: A path is missing or unknown, a leaf does not broadcast to the plan
            axes, or a leaf is NaN or infinite (unless it is traced).

    >>> check({"Dense_0": integers(4, 8)}, Table((), ()))
    Traceback (most recent call last):
    ValueError: The plan has an entry for 'Dense_0', which is no contraction; the
    nearest is [].
    """
    fit(plan, table.contractions)


def match(pattern: str, table: Table) -> dict[str, Bool[np.ndarray, "..."]]:
    """Returns the contractions that a path pattern means, and which of their layers.

    A pattern is a path in which `*` stands for any part of one component and `**` for
    any number of components; or "first" or "last", the first or last contraction that
    multiplies by a parameter. After an `@` it may name layers along the first plan
    axis, as an index or a slice: "Block/**@0", "Block/**@-2:", "**/Dense_0@:4".

    Returns:
        Path -> mask over the plan axes.

    Raises:
        ValueError: The pattern matches nothing, or what follows `@` is no slice.

    >>> import jax.numpy as jnp
    >>> from adaprec_jax.contractions import contraction_table
    >>> layers = lambda p, x: x @ p["Dense_0"]["kernel"] @ p["Dense_1"]["kernel"]
    >>> params = {name: {"kernel": jnp.eye(2)} for name in ("Dense_0", "Dense_1")}
    >>> table = contraction_table(layers, params, jnp.eye(2))
    >>> {name: bool(mask) for name, mask in match("last", table).items()}
    {'Dense_1': True}
    """
    glob, _, layers = pattern.partition("@")
    weighted = [c.name for c in table.contractions if "weight" in c.roles]
    ends = {"first": weighted[:1], "last": weighted[-1:]}

    def matches(name: str) -> bool:
        if glob in ends and glob not in table.names:
            return name in ends[glob]
        return name == glob or _glob(glob.split("/"), name.split("/"))

    masks = {
        contraction.name: _layers(pattern, layers, contraction.axes)
        for contraction in table.contractions
        if matches(contraction.name)
    }
    matched = {name: mask for name, mask in masks.items() if mask.any()}
    if not matched:
        raise ValueError(
            f"The rule {pattern!r} matches none of the contractions "
            f"{list(table.names)} (or none of their layers)."
        )
    return matched


def assign(
    patterns: Sequence[str], table: Table
) -> dict[str, Int32[np.ndarray, "..."]]:
    """Returns for each contraction and layer the first of the patterns to match.

    Returns:
        Path -> index of the pattern over the plan axes; `len(patterns)` where none
        matches.

    Raises:
        ValueError: A pattern matches nothing, or nothing that an earlier one left.

    >>> import jax.numpy as jnp
    >>> from adaprec_jax.contractions import contraction_table
    >>> layers = lambda p, x: x @ p["Dense_0"]["kernel"] @ p["Dense_1"]["kernel"]
    >>> params = {name: {"kernel": jnp.eye(2)} for name in ("Dense_0", "Dense_1")}
    >>> table = contraction_table(layers, params, jnp.eye(2))
    >>> {name: int(index) for name, index in assign(["first", "**"], table).items()}
    {'Dense_0': 0, 'Dense_1': 1}
    """
    unmatched = np.int32(len(patterns))
    owner = {c.name: np.full(c.axes, unmatched) for c in table.contractions}
    for index, pattern in enumerate(patterns):
        left = {
            name: mask & (owner[name] == unmatched)
            for name, mask in match(pattern, table).items()
        }
        if not any(mask.any() for mask in left.values()):
            raise ValueError(
                f"The rule {pattern!r} has no effect: the first match wins, and the "
                f"rules before it, {list(patterns[:index])}, match all that it does."
            )
        for name, mask in left.items():
            owner[name] = np.where(mask, np.int32(index), owner[name])
    return owner


def bits(plan: Plan) -> PyTree[Int32[Any, "..."]]:
    """Returns the plan with the storage width in bits in the place of each format.

    >>> tuple(int(width) for width in bits({"Dense_0": integers(4, 8)})["Dense_0"])
    (4, 4, 8)
    """
    return jax.tree.map(formats.bits, plan, is_leaf=_is_format)


def describe(plan: Plan) -> str:
    """Returns one line of format names per path; layers that differ are listed.

    >>> int4, int8 = formats.get("int4"), formats.get("int8")
    >>> print(describe({"Dense_0": integers(4, 8), "Dense_1": integers(8, 8)}))
    Dense_0: activation int4, weight int4, gradient int8
    Dense_1: activation int8, weight int8, gradient int8
    """
    return "\n".join(f"{path}: {describe_entry(entry)}" for path, entry in plan.items())


def describe_entry(entry: Entry) -> str:
    """Returns the operands of an entry with the names of their formats.

    >>> describe_entry(integers(4, 8))
    'activation int4, weight int4, gradient int8'
    """
    return ", ".join(map(" ".join, format_names(entry).items()))


def show(plan: Plan) -> Shown:
    """Returns the plan to look at: what `describe` says, in a notebook as a table.

    >>> show({"Dense_0": integers(4, 8)})
    Dense_0: activation int4, weight int4, gradient int8
    """
    shared = all(isinstance(entry, SharedPrecision) for entry in plan.values())
    named = {
        path: format_names(entry if shared else separate(entry))
        for path, entry in plan.items()
    }
    operands = dict.fromkeys(operand for names in named.values() for operand in names)
    rows = [(path, *names.values()) for path, names in named.items()]
    return Shown(describe(plan), html_table(("contraction", *operands), rows))


def digest(plan: Plan) -> str:
    """Returns a hash of paths, kinds of entry and formats: equal plans, equal digests.

    >>> digest({"a": integers(4, 8)}) == digest({"a": integers(8, 8)})
    False
    """
    hasher = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(plan):
        array = np.asarray(leaf)
        hasher.update(f"{_field(path)} {array.dtype} {array.shape}".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()[:16]


def _is_format(node: object) -> bool:
    return isinstance(node, Format)


def _field(path: tuple[object, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _glob(pattern: Sequence[str], name: Sequence[str]) -> bool:
    if not pattern:
        return not name
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        return any(_glob(rest, name[start:]) for start in range(len(name) + 1))
    return bool(name) and fnmatch.fnmatchcase(name[0], head) and _glob(rest, name[1:])


def _layers(
    pattern: str, layers: str, axes: tuple[int, ...]
) -> Bool[np.ndarray, "..."]:
    """Returns the mask over the plan axes of what follows the `@` of `pattern`."""
    if not layers:
        return np.ones(axes, bool)
    first, colon, last = layers.partition(":")
    try:
        start, stop = (int(bound) if bound else None for bound in (first, last))
    except ValueError:
        raise ValueError(
            f"The rule {pattern!r} must name layers as an index or a slice after '@', "
            f"for instance '@0' or '@-2:', got {layers!r}."
        ) from None
    if start is not None and not colon:
        stop = start + 1 or None
    mask = np.zeros(axes, bool)
    if axes:
        mask[start:stop] = True
    return mask
