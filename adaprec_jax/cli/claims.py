"""The verb `adaprec claims`: what is claimed, beside what is counted."""

import textwrap
from typing import Annotated

import typer

from adaprec_jax.cli.options import AsJson, print_json


def claims(
    *,
    as_json: AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a table for a README.")
    ] = False,
) -> None:
    """Set the field's headline claims beside what is counted and modelled here."""
    from adaprec_jax.runs.claims import all_sizes, claims as judged

    found = judged(all_sizes())
    if as_json:
        print_json([each._asdict() for each in found])
        return
    head = ("claim", "claimed", "here", "measured", "verdict", "here is from")
    rows = [
        (each.claim, each.claimed, _range(each.low, each.high, each.unit),
         each.measured, each.verdict, each.basis)
        for each in found
    ]  # fmt: skip
    if not markdown:
        for claim, claimed, here, measured, verdict, basis in rows:
            typer.echo(f"{verdict}: {claim}")
            said = f"claimed {claimed or 'in words'}; here {here}; measured {measured}"
            for line in (said, basis):
                typer.echo(textwrap.indent(textwrap.fill(line, 76), " " * 4))
        return
    for row in (head, ["---"] * len(head), *rows):
        typer.echo(f"| {' | '.join(row)} |")


def _range(low: float | None, high: float | None, unit: str) -> str:
    if low is None or high is None:
        return "n/a"
    ends = [f"{end:.3g}" if abs(end) < 100 else f"{end:.0f}" for end in (low, high)]
    return f"{' to '.join(dict.fromkeys(ends))} {unit}".replace(" x", "x")
