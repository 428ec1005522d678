"""The verb `compare`: what a study says, and what it does not."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaprec_jax.cli import facts
from adaprec_jax.cli.options import AsJson, Margins, Metrics, Named, print_json
from adaprec_jax.cost import carbon, devices
from adaprec_jax.cost.lenses import LENSES
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import Column, column, until
from adaprec_jax.studies.results import Results, gathered
from adaprec_jax.studies.study import load_study

if TYPE_CHECKING:  # SciPy is slow to import
    from adaprec_jax.studies.compare import Comparison


def compare(  # noqa: PLR0913 (one option for each choice)
    study: Named,
    *,
    baseline: Annotated[
        str, typer.Option(help="The arm that the others are compared with.")
    ],
    metrics: Metrics = None,
    margins: Margins = None,
    higher: Annotated[
        bool | None,
        typer.Option("--higher/--lower", help="Which is better; for unknown names."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="NAME=VALUE",
            help="Compare steps and bit operations up to it, as "
            "validation/accuracy=0.9; repeatable.",
        ),
    ] = None,
    lenses: Annotated[
        list[str] | None,
        typer.Option(
            "--lens",
            help=f"Compare the cost up to each target too, by one of "
            f"{', '.join(LENSES)}; repeatable.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="As of `cost`.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="As of `cost`: say the carbon of energies; needs --pue."),
    ] = None,
    pue: Annotated[float | None, typer.Option(help="As of `cost`.")] = None,
    best_of: Annotated[
        int | None, typer.Option(min=1, help="Print the best of so many runs, too.")
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(help="Split what each schedule gains into what it is due to."),
    ] = False,
    exploratory: Annotated[
        bool, typer.Option(help="Take runs as they are, and say what is wrong.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of runs.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """Say which arms of a study are better, worse, equivalent, or not known to be."""
    asked = metrics_and_margins(metrics, margins)
    wanted = [facts.target(each) for each in targets or ()]
    if not asked and not wanted:
        raise InputError("compare needs a --metric or a --target.")
    if lenses and not wanted:
        raise InputError("--lens compares the cost up to a target: it needs --target.")
    if grid and not lenses:
        raise InputError("--grid is of the energy by a lens: it needs --lens.")
    looked = facts.lenses(lenses or [], device)
    facts.check(grid, pue, None, None, None, device)
    chosen = facts.checked(lambda: devices.device(device)) if device else None
    place = facts.checked(lambda: carbon.grid(grid)) if grid else None
    # SciPy is slow to import, and other verbs do without.
    from adaprec_jax.cli import verdicts
    from adaprec_jax.studies.compare import compare as judge

    results = gathered(load_study(study, out), out, exploratory=exploratory)
    columns = [
        column(results.arms, name, margin=margin, higher=higher)
        for name, margin in asked
    ]
    costs = []
    for name, value in wanted:
        steps, work = until(results.arms, name, value)
        columns += (steps, work)
        costs += _costs(results, steps, looked, chosen)
    found = judge(results, baseline, [*columns, *costs])
    if place is not None and pue is not None:
        found = _carbon(found, costs, pue, place)
    best = verdicts.best_of(results, columns[: len(asked)], best_of)
    splits = []
    if controls:
        from adaprec_jax.studies.split import split

        splits = split(results, baseline, columns[: len(asked)])
    if as_json:
        more = {"best_of": [*best.values()], "controls": splits}
        print_json(verdicts.plain(found) | verdicts.plain(more))
        return
    said = [*verdicts.lines(found, best), *verdicts.split_lines(splits)]
    typer.echo("\n".join(said))


def _costs(
    results: Results,
    steps: Column,
    lenses: Sequence[str],
    device: devices.Device | None,
) -> list[Column]:
    """Returns the cost up to a target through each lens; it traces with JAX."""
    if not lenses:
        return []
    from adaprec_jax.studies.cost_columns import cost_until

    return [cost_until(results.arms, steps, lens, device) for lens in lenses]


def _carbon(
    found: "Comparison", costs: Sequence[Column], pue: float, grid: carbon.Grid
) -> "Comparison":
    """Returns the comparison with the carbon of each energy."""
    from adaprec_jax.studies.cost_columns import with_carbon

    for each in costs:
        if each.name.startswith("J "):
            found = with_carbon(found, each, pue, grid)
    return found


def metrics_and_margins(
    metrics: Sequence[str] | None, margins: Sequence[float] | None
) -> list[tuple[str, float | None]]:
    """Returns each metric with its margin.

    Raises:
        InputError: There are margins, but not one for each metric.
    """
    metrics, margins = list(metrics or ()), list(margins or ())
    if margins and len(margins) != len(metrics):
        raise InputError(
            f"--margin is given {len(margins)} times for {len(metrics)} of --metric; "
            "each metric has a margin of its own."
        )
    return [*zip(metrics, margins or [None] * len(metrics), strict=True)]
