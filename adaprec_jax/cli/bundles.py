"""The verbs that publish a study, repeat one, and set two runs side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from adaprec_jax.cli.options import AsJson, Named, Out, print_json
from adaprec_jax.cli.studies import Workers
from adaprec_jax.display import text_table
from adaprec_jax.runs import store
from adaprec_jax.studies import local, reproduce as again
from adaprec_jax.studies.difference import Difference, difference
from adaprec_jax.studies.publish import Terms, publish as write
from adaprec_jax.studies.study import Cell, load_study

NOT_REPRODUCED = 4
_SAID = {
    "equal": "bitwise equal",
    "consistent": "statistically consistent",
    "different": "different",
}
_SHOWN = 10


def add(app: typer.Typer) -> None:
    """Adds the verbs to the command."""
    for verb in (publish, reproduce, diff):
        app.command()(verb)


def publish(
    study: Named,
    *,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="A folder to be made.")],
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder of runs.")
    ] = Path("runs"),
    authors: Annotated[
        list[str] | None,
        typer.Option("--author", metavar="NAME", help="For the citation; repeatable."),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Of the data, an SPDX identifier.")
    ] = "CC-BY-4.0",
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A report to go with it.")
    ] = None,
    exploratory: Annotated[
        bool, typer.Option("--exploratory", help="Accept fewer than three seeds.")
    ] = False,
) -> None:
    """Write a study as a bundle that others can check and repeat."""
    terms = Terms(tuple(authors or ["Anonymous"]), licence, exploratory, report)
    typer.echo(str(write(load_study(study, runs), runs, out, terms)))


def reproduce(
    bundle: Annotated[Path, typer.Argument(help="The folder of a published study.")],
    *,
    runs: Annotated[
        int | None, typer.Option(min=1, help="How many runs; all if left out.")
    ] = None,
    allowed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-code", metavar="NAME", help="A package that may be imported."
        ),
    ] = None,
    workers: Workers = 1,
    out: Out = Path("reproduced"),
    as_json: AsJson = False,
) -> None:
    """Train runs of a published study again, and say whether they come out equal."""
    study = again.read(bundle, allowed or ())
    cells = again.sample(study, runs)
    jobs = again.jobs(study, cells, bundle)
    changes = again.changes(bundle)
    store.check_writable(out)
    for change in changes:
        typer.echo(f"note: {change}", err=True)
    every = [cell for job in jobs for cell in job]
    where = {cell.run_id: store.locate(out, cell.experiment) for cell in every}

    def ended(some: Sequence[Cell]) -> None:
        for cell in some:
            typer.echo(f"{cell.experiment.name} seed {cell.seed} has ended", err=True)

    hooks = local.Hooks(ended, lambda _: None, lambda text: typer.echo(text, err=True))
    faults = local.train(jobs, where, out, workers, hooks)
    found = again.compare(study, cells, bundle, out)
    verdict = again.worst(found)
    if as_json:
        tree = {
            "verdict": verdict,
            "runs": [each._asdict() for each in found],
            "environment": changes,
            "faults": faults,
        }
        print_json(tree)
    else:
        rows = [(each.name, _SAID[each.verdict], each.cause) for each in found]
        typer.echo(text_table(("run", "verdict", "first cause"), rows))
        for run_id, fault in faults.items():
            typer.echo(f"{run_id}: {fault}")
        typer.echo(f"\n{_SAID[verdict]}: {len(found)} of {len(study.cells)} runs")
    if verdict == "different":
        raise typer.Exit(NOT_REPRODUCED)


def diff(
    one: Annotated[str, typer.Argument(help="A run's directory, name or id.")],
    other: Annotated[str, typer.Argument(help="Another run.")],
    *,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Say in what two runs differ, and at which step they part."""
    found = difference(store.find(one, out), store.find(other, out))
    if as_json:
        print_json(_tree(found))
    else:
        typer.echo("\n".join(_told(found)))


def _tree(found: Difference) -> dict[str, Any]:
    where = found.parting
    return found._asdict() | {"parting": where and where._asdict()}


def _told(found: Difference) -> list[str]:
    lines = [
        f"setting {path}: {_text(a)} and {_text(b)}"
        for path, (a, b) in found.settings.items()
    ]
    lines += [f"environment: {each}" for each in found.environment]
    if found.data:
        lines.append(f"data: {found.data[0]} and {found.data[1]}")
    if found.parting:
        step, name, (a, b) = found.parting
        lines.append(f"they part at step {step}: {name} is {_text(a)} and {_text(b)}")
    results = [*found.results.items()]
    lines += [
        f"result {n}: {_text(a)} and {_text(b)}" for n, (a, b) in results[:_SHOWN]
    ]
    if len(results) > _SHOWN:
        lines.append(f"and {len(results) - _SHOWN} more results")
    return lines or ["nothing differs"]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
