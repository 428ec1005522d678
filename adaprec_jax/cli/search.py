"""The verb that searches the settings of a schedule."""

from pathlib import Path
from typing import Annotated

import typer

from adaprec_jax.cli.options import AsJson, Out, print_json
from adaprec_jax.display import text_table
from adaprec_jax.runs import imports, overrides, store
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.load import load, load_function
from adaprec_jax.runs.store import Outcome
from adaprec_jax.studies import local, search as searching
from adaprec_jax.studies.search import Search
from adaprec_jax.studies.study import Cell, save, study_of


def add(app: typer.Typer) -> None:
    """Adds the verb to the command."""
    app.command()(search)


def search(
    config: Annotated[str, typer.Argument(help="A Python file with search().")],
    *,
    trials: Annotated[int, typer.Option(min=1, help="The budget, in runs.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampler.")] = 0,
    confirm: Annotated[
        int, typer.Option(min=1, help="Seeds of the study of what is found.")
    ] = 10,
    confirm_on: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="Another task, on which that study has what is found, too.",
        ),
    ] = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Search the settings of a schedule for accuracy at low cost."""
    name, what = load_function(config, "search", Search)
    imports.check(what.base)
    other = None
    if confirm_on is not None:
        other = load(confirm_on)
        imports.check(other)
        searching.check_elsewhere(what, other)
    store.check_writable(out)

    def train(experiment: Experiment) -> Outcome:
        return _trained(experiment, out)

    found = []
    for trial in searching.search(what, trials, seed, train):
        found.append(trial)
        typer.echo(f"{len(found)}/{trials} {_said(trial)}", err=True)
    study = searching.front_study(what, found, f"{name}-front", confirm, other)
    save(study, out)
    best, cost = searching.front(found), searching.spent(found)
    count = sum(each.is_new for each in found)
    if as_json:
        rows = [
            {"config": each.experiment.model_dump(mode="json"), "metric": each.metric,
             "cost": each.cost}
            for each in best
        ]  # fmt: skip
        tree = {"front": rows, "trials": count, "float32_steps": cost}
        print_json(tree | {"study": study.name})
        return
    table = [
        (_chosen(what, each), f"{each.metric:.4g}", f"{each.cost:.4g}") for each in best
    ]
    typer.echo(text_table(("settings", what.metric, "cost"), table))
    where = f", and the task of {other.name}, which" if other else ", which"
    typer.echo(
        f"\nthe best of {count} runs, which took as many bit operations as {cost:,.0f} "
        f"steps in float32\nseeds that the search did not see{where} alone say whether "
        f"it holds:\n  adaprec retry {study.name} --out {out}"
    )


def _trained(experiment: Experiment, out: Path) -> Outcome:
    """Returns how a run ended; it is trained in a process of its own if need be."""
    directory = store.locate(out, experiment)
    ended = store.outcome(directory)
    if ended and store.is_over(ended.state):
        return ended
    cell: Cell = study_of([experiment], "trial").cells[0]
    hooks = local.Hooks(lambda cells: None, lambda cells: None, lambda text: None)
    faults = local.train([[cell]], {cell.run_id: directory}, out, 1, hooks)
    ended = store.outcome(directory)
    return ended or Outcome("failed", 0, {}, faults.get(cell.run_id, ""))


def _chosen(what: Search, trial: searching.Trial) -> str:
    """Returns the settings of a trial that were searched."""
    known = overrides.leaves(trial.experiment.model_dump(mode="json"))
    paths = [path for path in known if path.startswith(tuple(what.space))]
    return " ".join(f"{path}={known[path]}" for path in paths)


def _said(trial: searching.Trial) -> str:
    if trial.metric is None or trial.cost is None:
        return "has no result"
    return f"{trial.metric:.4g} at cost {trial.cost:.4g}"
