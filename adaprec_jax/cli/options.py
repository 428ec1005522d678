"""Arguments that several verbs have, and what is done with them."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from adaprec_jax.runs import overrides
from adaprec_jax.runs.config import Experiment
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


def print_json(tree: Any) -> None:
    """Prints a tree of JSON values."""
    typer.echo(json.dumps(tree, indent=2))
