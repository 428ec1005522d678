"""`adaprec compile`: a train step for a device that need not be there."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaprec_jax.cli.options import AsJson, Config, Seed, Settings, given, print_json
from adaprec_jax.display import text_table
from adaprec_jax.runs import imports
from adaprec_jax.runs.errors import InputError

if TYPE_CHECKING:  # It imports JAX.
    from adaprec_jax.runs.ahead import Report

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
    as_json: AsJson = False,
) -> None:
    """Compile the train step for a device, and print what each product became."""
    from adaprec_jax.targets.target import names

    if target not in names():
        raise InputError(f"--target must be one of {', '.join(names())}, got {target}.")
    experiment = given(config, settings, seed)
    imports.check(experiment)
    # A device that is here is not asked: it would be taken for the one compiled for.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from adaprec_jax.runs.ahead import ahead

    report = ahead(experiment, target, plan_at)
    if as_json:
        print_json(_tree(report))
    else:
        _print(report)


def _tree(report: "Report") -> dict[str, Any]:
    """Returns the report as JSON values."""
    return {
        "products": [
            line._asdict() | {"chosen": line.chosen, "found": line.found}
            for line in report.lines
        ],
        "other": [product._asdict() for product in report.other],
        "executables": report.executables,
        **_numbers(report),
    }


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
            f"emulated: {line.reason}" if line.reason else " x ".join(line.chosen),
            ", ".join(line.found) or "nothing is left of it",
        )
        for line in report.lines
    ]
    typer.echo(text_table(head, rows))
    typer.echo()
    for product in report.other:
        typer.echo(f"beside the plan: {product.kernel} {' x '.join(product.dtypes)}, "
                   f"{product.op_name}")  # fmt: skip
    for name, value in _numbers(report).items():
        typer.echo(f"{name.replace('_', ' ')}: {_amount(name, value)}")
    several = "the schedule learns, so as many as its plans need"
    count = several if report.executables is None else report.executables
    typer.echo(f"executables of the whole schedule: {count}")


def _amount(name: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value / _MIB:.2f} MiB" if name.endswith("bytes") else f"{value}"
