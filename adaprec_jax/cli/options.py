"""Arguments that several verbs have, and what is done with them."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from adaprec_jax.runs import imports, overrides, store
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load

Config: TypeAlias = Annotated[
    str, typer.Argument(help="A Python or JSON file, or a name of `adaprec configs`.")
]
Settings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Replace a setting; repeatable."),
]
Seed: TypeAlias = Annotated[int | None, typer.Option(help="Short for --set seed=N.")]
Out: TypeAlias = Annotated[Path, typer.Option(metavar="DIR", help="Folder of runs.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sinks: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="NAME[:FOLDER]",
        help="Show the metrics to tensorboard, wandb or mlflow, too; repeatable.",
    ),
]
Named: TypeAlias = Annotated[
    str, typer.Argument(help="The name of a study, or its file.")
]
Metrics: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", metavar="NAME", help="A result, as test/accuracy; repeatable."
    ),
]
Margins: TypeAlias = Annotated[
    list[float] | None,
    typer.Option(
        "--margin",
        help="Largest difference that does not matter, stated before the runs; "
        "one for each --metric.",
    ),
]


def assignments(settings: list[str] | None, seed: int | None) -> list[str]:
    """Returns `--set` and `--seed` as assignments.

    >>> assignments(["steps=5"], 3)
    ['steps=5', 'seed=3']
    """
    return [*(settings or ()), *([] if seed is None else [f"seed={seed}"])]


def given(config: str, settings: list[str] | None, seed: int | None) -> Experiment:
    """Returns the experiment that the arguments say.

    Raises:
        InputError: They do not say one.
    """
    return overrides.apply(load(config), assignments(settings, seed))


def config_or_run(what: str, settings: Sequence[str], out: Path) -> Experiment | Path:
    """Returns the experiment of a config, or the directory of a run.

    Raises:
        InputError: It is neither.
    """
    if (Path(what) / store.CONFIG).is_file():
        return Path(what)
    try:
        loaded = load(what)
    except InputError as no_config:
        if Path(what.rpartition(":")[0] or what).suffix in (".py", ".json"):
            raise
        try:
            return store.find(what, out)
        except InputError as no_run:
            raise InputError(*no_config.args, *no_run.args) from no_run
    experiment = overrides.apply(loaded, settings)
    imports.check(experiment)
    return experiment


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Says which extra is missing if what is imported inside needs matplotlib.

    Raises:
        InputError: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise InputError(
            "A plot needs matplotlib, which is not installed: "
            "pip install 'adaprec-jax[plot]'."
        ) from error


def print_json(tree: Any) -> None:
    """Prints a tree of JSON values."""
    typer.echo(json.dumps(tree, indent=2))
