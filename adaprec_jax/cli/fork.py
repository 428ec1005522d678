"""The verb `fork`: many plans from one checkpoint, and the value of a bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaprec_jax.cli.options import AsJson, Out, drawing, print_json
from adaprec_jax.cli.studies import (
    UNFINISHED,
    DryRun,
    Packed,
    Workers,
    exit_code,
    on_this_machine,
    told,
    trained,
    tree_of,
)
from adaprec_jax.display import text_table
from adaprec_jax.runs import format_names, store
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.studies import forking
from adaprec_jax.studies.forking import Fork
from adaprec_jax.studies.states import count, holes
from adaprec_jax.studies.study import Study, save

if TYPE_CHECKING:  # It imports SciPy.
    from adaprec_jax.studies.worth import Worth

_ROLES = ("activation", "weight", "gradient")
_SUFFIXES = (".png", ".svg", ".pdf")


def fork(  # noqa: PLR0913 (one option for each thing to choose)
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Directories, names or ids; several differ in their seeds alone.",
        ),
    ],
    *,
    at: Annotated[int, typer.Option(help="Step of the checkpoint.")],
    bits: Annotated[
        str | None, typer.Option(help="Bits of integers to try, as 3,4,6,8.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Another format to try; repeatable."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="each, all, or a pattern of paths, as of per_layer; repeatable."
        ),
    ] = None,
    phases: Annotated[
        str,
        typer.Option(
            help="How many equal parts of what is left, or parts of the whole run, as "
            "0.5:0.75,0.75:1."
        ),
    ] = "1",
    roles: Annotated[
        str, typer.Option(help="Of the tensors that are changed.")
    ] = "activation,weight",
    metric: Annotated[
        str, typer.Option(help="The result by which a bit is valued.")
    ] = "test/float32/loss",
    name: Annotated[
        str | None, typer.Option(help="Of the study of all branches.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a heat map, a .png, .svg or .pdf."),
    ] = None,
    dry_run: DryRun = False,
    workers: Workers = 1,
    packed: Packed = True,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train what one checkpoint would become under other formats, and value a bit.

    Every combination of formats, layers and phases is a branch, beside one that goes on
    as it was. Branches are runs of a study, which `status`, `compare` and `retry` know;
    the run that is forked stays as it is.
    """
    names, chosen = _formats(bits, formats), _roles(roles)
    if figure and figure.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"--figure must end in one of {', '.join(_SUFFIXES)}, got {str(figure)!r}."
        )
    parents = forking.parents_of([store.find(each, out) for each in runs], at)
    first = parents[0].experiment
    spans = forking.phases_of(phases, at, first.steps)
    patterns = ["**" if each == "all" else each for each in layers or ["each"]]
    if not dry_run:
        store.check_writable(out)
    if figure:
        with drawing():
            import matplotlib as _  # noqa: F401  (says so before anything is trained)
    grounds = [forking.ground(each, patterns) for each in parents]
    changes = forking.changes_of([*grounds[0].masks], names, chosen, spans)
    found = forking.fork(
        parents, at, changes, grounds, name or f"{first.name[:40]}-fork{at}"
    )
    if dry_run:
        print_json(_tree(found)) if as_json else typer.echo(_priced(found))
        return
    typer.echo(_priced(found), err=True)
    save(found.study, out)
    forking.begin(found, parents, out, packed=packed)
    cells, faults = trained(
        found.study, out, UNFINISHED, on_this_machine(workers), packed=packed
    )
    if holes(count(cells)):
        print_json(tree_of(found.study, cells, faults)) if as_json else typer.echo(
            told(found.study, cells, faults)
        )
        raise typer.Exit(exit_code(cells, faults))
    _tell(found, out, metric, figure, as_json=as_json)


def _tell(
    found: Fork, out: Path, metric: str, figure: Path | None, *, as_json: bool
) -> None:
    """Prints the value of a bit, and draws it if asked to."""
    # SciPy is slow to import, and other verbs do without.
    from adaprec_jax.cli import verdicts
    from adaprec_jax.studies.columns import column
    from adaprec_jax.studies.results import gathered
    from adaprec_jax.studies.worth import worth

    results = gathered(found.study, out, exploratory=True)
    chosen = column(results.arms, metric)
    table = worth(results, chosen)
    if figure:
        _draw(table, chosen.name, figure)
    if as_json:
        told = {"metric": chosen.name, "worth": verdicts.plain(table)}
        print_json(_tree(found) | told | {"notes": [*results.notes]})
        return
    better = "higher" if chosen.higher else "lower"
    head = (
        "layers", "steps", "formats", "10^9 bit operations", "difference",
        "95 % interval", "by 10^9 bit operations", "95 % interval ", "p",
    )  # fmt: skip
    rows = [
        (
            each.layers, f"{each.start} to {each.end}", each.formats,
            f"{each.gbitops:+.4g}", f"{each.difference.estimate + 0.0:+.4g}",
            verdicts.ends(each.difference.low, each.difference.high),
            f"{each.per_gbitop.estimate + 0.0:+.3g}",
            verdicts.ends(each.per_gbitop.low, each.per_gbitop.high),
            verdicts.chance(each.p),
        )
        for each in table
    ]  # fmt: skip
    caption = f"{chosen.name}, {better} is better: each branch minus the run as it was"
    lines = [text_table(head, rows, caption=caption), ""]
    lines += [f"{found.study.name}: {_counted(found.study, table)}", *results.notes]
    typer.echo("\n".join(lines + ([str(figure)] if figure else [])))


def _counted(study: Study, table: Sequence["Worth"]) -> str:
    runs = table[0].runs
    if runs == 1:
        return "one run, so that there is no interval; fork several seeds for one"
    return (
        f"{runs} runs, paired by seed; p-values are adjusted for {len(table)} plans "
        "(Holm)"
    )


def _draw(table: Sequence["Worth"], metric: str, path: Path) -> None:
    with drawing():
        from adaprec_jax.report.figure import save as write
        from adaprec_jax.report.worth_figure import Cell, worth_figure
    cells = [
        Cell(
            each.formats,
            each.layers,
            f"{each.start} to {each.end}",
            each.per_gbitop.estimate,
            each.p is not None and not each.difference.low <= 0 <= each.difference.high,
        )
        for each in table
    ]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(worth_figure(cells, metric), path)


def _formats(bits: str | None, formats: list[str] | None) -> list[str]:
    """Returns the names of all formats to try."""
    names = [f"int{each.strip()}" for each in (bits or "").split(",") if each.strip()]
    names += formats or []
    if not names:
        raise InputError("fork needs formats to try: --bits 3,4,6,8 or --format NAME.")
    for each in names:
        try:
            format_names.parse(each)
        except ValueError as error:
            raise InputError(str(error)) from error
    return [*dict.fromkeys(names)]


def _roles(text: str) -> list[str]:
    given = [each.strip() for each in text.split(",")]
    if not set(given) <= set(_ROLES):
        raise InputError(f"--roles are some of {', '.join(_ROLES)}, got {text!r}.")
    return [role for role in _ROLES if role in given]


def _priced(found: Fork) -> str:
    """Returns what a fork has and what it costs, as text."""
    base = found.gbitops[forking.AS_IT_WAS]
    rows = [(arm, f"{g:.4g}", f"{g - base:+.4g}") for arm, g in found.gbitops.items()]
    cells = found.study.cells
    steps = sum(cell.experiment.steps - found.step for cell in cells)
    per_arm = len(cells) // len(found.gbitops)
    lines = [
        text_table(("branch", "10^9 bit operations", "more than as it was"), rows),
        "",
        f"{found.study.name}: {len(cells)} branches, {len(rows)} plans of {per_arm} "
        f"run{'s' * (per_arm != 1)}, {steps:,} steps from step {found.step}, "
        f"{per_arm * sum(found.gbitops.values()):.4g} 10^9 bit operations",
    ]
    if found.same:
        lines.append(f"left out, as it was already so: {'; '.join(found.same)}")
    return "\n".join(lines)


def _tree(found: Fork) -> dict[str, Any]:
    return {
        "study": found.study.name,
        "step": found.step,
        "branches": len(found.study.cells),
        "gbitops": dict(found.gbitops),
        "left_out": [*found.same],
    }
