"""The verb `adaprec measure`: what a step takes on this machine."""

import dataclasses
from typing import Annotated, Any

import typer

from adaprec_jax.cli.options import AsJson, print_json
from adaprec_jax.display import text_table
from adaprec_jax.meters import Meter, codecarbon, none, nvml, rapl, zeus
from adaprec_jax.meters.measure import SHORTEST, Protocol, summary
from adaprec_jax.runs import imports, overrides
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load

_METERS = {"nvml": nvml, "rapl": rapl, "codecarbon": codecarbon, "zeus": zeus,
           "none": none}  # fmt: skip


def measure(
    config: Annotated[str, typer.Argument(help="As of `run`.")],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Replace a setting."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Least length of a window.")
    ] = SHORTEST,
    repeats: Annotated[int, typer.Option(help="Windows of each step.")] = 5,
    rest: Annotated[float, typer.Option(help="Seconds between windows.")] = SHORTEST,
    meter: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(_METERS)}; by default the first of NVML and RAPL "
            "that there is."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the train step and the plain float32 step in turns, on this machine.

    An emulated step says nothing of its formats: what it takes more is the cost of
    emulation; set execution.kind=native for the step itself. What is measured is the
    first dispatch. Energy needs a counter and is n/a without; what CodeCarbon
    guesses without one is a tdp_estimate.
    """
    if not SHORTEST <= seconds <= 3600:
        raise InputError(f"--seconds must be from {SHORTEST:g} to 3600, got {seconds}.")
    if repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {repeats}.")
    if not 0 <= rest <= 3600:
        raise InputError(f"--rest must be from 0 to 3600, got {rest}.")
    if meter is not None and meter not in _METERS:
        raise InputError(f"--meter must be one of {', '.join(_METERS)}: {meter!r}.")
    experiment = overrides.apply(load(config), settings or [])
    imports.check(experiment)
    chosen = None if meter is None else _meter(meter)
    from adaprec_jax.runs.measured import any_meter, measured

    found = measured(
        experiment, any_meter() if chosen is None else chosen,
        Protocol(seconds=seconds, repeats=repeats, rest=rest),
    )  # fmt: skip
    steps = experiment.steps_per_dispatch
    told: dict[str, Any] = {
        "meter": found.meter,
        "boundary": found.boundary,
        "kind": found.kind,
        "idle_watts": found.idle_watts,
        "matmul_precision": "highest",
        "steps_per_call": steps,
        "repeats": repeats,
        "seconds": seconds,
        "ways": {},
    }
    rows = []
    guessed = "" if found.kind == "measured" else f" ({found.kind})"
    for way in found.windows:
        each = summary(found, way)
        told["ways"][way] = {
            "emulated": way in found.emulated,
            **{
                field: dataclasses.asdict(value) if value is not None else None
                for field in ("energy", "emulation_cost", "latency")
                for value in (getattr(each, field),)
            },
            "cpu_seconds": each.cpu_seconds,
            "throughput": each.throughput,
            "device_hours": each.device_hours,
        }
        joules = each.emulation_cost or each.energy
        low, high = (1e3 * end / steps for end in (each.latency.low, each.latency.high))
        rows.append(
            (way, f"{1e3 * each.latency.value / steps:.4g}", f"{low:.4g} to {high:.4g}",
             f"{1e3 * each.cpu_seconds / steps:.4g}", f"{each.throughput * steps:.4g}",
             "n/a" if joules is None else f"{joules.value / steps:.4g}{guessed}",
             "emulation" if way in found.emulated else "measured")
        )  # fmt: skip
    if as_json:
        print_json(told)
        return
    head = ("step", "ms", "lowest to highest", "CPU ms", "steps/s", "J", "what it is")
    typer.echo(text_table(head, rows))
    idle = "n/a" if found.idle_watts is None else f"{found.idle_watts:.4g} W{guessed}"
    typer.echo(
        f"meter {found.meter} ({found.boundary}), idle {idle}, not subtracted; "
        f"{repeats} windows of {seconds:g} s, in turns; medians"
    )


def _meter(name: str) -> Meter:
    """Returns the meter of a name, which reads nothing where it finds no counter."""
    try:
        made = _METERS[name]()
    except ImportError as error:
        raise InputError(f"--meter {name}: {error}") from error
    if made.name == "none" != name:
        return made._replace(boundary=f"nothing: {name} finds no counter to read")
    return made
