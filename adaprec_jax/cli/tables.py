"""What the command prints for people."""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from adaprec_jax.display import text_table
from adaprec_jax.formats import Row, cells
from adaprec_jax.runs.catalogue import Bundled
from adaprec_jax.runs.kinds import Kind, Setting
from adaprec_jax.runs.overrides import Source
from adaprec_jax.runs.store import Outcome
from adaprec_jax.runs.widths import Widths

if TYPE_CHECKING:  # They import JAX.
    from adaprec_jax.contractions import NotReached
    from adaprec_jax.runs.listing import Line
    from adaprec_jax.runs.range_test import Found


_UNLIMITED = 10_000
_LOOPS = {
    "open": "open loop: it depends on the step alone",
    "closed": "closed loop: it reads what is measured in training",
    "either": "open or closed loop, as its parts are",
}
_NARROWEST = 12  # a column whose text is folded


def show(
    run_id: str,
    costs: Mapping[str, float | None],
    unknown: str,
    settings: Mapping[str, Any],
    sources: Mapping[str, Source],
) -> None:
    """Prints the settings of an experiment, one per line, with their sources."""
    table = _table("setting", "value", "from")
    for path, value in settings.items():
        style = None if sources[path] == "default" else "bold"
        table.add_row(path, _text(value), sources[path], style=style)
    said = {
        name: "depends on statistics or layers" if cost is None else f"{cost:.4g}"
        for name, cost in costs.items()
    }
    if costs["cost"] is None:
        said["cost"] = unknown
    _print(
        table,
        f"run id {run_id}",
        f"cost {said['cost']} (bit operations; float32 is 1)",
        f"share_4_bits {said['share_4_bits']} (products whose operands have at most 4)",
        f"share_8_bits {said['share_8_bits']}",
        f"bytes_per_parameter {said['bytes_per_parameter']}",
    )


def formats(rows: Iterable[Row]) -> None:
    """Prints the formats with their range and spacing."""
    heads = ("smallest\nnormal", "smallest", "spacing\nat 1")
    table = _table("format", "bits", "range", *heads, "overflow")
    for row in rows:
        table.add_row(*map(str, cells(row)))
    for column in table.columns[1:-1]:
        column.justify, column.no_wrap, column.min_width = "right", True, None
    _print(table)


def configs(found: Iterable[Bundled]) -> None:
    """Prints the bundled configs, one per line, however long, by task and model."""
    _print(text_table(Bundled._fields, found))


def kinds(found: Iterable[Kind]) -> None:
    """Prints the schedule kinds, one per line, however long."""
    head = ("kind", "loop", "what it does", "source")
    rows = ((each.kind, each.loop, each.summary, each.source) for each in found)
    _print(text_table(head, rows))


def kind(found: Kind, said: Mapping[str, str], settings: Iterable[Setting]) -> None:
    """Prints a schedule kind, what is said of it, and its settings."""
    table = _table("setting", "default", "allowed", "meaning")
    for each in settings:
        default = "(required)" if each.required else _text(each.default)
        table.add_row(each.name, default, each.allowed, each.description)
    lines = f"{found.kind}: {found.summary}.", f"{_LOOPS[found.loop]}; {found.source}"
    told = [line for title, text in said.items() for line in ("", title, _folded(text))]
    _print(*lines, *told, *(["", table] if table.row_count else ["it has no settings"]))


def contractions(lines: Iterable["Line"], not_reached: Iterable["NotReached"]) -> None:
    """Prints what is multiplied, in which precision, and what no plan reaches."""
    parts: list[Table | str] = []
    for line in lines:
        c = line.contraction
        shapes = " x ".join(map(str, c.shapes[:2])) + f" -> {c.shapes[2]}"
        times = "unknown" if c.executions is None else c.executions
        parts += [
            c.name,
            f"  {c.primitive} {c.einsum}, {c.roles[0]} x {c.roles[1]}, {shapes}",
            f"  {c.macs:,} multiply-accumulates, executions per micro-batch: {times}",
        ]
        if c.axes:
            parts.append(f"  plan axes {c.axes}")
        if not c.differentiated:
            parts.append("  forward only")
        parts.append(f"  at first {line.first}")
        if line.later:
            parts.append(f"  later {line.later}")
    for each in not_reached:
        parts.append(f"not reached: {each.what} at {each.where}: {each.reason}")
    _print(*(parts or ["nothing is multiplied"]))


def outcome(directory: Path, ended: Outcome, prefix: str, chart: Sequence[str]) -> None:
    """Prints how a run ended, its results, and its precision over time."""
    table = _table("result", "value")
    for name, value in ended.results.items():
        table.add_row(name, f"{value:.6g}")
    message = f": {ended.message}" if ended.message else ""
    line = f"{prefix}{ended.state} after {ended.step} steps{message}"
    parts: list[Table | str] = [table, ""] if ended.results else []
    parts += [*chart, ""] if chart else []
    _print(*parts, line, str(directory))


def _folded(text: str) -> str:
    """Returns text as a paragraph that fits the terminal, indented."""
    return textwrap.fill(
        text, max(Console().width, _NARROWEST), initial_indent="  ",
        subsequent_indent="  ", break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def range_test(tested: "Found", widths: Widths) -> None:
    """Prints the gain at each width that was tried, and the fewest bits that learn."""
    found, threshold = tested.found, f"{widths.threshold:g}"
    table = _table("bits", f"largest gain of {tested.metric}")
    for bits, gain in found.gains.items():
        table.add_row(str(bits), "none" if gain is None else f"{gain:.4g}")
    if found.min_bits is None:
        verdict = f"no width up to {widths.max_bits} bits gained more than {threshold}"
    else:
        verdict = f"min_bits {found.min_bits}, the first that gained over {threshold}"
    parts = [f"diverged: {tested.message}"] if tested.message else []
    windows = f"between windows of {widths.window} steps"
    _print(table, *parts, f"{verdict} {windows}", f"{tested.steps} steps in all")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", min_width=_NARROWEST)
    table.columns[0].no_wrap = True
    return table


def _print(*parts: Table | str) -> None:
    console = Console(highlight=False)
    for part in parts:
        # Text as it is: a path must not be broken, nor read as markup. A number is
        # never cut: a table that does not fit is wider than the terminal.
        if isinstance(part, Table):
            needed = Console(width=_UNLIMITED).measure(part).minimum
            console.width = max(console.width, needed)
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
