"""The dtypes that TPUs multiply, for every bundled config, as a Markdown table.

    pip install -e '.[aot-tpu]'
    python -m experiments.tpu

Each row is a config compiled for a TPU that is not there, for the plan of its first
step, as `adaprec compile` does. Of the products that XLA kept, "as planned" counts
those whose operand dtypes in the optimised HLO are the ones that the plan chose; "other
float32" counts multiplications of float32 that belong to no contraction of the plan.
Peak memory is what goes in and what is needed in between (what comes out takes the
place of the state that went in); it and the bytes that the step reads and writes stand
beside those of the float32 and the bfloat16 step of the same model. It exits with 1 if
a product is not as planned.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # Before JAX: nothing here is run.

import argparse
import collections
import functools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax

from adaprec_jax.native.ahead import Ahead
from adaprec_jax.runs import overrides
from adaprec_jax.runs.ahead import Line, Report, ahead
from adaprec_jax.runs.config import Constant, Experiment, SharedFormats
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import bundled, load

HEAD = (
    "config", "target", "operands", "as planned", "other float32",
    "peak, KiB", "to float32", "to bfloat16", "moved, KiB", "to float32", "to bfloat16",
)  # fmt: skip
BFLOAT16 = SharedFormats(activation="bfloat16", weight="bfloat16", gradient="bfloat16")
# What HLO calls the dtypes.
HLO = {
    "int4": "s4", "int8": "s8", "float8_e4m3fn": "f8e4m3fn", "float8_e5m2": "f8e5m2",
    "bfloat16": "bf16", "float16": "f16", "float32": "f32",
}  # fmt: skip
_KIB = 2**10


class Row(NamedTuple):
    """A config on a target, as the module says.

    Attributes:
        operands: How many products have which operands.
        products: How many XLA kept.
        planned: How many of them have the operands that were chosen.
        other: Multiplications of float32 that belong to no contraction.
        ahead: The program.
    """

    operands: "collections.Counter[str]"
    products: int
    planned: int
    other: int
    ahead: Ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", help="of `adaprec configs`")
    parser.add_argument("--target", action="append", help="as `adaprec compile` has it")
    given = parser.parse_args()
    print(*(f"| {name} " for name in HEAD), "|", sep="")
    print("| --- " * len(HEAD), "|", sep="")
    sound = True
    for target in given.target or ("tpu-v5e", "tpu7x"):
        for config in given.config or bundled():
            try:
                found = row(load(config), target)
                cells = (f"`{config}`", target, *told(config, target, found))
            except InputError as error:  # What cannot be compiled or read back.
                print(f"| `{config}` | {target} | {error} |", flush=True)
                sound = False
                continue
            print(*(f"| {cell} " for cell in cells), "|", sep="", flush=True)
            sound &= found.planned == found.products and not found.other
            jax.clear_caches()  # A hundred programs would not be forgotten by itself.
    sys.exit(0 if sound else 1)


def row(experiment: Experiment, target: str) -> Row:
    """Returns what the first step of an experiment becomes."""
    report = ahead(experiment, target)
    kept = [*_kept(report)]
    return Row(
        collections.Counter(" x ".join(dtypes) for _, dtypes in kept),
        len(kept),
        sum(
            sorted(dtypes) == sorted(HLO[each] for each in line.chosen.dtypes)
            for line, dtypes in kept
        ),
        sum("f32" in product.dtypes for product in report.other),
        report.ahead,
    )


def _kept(report: Report) -> Iterator[tuple[Line, tuple[str, str]]]:
    """Yields each product that XLA kept, and what HLO calls its operands."""
    for line in report.lines:
        for found in line.found:
            _, left, _, right = found.split()
            yield line, (left, right)


def told(config: str, target: str, found: Row) -> Iterator[str]:
    """Yields the cells of a row."""
    yield ", ".join(f"{count} {what}" for what, count in found.operands.items())
    yield f"{found.planned} of {found.products}"
    yield str(found.other)
    family = bundled()[config][0].stem.replace("_", "-")
    bases = [plain(family, name, target) for name in ("float32", "bfloat16")]
    here = size(found.ahead)
    for value, others in zip(here, zip(*bases, strict=True), strict=True):
        yield f"{value / _KIB:.0f}"
        yield from (f"{value / other:.2f}" for other in others)


@functools.cache
def plain(family: str, name: str, target: str) -> tuple[float, float]:
    """Returns the size of a model's step in float32 or bfloat16."""
    experiment = load(f"{family}-float32")
    if name != "float32":
        schedule = Constant(precision=BFLOAT16)
        experiment = overrides.apply(
            experiment, overrides.assignments({"schedule": schedule})
        )
    return size(ahead(experiment, target).ahead)


def size(compiled: Ahead) -> tuple[float, float]:
    """Returns the peak memory of a program, and the bytes that it moves."""
    if compiled.accessed is None:
        raise RuntimeError("This compiler does not say what a program moves.")
    return compiled.arguments + compiled.temporary, compiled.accessed


if __name__ == "__main__":
    main()
