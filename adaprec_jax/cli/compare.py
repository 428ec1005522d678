"""The verb `compare`: what a study says, and what it does not."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from adaprec_jax.cli.options import AsJson, Margins, Metrics, Named, print_json
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import column, until
from adaprec_jax.studies.results import gathered
from adaprec_jax.studies.study import load_study


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
    wanted = [_target(each) for each in targets or ()]
    if not asked and not wanted:
        raise InputError("compare needs a --metric or a --target.")
    # SciPy is slow to import, and other verbs do without.
    from adaprec_jax.cli import verdicts
    from adaprec_jax.studies.compare import compare as judge

    results = gathered(load_study(study, out), out, exploratory=exploratory)
    columns = [
        column(results.arms, name, margin=margin, higher=higher)
        for name, margin in asked
    ]
    for name, value in wanted:
        columns += until(results.arms, name, value)
    found = judge(results, baseline, columns)
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


def _target(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        target = float(value)
    except ValueError:
        target = math.nan
    if not equals or not math.isfinite(target):
        raise InputError(f"--target takes NAME=VALUE with a number, got {text!r}.")
    return name, target
