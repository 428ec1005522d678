"""Which dtypes the contractions of a program run in, given formats that are known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from adaprec_jax.contractions import Contraction
from adaprec_jax.contractions.kernels import Kernel, Kernels
from adaprec_jax.contractions.transform import recipes_for
from adaprec_jax.formats import describe
from adaprec_jax.scaling import Recipe
from adaprec_jax.targets import Target, kernel, pairs_of
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
        left, right = (record.formats_of(packed[..., 2 * k + side, :])
                       for side in (0, 1))  # fmt: skip
        why = _emulated(contraction, {role: recipes[role] for role in roles})
        pairs = () if why else pairs_of(target, contraction.primitive)
        found = Kernel(*kernel(pairs, left, right))
        if found.emulated and not why:
            why = _no_pair(pairs, left, right, contraction, target)
        kernels.append(found)
        reasons.append(why)
    return Choice(Kernels(*kernels), (reasons[0], reasons[1], reasons[2]))


def _emulated(contraction: Contraction, recipes: Mapping[str, Recipe]) -> str:
    """Returns why no dtype can hold the operands, whatever their formats; or ""."""
    for role, recipe in recipes.items():
        if recipe.per_product:
            return f"the scale differs within the {role}"
        if not recipe.on_grid:
            return f"the {role}'s recipe has numbers of its own"
    return ""


def _no_pair(
    pairs: tuple[Any, ...],
    left: Any,
    right: Any,
    contraction: Contraction,
    target: Target,
) -> str:
    if not pairs:
        return f"{target.title} has no native {contraction.primitive}"
    named = " and ".join(dict.fromkeys(_named(fmt) for fmt in (left, right)))
    return f"{target.title} multiplies no dtypes that hold {named}"


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
