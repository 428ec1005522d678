"""The numbers of a run, one line of text per step: a store that survives SIGKILL.

A line is a JSON object, `{"step":3,"loss":2.50000000e-01}`. A process that dies leaves
at most one torn line, the last, which readers ignore and the next writer removes. Any
other line that cannot be read is damage, and is refused with its number.
pandas and duckdb read the file as it is (duckdb beyond 200 names with
`read_json(..., map_inference_threshold=-1)`). Values are float32, written with the nine
significant digits that restore it to the bit; NaN and infinities are the words NaN,
Infinity and -Infinity, which these readers know.

Several lines may belong to one step, with each name in one of them.
"""

import functools
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaprec_jax.runs.errors import InputError, writing


def start(path: Path, step: int, every: int = 1) -> io.FileIO:
    """Returns the file for appending, without what it says about later steps.

    Args:
        path: The file; it need not exist before the first step.
        step: How many steps the state that the run goes on from has completed.
        every: There is a line at least every so many steps.

    Raises:
        InputError: The file cannot be written, is damaged, or lacks steps before
            `step`; it is left as it is.
    """
    with writing(path):
        path.touch()
        with path.open("r+b") as file:
            size = reached = 0
            for line, row in _rows(file, path):
                if row["step"] > step:
                    break
                size, reached = size + len(line), row["step"]
            if reached < step - step % every:
                raise InputError(
                    f"{path} ends at step {reached}, but the checkpoint is of "
                    f"{step}: lines are missing; nothing was changed."
                )
            file.truncate(size)
        return path.open("ab", buffering=0)


def append(
    file: io.FileIO, steps: Sequence[int], columns: Mapping[str, Sequence[int | float]]
) -> None:
    """Appends a line per step; afterwards the operating system has them.

    Args:
        file: What `start` returned.
        steps: How many steps were completed, of each line; they never fall.
        columns: By name, one float32 value per line.

    Raises:
        InputError: The file cannot be written, for instance on a full disk.
    """
    names = tuple(columns)
    rows = zip(steps, *columns.values(), strict=True)
    unwritten = memoryview("".join(_line(names, row) for row in rows).encode())
    with writing(file.name):
        while unwritten:
            unwritten = unwritten[file.write(unwritten) :]


def rows_until(path: Path, step: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields steps and values, line by line, up to a step; what follows is not read.

    Raises:
        InputError: A line is damaged.
    """
    with path.open("rb") as file:
        for _, row in _rows(file, path):
            if row["step"] > step:
                return
            yield row.pop("step"), row


def read(path: Path) -> dict[str, dict[int, float]]:
    """Returns the values by name and step.

    Raises:
        InputError: A line is damaged, or a name has two values at one step.
    """
    columns: dict[str, dict[int, float]] = {}
    with path.open("rb") as file:
        for _, row in _rows(file, path):
            step = row.pop("step")
            for name, value in row.items():
                column = columns.setdefault(name, {})
                if step in column:
                    raise InputError(f"{path} has two values of {name} at step {step}.")
                column[step] = value
    return columns


def _rows(
    file: io.BufferedIOBase, path: Path
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields every whole line with what it says.

    Raises:
        InputError: One of them is damaged.
    """
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return
        row = parsed(line)
        if row is None:
            raise InputError(f"{path} is damaged at line {number}.")
        yield line, row


def parsed(line: bytes) -> dict[str, Any] | None:
    """Returns what a line says, None if it is not one of ours."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and all(type(value) in (int, float) for value in row.values())
    )
    return row if sound else None


def _line(names: tuple[str, ...], row: tuple[int | float, ...]) -> str:
    if math.isfinite(sum(row)):
        return _template(names, "%.8e") % row
    return _template(names, "%s") % (row[0], *map(_number, row[1:]))


@functools.cache
def _template(names: tuple[str, ...], number: str) -> str:
    """Returns a line with a place for each value: five times as fast as `json`."""
    quoted = (json.dumps(name).replace("%", "%%") for name in names)
    return "".join(['{"step":%d', *(f",{name}:{number}" for name in quoted), "}\n"])


def _number(value: int | float) -> str:
    return f"{value:.8e}" if math.isfinite(value) else json.dumps(value)
