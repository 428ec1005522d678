"""The verbs that train a study and tell how it is going."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from adaprec_jax.cli.options import AsJson, Named, Out, print_json
from adaprec_jax.display import text_table
from adaprec_jax.runs import imports, overrides, store
from adaprec_jax.runs.load import load_sweep
from adaprec_jax.runs.store import State
from adaprec_jax.studies import local, ray_engine, slurm_engine, states
from adaprec_jax.studies.controls import of_sweep
from adaprec_jax.studies.following import Follower
from adaprec_jax.studies.packs import packs
from adaprec_jax.studies.price import Price, price
from adaprec_jax.studies.states import Found
from adaprec_jax.studies.study import (
    Cell,
    Study,
    load_study,
    path_of,
    save,
    study_of,
    titles,
)

# Takes packs, directories by id, the folder of runs and hooks; returns faults by id.
Place: TypeAlias = Callable[
    [Sequence[Sequence[Cell]], dict[str, Path], Path, local.Hooks], dict[str, str]
]

FAILED, STOPPED = 3, 130
UNFINISHED = ("new", "interrupted", "running")  # states of runs that are still to train

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Count and price; train nothing.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes at a time.")]
Packed = Annotated[
    bool,
    typer.Option(
        "--packs/--no-packs", help="Train runs together that differ in numbers alone."
    ),
]
Engine = Annotated[
    Literal["local", "ray", "slurm"], typer.Option(help="Where the runs are trained.")
]
Address = Annotated[
    str | None,
    typer.Option(help='Of the Ray cluster, such as "auto"; of submitit, "local".'),
]


def add(app: typer.Typer) -> None:
    """Adds the verbs to the command."""
    for verb in (sweep, status, retry):
        app.command()(verb)


def sweep(  # noqa: PLR0913 (one option for each thing to choose)
    config: Annotated[
        str,
        typer.Argument(help="A Python file with sweep(), or a bundled one: digits."),
    ],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Replace a setting of every run."
        ),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Add the controls of each schedule: all, or some as noise,permuted.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the study; the file's name if left out.")
    ] = None,
    dry_run: DryRun = False,
    workers: Workers = 1,
    packed: Packed = True,
    engine: Engine = "local",
    address: Address = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train all runs of a study that are missing."""
    of_file, experiments = load_sweep(config)
    experiments = [overrides.apply(each, settings or []) for each in experiments]
    for each in {each.name: each for each in experiments}.values():
        imports.check(each)
    if controls is not None:
        experiments = of_sweep(experiments, [c.strip() for c in controls.split(",")])
    study = study_of(experiments, name or of_file)
    if dry_run:
        counted = price(study, out, packed=packed)
        print_json(_price_tree(counted)) if as_json else typer.echo(_priced(counted))
        return
    place = _place(engine, address, workers)
    store.check_writable(out)
    _tell_of_others(study, out)
    save(study, out)
    _train(study, out, UNFINISHED, place, packed=packed, as_json=as_json)


def retry(
    study: Named,
    *,
    failed: Annotated[
        bool, typer.Option("--failed", help="Those that failed, too.")
    ] = False,
    workers: Workers = 1,
    packed: Packed = True,
    engine: Engine = "local",
    address: Address = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train what a study lacks, from its own list; the config is not read again."""
    loaded = load_study(study, out)
    place = _place(engine, address, workers)
    store.check_writable(out)
    wanted = (*UNFINISHED, *(["failed"] if failed else []))
    _train(loaded, out, wanted, place, packed=packed, as_json=as_json)


def status(study: Named, *, out: Out = Path("runs"), as_json: AsJson = False) -> None:
    """Tell how many runs of a study are done, and which are missing and why."""
    loaded = load_study(study, out)
    found = states.look(loaded, out)
    print_json(tree_of(loaded, found)) if as_json else typer.echo(told(loaded, found))


def _tell_of_others(study: Study, out: Path) -> None:
    """Says which runs a study of this name had that it will have no more."""
    if not path_of(study.name, out).is_file():
        return
    ids = {cell.run_id for cell in study.cells}
    gone = [c for c in load_study(study.name, out).cells if c.run_id not in ids]
    if gone:
        typer.echo(
            f"note: {len(gone)} other runs of a study {study.name} leave its list; "
            f"what was trained stays in {out}.",
            err=True,
        )


def _place(engine: str, address: str | None, workers: int) -> Place:
    """Returns what trains packs; refuses an engine that is not installed."""
    if engine == "ray":
        ray_engine.check()
        return lambda packs, where, out, hooks: ray_engine.train(
            packs, out, address, hooks
        )
    if engine == "slurm":
        slurm_engine.check()
        return lambda packs, where, out, hooks: slurm_engine.train(
            packs, out, workers, address, hooks
        )
    return on_this_machine(workers)


def on_this_machine(workers: int) -> Place:
    """Returns what trains packs here, so many at a time."""
    return lambda packs, where, out, hooks: local.train(
        packs, where, out, workers, hooks
    )


def _train(
    study: Study,
    out: Path,
    wanted: Sequence[str],
    place: Place,
    *,
    packed: bool,
    as_json: bool,
) -> NoReturn:
    """Trains the cells in the wanted states, tells what came of all, and exits."""
    found, faults = trained(study, out, wanted, place, packed=packed)
    if as_json:
        print_json(tree_of(study, found, faults))
    else:
        typer.echo(told(study, found, faults))
    raise typer.Exit(exit_code(found, faults))


def trained(
    study: Study, out: Path, wanted: Sequence[str], place: Place, *, packed: bool
) -> tuple[list[Found], dict[str, str]]:
    """Trains the cells of a study in the wanted states.

    Args:
        study: The study.
        out: The folder of runs.
        wanted: Which states.
        place: What trains them.
        packed: Whether runs that can train together will.

    Returns:
        What came of all cells, and why some could not begin or go on.
    """
    before = states.look(study, out)
    missing = [each for each in before if each.state in wanted]
    jobs = packs(missing) if packed else [[each.cell] for each in missing]
    where = {each.cell.run_id: each.directory for each in before}
    faults: dict[str, str] = {}
    if missing:
        with _following(where, len(missing)) as hooks:
            faults = place(jobs, where, out, hooks)
    return states.look(study, out), faults


def exit_code(found: Sequence[Found], faults: dict[str, str]) -> int:
    """Returns the exit code that says what came of a study."""
    counts = states.count(found)
    if faults or counts["failed"]:
        return FAILED
    unfinished = counts["interrupted"] + counts["new"] - len(faults)
    return STOPPED if unfinished > 0 else 0


@contextlib.contextmanager
def _following(where: dict[str, Path], total: int) -> Iterator[local.Hooks]:
    """Yields what shows the runs: a living table, or a line at the end of each."""
    console = Console(stderr=True, highlight=False)
    ended = 0

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    def end(cells: Sequence[Cell]) -> None:
        nonlocal ended
        for cell in cells:
            ended += 1
            now = states.found(cell, where[cell.run_id])
            say(f"{ended}/{total} {cell.experiment.name} seed {cell.seed}: {_end(now)}")

    if not console.is_terminal:
        yield local.Hooks(end, lambda cells: None, say)
        return
    followers: dict[str, Follower] = {}

    def follow(cells: Sequence[Cell]) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("run", "seed", "step", "loss", "precision", "left"):
            table.add_column(head, justify="left" if head == "run" else "right")
        for cell in cells[: max(console.height - 4, 1)]:
            steps = cell.experiment.steps
            follower = followers.setdefault(
                cell.run_id, Follower(where[cell.run_id], steps)
            )
            line = follower.look()
            table.add_row(
                cell.experiment.name,
                str(cell.seed),
                f"{line.step}/{steps}",
                f"{line.loss:.4g}" if line.step else "",
                line.precision or "compiling",
                line.left,
            )
        live.update(table)

    with Live(console=console, transient=True, refresh_per_second=4) as live:
        yield local.Hooks(end, follow, say)


def _end(found: Found) -> str:
    if found.outcome is None:
        return found.state
    message = f": {found.outcome.message}" if found.outcome.message else ""
    return f"{found.outcome.state} after {found.outcome.step} steps{message}"


def told(
    study: Study, found: Sequence[Found], faults: dict[str, str] | None = None
) -> str:
    """Returns the states of a study as text."""
    counted, faults = states.count(found), faults or {}
    shown: list[State] = [state for state in states.STATES if counted[state]]
    rows = [
        (arm, *(str(counts[state] or "") for state in shown))
        for arm, counts in states.by_arm(found).items()
    ]
    holes = states.holes(counted)
    lines = [text_table(("arm", *map(_word, shown)), rows), ""]
    lines += [
        f"{each.cell.experiment.name} seed {each.cell.seed}: "
        f"{faults.get(each.cell.run_id) or _end(each)}"
        for each in found
        if each.state == "failed" or each.cell.run_id in faults
    ]
    total = len(study.cells)
    lines.append(f"{study.name}: {total - holes} of {total} runs have a result")
    if holes:
        lines[-1] += f", {holes} {'is a hole' if holes == 1 else 'are holes'}"
    return "\n".join(lines)


def _word(state: State) -> str:
    return "missing" if state == "new" else state


def tree_of(
    study: Study, found: Sequence[Found], faults: dict[str, str] | None = None
) -> dict[str, Any]:
    """Returns the states of a study as JSON values."""
    counts, called = states.count(found), titles(study.cells)
    return {
        "study": study.name,
        "runs": len(study.cells),
        "holes": states.holes(counts),
        "states": counts,
        "cells": [
            {
                "arm": called[each.cell.arm],
                "seed": each.cell.seed,
                "run_id": each.cell.run_id,
                "directory": str(each.directory),
                "state": each.state,
                "outcome": each.outcome and each.outcome._asdict(),
                "fault": (faults or {}).get(each.cell.run_id),
            }
            for each in found
        ],
    }


def _priced(counted: Price) -> str:
    """Returns a price as text."""
    rows = [
        (
            arm.arm,
            arm.runs,
            arm.steps,
            "by statistics" if arm.cost is None else f"{arm.cost:.4g}",
        )
        for arm in counted.arms
    ]
    there = ", ".join(f"{n} {_word(state)}" for state, n in counted.states.items() if n)
    lines = [
        text_table(("arm", "runs", "steps", "cost"), rows),
        "",
        f"{counted.name}: {counted.runs} runs in {len(counted.arms)} arms; {there}",
        f"{counted.steps:,} steps, of which {counted.steps_left:,} are left, in "
        f"{counted.packs} processes",
        f"as many bit operations as {counted.float32_steps:,.0f} steps in float32",
    ]
    if counted.uncounted:
        lines[-1] += f", and {counted.uncounted} runs whose cost depends on statistics"
    return "\n".join(lines)


def _price_tree(counted: Price) -> dict[str, Any]:
    return counted._asdict() | {"arms": [arm._asdict() for arm in counted.arms]}
