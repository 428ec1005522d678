"""The verb `doctor`: where one is, and what is wrong with run directories."""

from pathlib import Path
from typing import Annotated, Any

import typer

from adaprec_jax.cli.options import AsJson, Out, print_json
from adaprec_jax.display import text_table
from adaprec_jax.runs import doctor as examining, environment, store
from adaprec_jax.runs.doctor import Patient

_WRONG = 3  # the exit code


def doctor(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...]",
            help="Directories, names or ids; their checkpoints are read, too.",
        ),
    ] = None,
    *,
    devices: Annotated[
        bool, typer.Option("--devices", help="Ask JAX for its devices and flags.")
    ] = False,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tell versions and flags, and what is wrong with runs; changes nothing.

    Without RUN all runs of the folder are looked at, but not their checkpoints. Exit
    code 3 says that something is wrong.
    """
    meant = [_found(run, out) for run in runs or ()]
    here = examining.here()
    if devices:
        here |= environment.capture()
    found = [
        examining.examine(each, checkpoints=bool(meant))
        for each in meant or examining.folders(out)
    ]
    if as_json:
        print_json(_tree(here, found))
    else:
        typer.echo(_told(here, found, out, named=bool(meant)))
    if any(each.wrong for each in found):
        raise typer.Exit(_WRONG)


def _found(run: str, out: Path) -> Path:
    """Returns the directory of a run, which may be too damaged to be found by name."""
    return Path(run) if Path(run).is_dir() else store.find(run, out)


def _tree(here: dict[str, Any], found: list[Patient]) -> dict[str, Any]:
    runs = [each._asdict() | {"directory": str(each.directory)} for each in found]
    return {"here": here, "runs": runs}


def _told(here: dict[str, Any], found: list[Patient], out: Path, *, named: bool) -> str:
    flags: dict[str, str] = here["flags"]
    rows = [
        (name, "not known" if value is None else str(value))
        for name, value in here.items()
        if name != "flags"
    ]
    rows += flags.items()
    lines = [text_table(("here", "is"), rows), ""]
    classes: dict[str, int] = {}
    for each in found:
        if each.environment:
            classes[each.environment] = classes.get(each.environment, 0) + 1
    if len(classes) > 1:
        named_classes = ", ".join(f"{name} ({n} runs)" for name, n in classes.items())
        lines.append(
            f"note: the runs were made in {len(classes)} environments, which `compare` "
            f"does not mix: {named_classes}; `adaprec diff RUN RUN` says in what they "
            "differ"
        )
    sick = [each for each in found if each.wrong]
    lines += [sentence for each in sick for sentence in each.wrong]
    where = "that were named" if named else f"in {out}"
    lines.append(
        f"{len(found)} runs {where}, {len(sick) or 'none'} with something wrong"
    )
    if found and not named:
        lines[-1] += "; checkpoints were not read (name a run for that)"
    return "\n".join(lines)
