"""What train steps become on GPUs and TPUs that are not there, as a Markdown table.

    pip install -e '.[aot-gpu,aot-tpu]'
    python -m experiments.native

Each row is a bundled config compiled for a target, as `adaprec compile` does: how many
of its products have native operands (those that XLA dropped, because nothing needs
their result, are not counted), how many the kernels of the last column form, and what
memory the step takes and moves beside that of the float32 config.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # Before JAX: nothing here is run.

import argparse
import collections
from collections.abc import Iterator

from adaprec_jax.runs.ahead import Report, ahead
from adaprec_jax.runs.load import load

CONFIGS = (
    "digits-int8", "digits-cpt", "digits-bf16", "shakespeare-fp8", "vit-int8",
    "lstm-int8", "resnet-int8", "experts-int8", "graph-int8",
)  # fmt: skip
TARGETS = ("h100", "tpu-v5e", "tpu7x")
HEAD = ("config", "target", "native", "temporary", "moved", "kernels", "not native")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", help="of `adaprec configs`")
    parser.add_argument("--target", action="append", help="as `adaprec compile` has it")
    given = parser.parse_args()
    print(*(f"| {name} " for name in HEAD), "|", sep="")
    print("| --- " * len(HEAD), "|", sep="")
    for row in rows(given.config or CONFIGS, given.target or TARGETS):
        print(*(f"| {cell} " for cell in row), "|", sep="", flush=True)


def rows(configs: list[str], targets: list[str]) -> Iterator[tuple[str, ...]]:
    for config in configs:
        for target in targets:
            plain = ahead(load(f"{config.rpartition('-')[0]}-float32"), target)
            yield row(config, target, ahead(load(config), target), plain)


def row(config: str, target: str, report: Report, plain: Report) -> tuple[str, ...]:
    left = [line for line in report.lines if line.found]
    native = [line for line in left if not line.reason]
    kernels = collections.Counter(each for line in left for each in line.found)
    reasons = collections.Counter(line.reason for line in left if line.reason)
    return (
        f"`{config}`",
        target,
        f"{len(native)} of {len(left)}",
        ratio(report.ahead.temporary, plain.ahead.temporary),
        ratio(report.ahead.accessed, plain.ahead.accessed),
        listed(kernels),
        listed(reasons) or "",
    )


def ratio(value: float | None, base: float | None) -> str:
    return "n/a" if value is None or not base else f"{value / base:.2f}"


def listed(counts: "collections.Counter[str]") -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


if __name__ == "__main__":
    main()
