"""The verb `serve`: a page that follows a study while it trains."""

from pathlib import Path
from typing import Annotated

import typer

from adaprec_jax.cli.options import Named
from adaprec_jax.studies.live import Live
from adaprec_jax.studies.serve import ADDRESS, server

PORT = 8642


def serve(
    study: Named,
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of this machine; 0 is any.")
    ] = PORT,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder of runs.")
    ] = Path("runs"),
) -> None:
    """Show a study in the browser while it trains, to this machine alone."""
    with server(Live(study, runs), port) as serving:
        typer.echo(f"http://{ADDRESS}:{serving.server_port}/ (Ctrl-C ends it)")
        serving.serve_forever()
