"""The verb `adaprec cost`: what runs cost, before they are run and after."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from adaprec_jax.cli import facts
from adaprec_jax.cli.options import AsJson, config_or_run, drawing, print_json
from adaprec_jax.cost import carbon, devices
from adaprec_jax.cost.lenses import LENSES
from adaprec_jax.display import text_table
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.runs.varied import FACTORS, WHAT, varied

_INDENT = " " * 4
_SMALL = ("m", "u", "n", "p")
_PREFIXED = ("J", "s", "g", "g/run")
_BASES = {
    "recorded": "the formats that were recorded",
    "recorded so far": "the formats that were recorded so far: the run has not ended",
    "foreseen": "the formats of all steps, as the schedule decides them",
    "first step": "the formats of the first step, as if it kept them: the schedule "
    "decides by what is measured, so run it first",
}


def cost(  # noqa: PLR0913 (one option for each fact that has no default)
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG_OR_RUN...",
            help="Configs as of `run`; directories, names or ids of runs.",
        ),
    ],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Replace a setting."),
    ] = None,
    lens: Annotated[
        list[str] | None,
        typer.Option("--lens", help=f"One of {', '.join(LENSES)}; repeatable."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(devices.names())}.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(carbon.grid_names())}, or "
            "INTENSITY:YEAR:SOURCE in gCO2e/kWh; needs --pue."
        ),
    ] = None,
    pue: Annotated[
        float | None, typer.Option(help="Of the data centre; 1 leaves it out.")
    ] = None,
    market: Annotated[
        float | None, typer.Option(help="Market-based gCO2e/kWh, a second figure.")
    ] = None,
    embodied: Annotated[
        str | None,
        typer.Option(metavar="KG:YEARS", help="Of making a device, and of its life."),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(metavar="PER_HOUR:CURRENCY:DATE", help="Of the device."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Count runs to the first evaluation that reaches it, as "
            "validation/accuracy=0.9.",
        ),
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(help=f"How cost grows with {', '.join(WHAT)}; several by commas."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="List every product of every layer.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw test score against cost, by one --lens."
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Write it into each run's cost.json as well."),
    ] = False,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder of runs.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Count what a run costs: work, memory, energy by lens, carbon and money.

    Nothing is trained. Of a config the formats are those that its schedule decides, of
    a run those that it recorded. Every energy here is modelled: none is a measurement.
    """
    lenses = facts.lenses(lens or [], device)
    facts.check(grid, pue, market, embodied, price, device)
    chosen = facts.checked(lambda: devices.device(device)) if device else None
    place = facts.checked(lambda: carbon.grid(grid)) if grid else None
    asked_price = facts.checked(lambda: carbon.price(price)) if price else None
    made = _embodied(embodied) if embodied else None
    goal = facts.target(target) if target else None
    meant = [config_or_run(each, settings or [], runs) for each in what]
    if settings and all(isinstance(each, Path) for each in meant):
        raise InputError("--set is of configs, and only runs were given.")
    sizes = [] if vary is None else vary.split(",")
    if keep:
        _check_kept(meant, goal, plot, vary)
    _check_sizes(meant, sizes)
    if plot is not None:
        _plot(meant, lenses, chosen, plot)
        return
    if sizes:
        _print_grown(meant, sizes, as_json=as_json)
        return
    from adaprec_jax.runs import cost_report
    from adaprec_jax.runs.cost_report import Asked

    asked = Asked(lenses, chosen, place, pue, market, made, asked_price)
    trees = [_tree(each, asked, goal) for each in meant]
    for each, tree in zip(meant, trees, strict=True):
        if keep and isinstance(each, Path):
            cost_report.keep(each, tree)
    if as_json:
        print_json(trees)
        return
    for tree in trees:
        typer.echo("\n".join(_lines(tree, layers=layers)))


def _check_kept(
    meant: Sequence[Experiment | Path],
    goal: tuple[str, float] | None,
    plot: Path | None,
    vary: str | None,
) -> None:
    """Refuses to keep what is not the cost of whole runs."""
    if not all(isinstance(each, Path) for each in meant):
        raise InputError("--keep writes into the directories of runs, not of configs.")
    if goal or plot or vary:
        raise InputError("--keep is of whole runs: not with --target, --plot, --vary.")


def _plot(
    meant: Sequence[Experiment | Path],
    lenses: Sequence[str],
    device: devices.Device | None,
    path: Path,
) -> None:
    """Draws test score against cost for all runs."""
    if len(lenses) != 1:
        raise InputError("--plot draws one lens: give one --lens.")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot must end in .png, .svg or .pdf, got {str(path)!r}.")
    directories = [each for each in meant if isinstance(each, Path)]
    if len(directories) != len(meant):
        raise InputError("--plot is of runs, not of configs.")
    with drawing():
        from adaprec_jax.report.frontier import figure
    from adaprec_jax.runs.costing import falls
    from adaprec_jax.runs.frontier import points

    found, unit, metric = points(directories, lenses[0], device)
    drawn = figure(
        found, x=f"modelled cost by {lenses[0]}, {unit}", y=f"test {metric}",
        higher_is_better=not falls(metric),
    )  # fmt: skip
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=160)
    typer.echo(str(path))


def _tree(
    meant: Experiment | Path, asked: Any, goal: tuple[str, float] | None
) -> dict[str, Any]:
    """Returns what is said of a config or a run."""
    from adaprec_jax.runs.cost_report import report
    from adaprec_jax.runs.costing import foreseen_cost, recorded_cost, steps_to

    if not isinstance(meant, Path):
        if goal:
            raise InputError(f"--target is of runs, and {meant.name} is a config.")
        return report(foreseen_cost(meant), asked)
    if goal is None:
        return report(recorded_cost(meant), asked)
    step = steps_to(meant, *goal)
    told = {"name": meant.name, "target": f"{goal[0]}={goal[1]:g}", "reached_at": step}
    return told | ({} if step is None else report(recorded_cost(meant, step), asked))


def _check_sizes(meant: Sequence[Experiment | Path], sizes: Sequence[str]) -> None:
    """Refuses a size that a config has not, and that of a run."""
    for size in sizes:
        for each in meant:
            if isinstance(each, Path):
                raise InputError(f"--vary is of configs, and {each} is a run.")
            varied(each, size, FACTORS[-1])


def _print_grown(
    meant: Sequence[Experiment | Path], sizes: Sequence[str], *, as_json: bool
) -> None:
    """Prints how the cost of a step grows."""
    from adaprec_jax.runs.costing import foreseen_cost

    grown: list[dict[str, Any]] = []
    for each in meant:
        if isinstance(each, Path):
            continue
        for size in sizes:
            before: tuple[float, float] | None = None
            for factor in FACTORS:
                spent = foreseen_cost(varied(each, size, factor))
                steps = spent.done.steps
                now = spent.done.macs / steps, sum(spent.done.traffic().values())
                memory = sum(spent.counted.memory)
                row: dict[str, Any] = {
                    "name": each.name, "vary": size, "factor": factor,
                    "macs": now[0], "moved_bytes": now[1] / steps,
                    "memory_bytes": memory, "macs_power": None,
                }  # fmt: skip
                if before is not None:
                    row["macs_power"] = math.log2(now[0] / before[0])
                before = now
                grown.append(row)
    if as_json:
        print_json(grown)
        return
    head = ("config", "vary", "times", "MACs a step", "moved, MB", "memory, MB",
            "MACs grow with the power")  # fmt: skip
    rows = [
        (r["name"], r["vary"], str(r["factor"]), f"{r['macs']:.4g}",
         f"{r['moved_bytes'] / 1e6:.4g}", f"{r['memory_bytes'] / 1e6:.4g}",
         "" if r["macs_power"] is None else f"{r['macs_power']:.2f}")
        for r in grown
    ]  # fmt: skip
    typer.echo(text_table(head, rows))


def _lines(tree: Mapping[str, Any], *, layers: bool) -> list[str]:
    """Returns what is said of one run."""
    if "lenses" not in tree:
        return [f"{tree['name']} did not reach {tree['target']}", ""]
    steps = tree["steps"]
    goal = f" to {tree['target']}" if tree.get("reached_at") else ""
    said = f"{tree['name']}: {steps:.0f} steps{goal}, {_BASES[tree['basis']]}"
    lines = [
        textwrap.fill(said, 80, subsequent_indent="  ", break_on_hyphens=False),
        f"  multiply-accumulates {tree['macs']:.4g}"
        f" (recomputed {tree['macs_recomputed']:.3g}, "
        f"of no plan {tree['macs_unplanned']:.3g})",
        f"  other operations {tree['operations']:.4g}, scales and casts "
        f"{tree['quantiser_operations']:.4g}",
        f"  emulation takes {tree['emulation_operations']:.4g} more, which no lens "
        "counts",
        "  memory of a step as it is emulated, formats in float32, MB:",
        _sizes(tree["memory_bytes"]),
        "  moved in the run, operands in their formats, MB:",
        _sizes(tree["moved_bytes"]),
    ]
    head = ("lens", "cost", "kind", "float32", "bfloat16")
    rows = [_row(name, found) for name, found in tree["lenses"].items()]
    lines += [
        "",
        "cost by lens, and per cent saved over float32 and bfloat16, with bands:",
    ]
    lines += [text_table(head, rows)]
    if layers:
        lines += ["", *_layer_lines(tree)]
    lines += _carbon_lines(tree)
    lines += [f"  not counted: {each}" for each in tree["not_counted"]]
    return [*lines, ""]


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    cost = found["cost"]
    if cost is None:
        return (name, *["n/a"] * 4)
    saved = (_saved(found[f"saved_over_{base}"]) for base in ("float32", "bfloat16"))
    return (name, _banded(cost), cost["kind"], *saved)


def _banded(found: Mapping[str, Any] | None) -> str:
    """Returns a quantity with its band; small ones of a unit with prefixes by one."""
    if found is None:
        return "n/a"
    value, low, high = (found[end] for end in ("value", "low", "high"))
    unit = found["unit"]
    if 0 < value < 1 and unit in _PREFIXED:
        thousands = min(math.ceil(-math.log10(value) / 3), len(_SMALL))
        unit = _SMALL[thousands - 1] + unit
        value, low, high = (each * 1e3**thousands for each in (value, low, high))
    band = "" if low == high else f" ({low:.3g} to {high:.3g})"
    return f"{value:.4g} {unit}" if not band else f"{value:.3g}{band} {unit}"


def _saved(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "n/a"
    value, low, high = (100 * found[end] for end in ("value", "low", "high"))
    if high - low < 1:
        return f"{value:.2f}"
    return f"{value:.0f} ({low:.0f} to {high:.0f})"


def _layer_lines(tree: Mapping[str, Any]) -> list[str]:
    on_device = any("bound" in row for row in tree["contractions"])
    head = ["  contraction", "product", "formats", "MACs", "moved, MB", "arith7, J"]
    head += ["units", "bound by"] if on_device else []
    rows = []
    for each in tree["contractions"]:
        energy = each["arith7"]
        row = [f"  {each['contraction']}", each["product"], _few(each["formats"]),
               f"{each['macs']:.4g}", f"{each['bytes'] / 1e6:.4g}",
               "n/a" if energy is None else f"{energy['value']:.3g}"]  # fmt: skip
        if on_device:
            row += [", ".join(each["units"]), ", ".join(each["bound"])]
        rows.append(row)
    return [text_table(head, rows)]


def _carbon_lines(tree: Mapping[str, Any]) -> list[str]:
    lines = []
    if found := tree.get("carbon"):
        grid = found["grid"]
        lines.append(
            f"  carbon (CO2e) at {grid['intensity']:g} g/kWh and PUE {found['pue']:g}"
            f", {grid['name']}, {grid['year']}:\n    {grid['source']}"
        )
        for lens, row in found["lenses"].items():
            where = row["location_based"]
            others = (("market_based", "market-based"), ("embodied", "embodied"),
                      ("sci", "SCI"))  # fmt: skip
            said = [f"{_banded(where)} location-based"]
            said += [
                f"{_banded(row[key])} {word}" for key, word in others if key in row
            ]
            kind = "" if where is None else f", {where['kind']}"
            lines += [f"    {lens}{kind}:", *(f"      {each}" for each in said)]
    if "money" in tree:
        money, asked = tree["money"], tree["price"]
        said = "n/a" if money is None else f"{_banded(money)}, {money['kind']}"
        lines.append(
            f"  money {said}:\n    the time of the roofline at "
            f"{asked['per_hour']:g} {asked['currency']} an hour ({asked['date']})"
        )
    return lines


def _sizes(found: Mapping[str, int | float]) -> str:
    said = ", ".join(
        f"{name.replace('_', ' ')} {size / 1e6:.4g}" for name, size in found.items()
    )
    return textwrap.fill(
        said, 80, initial_indent=_INDENT, subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )  # fmt: skip


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:2])
    return shown if len(names) < 3 else f"{shown} and {len(names) - 2} more"


def _embodied(text: str) -> tuple[float, float]:
    kilograms, _, years = text.partition(":")
    try:
        found = 1000 * float(kilograms), float(years)
    except ValueError:
        found = -1.0, -1.0
    if not (0 <= found[0] < math.inf and 0 < found[1] < math.inf):
        raise InputError(f"--embodied takes KG:YEARS, such as 164:4, got {text!r}.")
    return found
