"""Which dtypes the contractions of a program run in, given formats that are known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from adaprec_jax.contractions import Contraction
from adaprec_jax.contractions.kernels import Kernel, Kernels, Scales
from adaprec_jax.contractions.transform import recipes_for
from adaprec_jax.formats import describe
from adaprec_jax.scaling import Recipe
from adaprec_jax.targets import Target, block_kernel, kernel, pairs_of
from adaprec_jax.train import Program, record
from adaprec_jax.train.record import PackedPlan

# The roles of the operands of each product, as `record.OPERANDS` lists them.
_ROLES = (("activation", "weight"), ("gradient", "weight"), ("gradient", "activation"))


class Choice(NamedTuple):
    """What the products of one contraction became.

    Attributes:
        kernels: Their operand dtypes.
        reasons: For forward, dgrad and wgrad why it is emulated; "" where it is not.
    """

    kernels: Kernels
    reasons: tuple[str, str, str]


def choose(program: Program, packed: PackedPlan, target: Target) -> dict[str, Choice]:
    """Returns for each contraction the narrowest native dtypes that hold the formats.

    All layers of a scanned stack run in one dtype, and so do all steps asked about.

    Args:
        program: Its table and scaling recipes.
        packed: Formats in rows, of one step or along leading axes; not traced.
        target: What it is to run on.
    """
    packed = np.asarray(packed)
    return {
        c.name: _choice(program, c, packed[..., rows, :, :], target)
        for c, rows in record.places(program.table)
    }


def _choice(
    program: Program, contraction: Contraction, packed: Any, target: Target
) -> Choice:
    recipes = recipes_for(program.options.recipes, contraction)._asdict()
    kernels, reasons = [], []
    for k, roles in enumerate(_ROLES):
        fmts = (
            record.formats_of(packed[..., 2 * k, :]),
            record.formats_of(packed[..., 2 * k + 1, :]),
        )
        chosen = {role: recipes[role] for role in roles}
        if any(np.any(fmt.scaled) and chosen[role].in_blocks
               for role, fmt in zip(roles, fmts, strict=True)):  # fmt: skip
            product = Kernels._fields[k]
            found, why = _in_blocks(contraction, chosen, fmts, product, target)
        else:
            found, why = _in_one_unit(contraction, chosen, fmts, target)
        kernels.append(found)
        reasons.append(why)
    return Choice(Kernels(*kernels), (reasons[0], reasons[1], reasons[2]))


def _in_one_unit(
    contraction: Contraction,
    recipes: Mapping[str, Recipe],
    fmts: tuple[Any, Any],
    target: Target,
) -> tuple[Kernel, str]:
    """Returns the dtypes of operands with one scale each, or why there are none."""
    for role, recipe in recipes.items():
        if recipe.per_product and not recipe.in_blocks:
            return Kernel(), f"the scale differs within the {role}"
        if not (recipe.on_grid or recipe.in_blocks):
            return Kernel(), f"the {role}'s recipe has numbers of its own"
    pairs = pairs_of(target, contraction.primitive)
    found = Kernel(*kernel(pairs, *fmts))
    return found, _no_pair(pairs, *fmts, contraction, target) if found.emulated else ""


def _in_blocks(
    contraction: Contraction,
    recipes: Mapping[str, Recipe],
    fmts: tuple[Any, Any],
    product: str,
    target: Target,
) -> tuple[Kernel, str]:
    """Returns the dtypes of elements and scales of blocks, or why there are none."""
    blocks = []
    for (role, recipe), fmt in zip(recipes.items(), fmts, strict=True):
        if recipe.in_blocks is None or not np.all(fmt.scaled):
            (other,) = {*recipes} - {role}
            return Kernel(), f"only the {other} has blocks with scales"
        blocks.append(recipe.in_blocks)
    left, right = blocks
    if contraction.primitive != "dot_general" or not target.block_products:
        what = f"{contraction.primitive} of blocks with scales"
        return Kernel(), f"{target.title} has no native {what}"
    turned = [[s for p, s in b.rotations if p == product] for b in blocks]
    if turned[0] != turned[1]:
        return Kernel(), "its operands are rotated differently"
    sizes, title = (left.size, right.size), target.title
    if left.scale != right.scale:
        return Kernel(), f"{title} multiplies no blocks with different kinds of scales"
    pair = block_kernel(target, *fmts, sizes, left.scale)
    if pair is None:
        return Kernel(), (
            f"{title} multiplies no dtypes that hold {_names(*fmts)} in blocks of "
            f"{' and '.join(map(str, dict.fromkeys(sizes)))} with {left.scale} scales"
        )
    return Kernel(pair.left, pair.right, Scales(pair.size, pair.scale)), ""


def _no_pair(
    pairs: tuple[Any, ...],
    left: Any,
    right: Any,
    contraction: Contraction,
    target: Target,
) -> str:
    if not pairs:
        return f"{target.title} has no native {contraction.primitive}"
    return f"{target.title} multiplies no dtypes that hold {_names(left, right)}"


def _names(left: Any, right: Any) -> str:
    return " and ".join(dict.fromkeys(_named(fmt) for fmt in (left, right)))


def _named(fmt: Any) -> str:
    flat = {
        tuple(row) for row in zip(*(np.ravel(f).tolist() for f in fmt), strict=True)
    }
    names = sorted({describe(type(fmt)(*map(np.asarray, row))) for row in flat})
    return ", ".join(names)


def kernels_of(choices: Mapping[str, Choice]) -> dict[str, Kernels]:
    """Returns the kernels alone, as `Options.kernels` takes them.

    >>> kernels_of({"w": Choice(Kernels(), ("", "", ""))})["w"].forward.emulated
    True
    """
    return {name: choice.kernels for name, choice in choices.items()}
