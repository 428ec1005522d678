"""The verb `report`: a study as a page, tables and figures."""

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from adaprec_jax.cli.compare import metrics_and_margins
from adaprec_jax.cli.options import Margins, Metrics, Named
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import column
from adaprec_jax.studies.results import gathered
from adaprec_jax.studies.study import load_study


def report(
    study: Named,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the report.")],
    baseline: Annotated[
        str | None,
        typer.Option(help="The arm that the others are compared with; else float32."),
    ] = None,
    metrics: Metrics = None,
    margins: Margins = None,
    exploratory: Annotated[
        bool, typer.Option(help="Take runs as they are, and say what is wrong.")
    ] = False,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder of runs.")
    ] = Path("runs"),
) -> None:
    """Write a page, tables and figures of a study; the same bytes each time."""
    asked = metrics_and_margins(metrics, margins)
    results = gathered(load_study(study, runs), runs, exploratory=exploratory)
    made = _reporting()
    names = asked or [(name, None) for name in made.default_metrics(results)]
    columns = [column(results.arms, name, margin=margin) for name, margin in names]
    meant = baseline or made.default_baseline(results)
    typer.echo(str(made.report(results, meant, columns, out)))


def _reporting() -> ModuleType:
    """Returns the module that makes reports, which needs matplotlib and jinja2."""
    try:
        from adaprec_jax.studies import report
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("matplotlib", "jinja2"):
            raise
        raise InputError(
            f"A report needs {missing}, which is not installed: "
            "pip install 'adaprec-jax[report]'."
        ) from error
    return report
