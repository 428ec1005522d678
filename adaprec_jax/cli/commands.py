"""The verbs of the command."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from adaprec_jax import formats
from adaprec_jax.cli import bundles, search, studies, tables
from adaprec_jax.cli.claims import claims
from adaprec_jax.cli.compare import compare
from adaprec_jax.cli.compile import compile_step, print_products, print_support
from adaprec_jax.cli.cost import cost
from adaprec_jax.cli.doctor import doctor
from adaprec_jax.cli.fork import fork
from adaprec_jax.cli.measure import measure
from adaprec_jax.cli.options import (
    AsJson,
    Config,
    Out,
    Seed,
    Settings,
    Sinks,
    assignments,
    config_or_run,
    drawing,
    given,
    print_json,
)
from adaprec_jax.cli.processes import (
    Coordinator,
    Place,
    Processes,
    ProcessId,
    joined,
    leads,
    place,
)
from adaprec_jax.cli.report import report
from adaprec_jax.cli.serve import serve
from adaprec_jax.report import summary
from adaprec_jax.runs import (
    expected,
    identity,
    imports,
    kinds,
    metrics,
    new as files,
    overrides,
    store,
)
from adaprec_jax.runs.about import about
from adaprec_jax.runs.catalogue import catalogue
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.runs.load import load
from adaprec_jax.runs.notes import notes
from adaprec_jax.runs.sinks import with_sinks
from adaprec_jax.runs.store import Outcome
from adaprec_jax.runs.trackers.option import chosen
from adaprec_jax.runs.widths import Widths, rising

if TYPE_CHECKING:  # It imports matplotlib.
    from adaprec_jax.report.figure import Course

_EXIT_CODES = {"done": 0, "diverged": 0, "failed": 3, "interrupted": 130}

app = typer.Typer(
    help="Precision schedules for JAX: experiments from a config to a result.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


new = typer.Typer(
    help="Write the files that a piece of your own begins with.", no_args_is_help=True
)
app.add_typer(new, name="new")
app.command("compile")(compile_step)
studies.add(app)
bundles.add(app)
search.add(app)
app.command()(compare)
app.command()(report)
app.command()(cost)
app.command()(claims)
app.command()(measure)
app.command()(serve)
app.command()(doctor)
app.command()(fork)


@app.command()
def demo(
    *,
    seeds: Annotated[int, typer.Option(min=2, help="Runs per arm.")] = 10,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="NAME=SCHEDULE",
            help="Train another schedule, as --set schedule=... has it; repeatable.",
        ),
    ] = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train the digits under several precision schedules, in about a minute."""
    more = {}
    for arm in arms or ():
        name, equals, schedule = arm.partition("=")
        if not equals:
            raise InputError(f"--arm takes NAME=SCHEDULE, got {arm!r}.")
        if name in more:
            raise InputError(f"--arm {name} is given twice.")
        more[name] = overrides.apply(load("digits-int8"), [f"schedule={schedule}"])
        imports.check(more[name])
    store.check_writable(out)
    from adaprec_jax.runs.demo import demo as train

    train(seeds=seeds, out=out, more=more, as_json=as_json)


@app.command()
def run(  # noqa: PLR0913 (one option for each choice)
    config: Config,
    *,
    settings: Settings = None,
    seed: Seed = None,
    sinks: Sinks = None,
    out: Out = Path("runs"),
    coordinator: Coordinator = None,
    process_id: ProcessId = None,
    processes: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Train, or go on with a run that was interrupted."""
    where = place(coordinator, process_id, processes)
    experiment = with_sinks(given(config, settings, seed), chosen(sinks or ()))
    imports.check(experiment)
    directory = store.locate(out, experiment)
    _tell_if_over(directory, as_json=as_json)
    if leads(where):
        store.check_free(directory)
        store.check_writable(out)
    for note in notes(experiment):
        typer.echo(f"note: {note}", err=True)
    with joined(where):
        from adaprec_jax.runs.run import run as train

        _tell(directory, train(experiment, out=out), where, as_json=as_json)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="A run's directory, name or id.")],
    *,
    sinks: Sinks = None,
    out: Out = Path("runs"),
    coordinator: Coordinator = None,
    process_id: ProcessId = None,
    processes: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run where its last checkpoint is."""
    where = place(coordinator, process_id, processes)
    directory = store.find(run, out)
    store.experiment_of(directory)
    more = chosen(sinks or ())
    _tell_if_over(directory, as_json=as_json)
    if leads(where):
        store.check_free(directory)
    with joined(where):
        from adaprec_jax.runs.run import resume as train

        _tell(directory, train(directory, more), where, as_json=as_json)


@app.command()
def show(
    config: Config,
    *,
    settings: Settings = None,
    seed: Seed = None,
    contractions: Annotated[
        bool, typer.Option("--contractions", help="List what is multiplied instead.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="With --contractions: a device, what it multiplies natively."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print every setting with where it came from, the run's id and its cost."""
    before, changed = load(config), assignments(settings, seed)
    experiment = overrides.apply(before, changed)
    imports.check(experiment)
    if target is not None:
        if not contractions:
            raise InputError("--target is an option of --contractions, give both.")
        print_products(experiment, target, as_json=as_json)
        return
    if contractions:
        _show_contractions(experiment, as_json=as_json)
        return
    run_id, costs = identity.run_id(experiment), expected.costs(experiment)
    sources = overrides.sources(before, experiment, changed)
    tree = experiment.model_dump(mode="json")
    if as_json:
        shown = {
            "run_id": run_id,
            **costs,
            "config": tree,
            "sources": sources,
            "notes": notes(experiment),
        }
        print_json(shown)
    else:
        unknown = _unknown(experiment)
        tables.show(run_id, costs, unknown, overrides.leaves(tree), sources)
        for note in notes(experiment):
            typer.echo(f"note: {note}")


@app.command("range-test")
def range_test(  # noqa: PLR0913 (one option for each number)
    config: Config,
    *,
    settings: Settings = None,
    seed: Seed = None,
    min_bits: Annotated[int, typer.Option(help="Bits to begin with.")] = 2,
    max_bits: Annotated[int, typer.Option(help="Bits to end with.")] = 8,
    gradient_bits: Annotated[int, typer.Option(help="Bits of gradients.")] = 8,
    steps: Annotated[int, typer.Option(help="Most steps at one width.")] = 400,
    window: Annotated[int, typer.Option(help="Steps that are averaged.")] = 100,
    threshold: Annotated[
        float, typer.Option(help="Gain of the training metric that counts.")
    ] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Find the fewest bits that learn, for min_bits of a cyclic schedule."""
    experiment = given(config, settings, seed)
    imports.check(experiment)
    tried = Widths(min_bits, max_bits, gradient_bits, steps, window, threshold)
    rising(experiment, tried)  # Says what is wrong before JAX is imported.
    from adaprec_jax.runs.range_test import range_test as train

    tested = train(experiment, tried)
    if as_json:
        shown = {"widths": tried._asdict(), **tested._asdict()}
        print_json(shown | {"found": tested.found._asdict()})
    else:
        tables.range_test(tested, tried)


@app.command()
def plot(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG_OR_RUN...",
            help="Configs as of `run`; directories, names or ids of runs.",
        ),
    ],
    *,
    settings: Settings = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="A .png, .svg or .pdf.")
    ] = Path("precision.png"),
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder of runs.")
    ] = Path("runs"),
) -> None:
    """Draw precision, learning rate and cost over the steps.

    Of a config they are computed without training, if its schedule depends on the step
    alone; of a run they are those that it recorded. Settings are those of configs.
    """
    meant = [config_or_run(each, settings or [], runs) for each in what]
    for each in meant:
        if isinstance(each, Experiment):
            kinds.check_open(each)
    figure = _drawing()
    if out.suffix.lower() not in figure.SUFFIXES:
        endings = ", ".join(figure.SUFFIXES)
        raise InputError(f"--out must end in one of {endings}, got {str(out)!r}.")
    courses = [_course(each) for each in meant]
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.save(figure.figure(courses), out)
    typer.echo(str(out))


@app.command("configs")
def list_configs(*, as_json: AsJson = False) -> None:
    """List every bundled config with its task, its model and its formats."""
    found = catalogue()
    if as_json:
        print_json([each._asdict() for each in found])
    else:
        tables.configs(found)


@app.command("formats")
def list_formats(
    *,
    target: Annotated[
        str | None,
        typer.Option(help="Instead, the dtypes that multiply each format on a device, "
                     "or on all."),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List every number format with its range and spacing."""
    if target is not None:
        print_support(target, as_json=as_json)
        return
    rows = formats.rows()
    if as_json:
        print_json([row._asdict() for row in rows])
    else:
        tables.formats(rows)


@app.command("schedules")
def list_schedules(
    kind: Annotated[
        str | None, typer.Argument(help="Tell of this one, and print its settings.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List every schedule that a config can name, or say what one does."""
    if kind is None:
        found = kinds.kinds()
        if as_json:
            print_json([each._asdict() for each in found])
        else:
            tables.kinds(found)
        return
    described, settings = kinds.find(kind)
    said = about(described.kind)
    if as_json:
        listed = [each._asdict() for each in settings]
        print_json({**described._asdict(), "about": said, "settings": listed})
    else:
        tables.kind(described, said, settings)


@new.command("schedule")
def new_schedule(
    name: Annotated[str, typer.Argument(help="Of the schedule and its file.")],
    *,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where to.")] = Path(),
) -> None:
    """Write a schedule of your own to start from, and its test."""
    written = files.new_schedule(name, folder)
    for path in written:
        typer.echo(str(path))
    typer.echo(
        f"Test it with `pytest {written[1]}`, and see it beside others with\n"
        f"""  adaprec demo --arm '{name}={{"kind": "import", """
        f""""target": "{name}:{name}", "arguments": {{"low": 4, "high": 8}}}}'"""
    )


def _drawing() -> ModuleType:
    """Returns the module that draws, which needs matplotlib."""
    with drawing():
        from adaprec_jax.report import figure
    return figure


def _course(meant: Experiment | Path) -> "Course":
    if isinstance(meant, Path):
        from adaprec_jax.runs.recorded import recorded

        return recorded(meant)
    from adaprec_jax.runs.foreseen import foreseen

    return foreseen(meant)


def _unknown(experiment: Experiment) -> str:
    """Returns what is said of a cost that the settings alone do not tell."""
    if kinds.is_closed(experiment.schedule):
        return "depends on statistics"
    if experiment.schedule.kind == "import":
        return "depends on statistics or layers"
    return "known after `adaprec show --contractions` or `adaprec plot`"


def _show_contractions(experiment: Experiment, *, as_json: bool) -> None:
    from adaprec_jax.runs.listing import listing

    found = listing(experiment)
    if not as_json:
        tables.contractions(found.lines, found.not_reached)
        if found.cost is not None:
            typer.echo(f"cost {found.cost:.4g} (bit operations; float32 is 1)")
        if found.gbitops is not None:
            typer.echo(f"{found.gbitops:.4g} GBitOps in the run")
        return
    lines = [
        {**line.contraction._asdict(), "first": line.first, "later": line.later}
        for line in found.lines
    ]
    not_reached = [each._asdict() for each in found.not_reached]
    costs = {"cost": found.cost, "gbitops": found.gbitops}
    print_json({"contractions": lines, "not_reached": not_reached, **costs})


def _tell_if_over(directory: Path, *, as_json: bool) -> None:
    """Says so and exits if there is nothing left to do in a run's directory."""
    if (over := store.over(directory)) is None:
        return
    for change in over.changes:
        typer.echo(f"adaprec: since that run, {change}.", err=True)
    _tell(directory, over.outcome, as_json=as_json, prefix="already ")


def _tell(
    directory: Path,
    outcome: Outcome,
    where: Place | None = None,
    *,
    as_json: bool,
    prefix: str = "",
) -> NoReturn:
    """Prints how a run ended, and exits with the code that says so."""
    if as_json and leads(where):
        print_json({"directory": str(directory), **outcome._asdict()})
    elif leads(where):
        tables.outcome(directory, outcome, prefix, _chart(directory, outcome))
    raise typer.Exit(_EXIT_CODES[outcome.state])


def _chart(directory: Path, outcome: Outcome) -> list[str]:
    """Returns the precision over time; without metrics, why there is none."""
    path = directory / store.METRICS
    try:
        columns = metrics.read(path) if path.is_file() else {}
    except InputError as error:
        return list(error.args)
    return summary.precision_chart(columns, outcome.step)
