"""`adaprec compile`: a train step for a device that need not be there."""

import collections
import os
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaprec_jax import targets
from adaprec_jax.cli.options import AsJson, Config, Seed, Settings, given, print_json
from adaprec_jax.display import text_table
from adaprec_jax.runs import imports
from adaprec_jax.runs.errors import InputError

if TYPE_CHECKING:  # They import JAX.
    from adaprec_jax.contractions.kernels import Kernel
    from adaprec_jax.runs.ahead import Report
    from adaprec_jax.runs.config import Experiment

_MIB = 2**20


def compile_step(
    config: Config,
    *,
    target: Annotated[
        str, typer.Option(help="A device, as `adaprec formats --target all` lists.")
    ],
    settings: Settings = None,
    seed: Seed = None,
    plan_at: Annotated[int, typer.Option(help="Step whose plan is compiled.")] = 0,
    devices: Annotated[
        int | None, typer.Option(help="Short for --set devices=N.")
    ] = None,
    topology: Annotated[
        str, typer.Option(help="How the chips of a TPU slice lie, as 2x4.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Compile the train step for a device, and print what each product became."""
    _check(target, targets.names())
    if not re.fullmatch(r"(\d+(x\d+){1,2})?", topology):
        raise InputError(f"--topology must be such as 2x4 or 2x2x2, got {topology}.")
    several = [] if devices is None else [f"devices={devices}"]
    experiment = given(config, [*(settings or ()), *several], seed)
    imports.check(experiment)
    # A device that is here is not asked: it would be taken for the one compiled for.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from adaprec_jax.runs.ahead import ahead

    report = ahead(experiment, target, plan_at, topology)
    if as_json:
        print_json(_tree(report))
    else:
        _print(report)


def print_products(experiment: "Experiment", target: str, *, as_json: bool) -> None:
    """Prints what each product is to become on a device, without compiling it.

    Raises:
        InputError: There is no such device.
    """
    _check(target, targets.names())
    from adaprec_jax.runs.ahead import planned

    found = planned(experiment, target)
    rows = [
        (name, product, kernel, reason)
        for name, choice in found.choices.items()
        for product, kernel, reason in zip(
            ("forward", "dgrad", "wgrad"), choice.kernels, choice.reasons, strict=True
        )
    ]
    if as_json:
        fields = ("contraction", "product", "chosen", "scales", "reason")
        products = [
            dict(zip(fields, (*where, k.dtypes, _scales(k), reason), strict=True))
            for *where, k, reason in rows
        ]
        print_json({"products": products, "executables": found.executables})
        return
    head = ("contraction", "product", f"on {targets.get(target).title}, in step 0")
    cells = [
        (*where, f"emulated: {reason}" if reason else str(kernel))
        for *where, kernel, reason in rows
    ]
    typer.echo(text_table(head, cells))
    typer.echo(_executables(found.executables))


def print_support(target: str, *, as_json: bool) -> None:
    """Prints which dtypes multiply two operands of each format, by device."""
    _check(target, (*targets.names(), "all"))
    chosen = targets.names() if target == "all" else (target,)
    found = {name: targets.support(targets.get(name)) for name in chosen}
    if as_json:
        print_json(found)
        return
    head = ("format", *(f"{name}{part}" for name in chosen for part in ("", " conv")))
    rows = [
        (fmt, *(_pair(pair) for name in chosen for pair in found[name][fmt]))
        for fmt in found[chosen[0]]
    ]
    typer.echo(text_table(head, rows))
    for name in chosen:
        typer.echo(f"{name}: {targets.get(name).title}; {targets.get(name).source}")


def _pair(pair: targets.Pair) -> str:
    """Returns the dtype of both operands in short; a dash where it is emulated."""
    return "-" if pair == targets.EMULATED else pair[0].replace("float", "f")


def _check(target: str, known: tuple[str, ...]) -> None:
    if target not in known:
        raise InputError(f"--target must be one of {', '.join(known)}, got {target}.")


def _tree(report: "Report") -> dict[str, Any]:
    """Returns the report as JSON values."""
    return {
        "products": [
            line._asdict()
            | {"chosen": line.chosen.dtypes, "scales": _scales(line.chosen)}
            for line in report.lines
        ],
        "other": [product._asdict() for product in report.other],
        "collectives": [each._asdict() for each in report.ahead.found.collectives],
        "executables": report.executables,
        **_numbers(report),
    }


def _scales(chosen: "Kernel") -> dict[str, Any] | None:
    return chosen.scales and chosen.scales._asdict()


def _numbers(report: "Report") -> dict[str, float | None]:
    compiled = report.ahead
    return {
        "casts": compiled.found.casts,
        "transposes": compiled.found.transposes,
        "temporary_bytes": compiled.temporary,
        "argument_bytes": compiled.arguments,
        "accessed_bytes": compiled.accessed,
    }


def _print(report: "Report") -> None:
    head = ("contraction", "product", "operands", "became")
    rows = [
        (
            line.contraction,
            line.product,
            f"emulated: {line.reason}" if line.reason else str(line.chosen),
            ", ".join(line.found) or "nothing is left of it",
        )
        for line in report.lines
    ]
    typer.echo(text_table(head, rows))
    typer.echo()
    for product in report.other:
        typer.echo(f"beside the plan: {product.kernel} {' x '.join(product.dtypes)}, "
                   f"{product.op_name}")  # fmt: skip
    spoken = collections.Counter(
        f"{each.operation} {', '.join(each.results)}"
        for each in report.ahead.found.collectives
    )
    for what, count in spoken.items():
        typer.echo(f"between devices: {count} {what}")
    for name, value in _numbers(report).items():
        typer.echo(f"{name.replace('_', ' ')}: {_amount(name, value)}")
    typer.echo(_executables(report.executables))


def _executables(count: int | None) -> str:
    several = "the schedule learns, so as many as its plans need"
    return f"executables of the whole schedule: {several if count is None else count}"


def _amount(name: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value / _MIB:.2f} MiB" if name.endswith("bytes") else f"{value}"
