"""The accelerators that are known: data files, each with its source."""

import functools
import json
from importlib import resources
from typing import NamedTuple, TypeAlias

Pair: TypeAlias = tuple[str, str]
"""The dtypes of the left and the right operand of a product."""


class BlockPair(NamedTuple):
    """Operands of a product whose blocks have scales of their own.

    Attributes:
        left: The dtype of the elements of the left operand.
        right: Of the right one.
        size: Elements of a block.
        scale: The dtype of the scales of both.
    """

    left: str
    right: str
    size: int
    scale: str


class Target(NamedTuple):
    """What is multiplied natively.

    Attributes:
        name: As in `names`.
        title: What it is.
        platform: "cpu", "cuda" or "tpu", as JAX lowers for it.
        matrix_products: Pairs of operand dtypes, the fastest first.
        convolutions: The same for convolutions.
        source: Where that is said.
        topology: What its compiler is asked for: a name for a TPU, else "".
        device: The description that the compiler takes of a GPU; "" for others.
        block_products: Matrix products with a scale for each block, the fastest first.
    """

    name: str
    title: str
    platform: str
    matrix_products: tuple[Pair, ...]
    convolutions: tuple[Pair, ...]
    source: str
    topology: str = ""
    device: str = ""
    block_products: tuple[BlockPair, ...] = ()


_FILES = resources.files("adaprec_jax.targets").joinpath("data")


def names() -> tuple[str, ...]:
    """Returns the targets that `get` knows.

    >>> names()
    ('b200', 'cpu', 'h100', 'tpu-v5e', 'tpu-v5p', 'tpu-v6e', 'tpu7x')
    """
    return tuple(sorted(file.name.removesuffix(".json") for file in _FILES.iterdir()))


@functools.cache
def get(name: str) -> Target:
    """Returns a target by its name.

    Raises:
        ValueError: There is none of that name.

    >>> get("h100").matrix_products[0]
    ('int8', 'int8')
    >>> get("h1000")
    Traceback (most recent call last):
    ValueError: Unknown target 'h1000'; there are b200, cpu, h100, tpu-v5e, ...
    """
    if name not in names():
        known = ", ".join(names())
        raise ValueError(f"Unknown target {name!r}; there are {known}.")
    fields = json.loads(_FILES.joinpath(f"{name}.json").read_text(encoding="utf-8"))
    for kind in ("matrix_products", "convolutions"):
        fields[kind] = tuple((left, right) for left, right in fields[kind])
    blocks = fields.pop("block_products", ())
    found = tuple(BlockPair(**pair) for pair in blocks)
    return Target(name, **fields, block_products=found)
