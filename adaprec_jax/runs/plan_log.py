"""The different plans of a run, a line each; the metrics say which is in force when.

A line is the list of layers, each with the names of the formats of its six operands:
bits alone would not tell int8 from FP8. Lines are only added, so what is written about
a step that a resumed run takes again stays true.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from adaprec_jax import formats
from adaprec_jax.runs import format_names
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.train import record

FILE, COLUMN = "plans.jsonl", "plan"
Named: TypeAlias = list[list[str]]


def numbering(path: Path) -> Callable[[Any], int]:
    """Returns a function from a packed plan to its line, counted from 0.

    It adds a line for a plan that is new; a torn last line is written anew.

    Args:
        path: The file; it need not exist.

    Raises:
        InputError: The file cannot be written.
    """
    with writing(path):
        path.touch()
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            path.write_bytes(whole)
    known = {line: k for k, line in enumerate(whole.decode().splitlines())}
    seen: dict[bytes, int] = {}

    def number(packed: Any) -> int:
        key = np.asarray(packed).tobytes()
        if key not in seen:
            line = json.dumps(named(packed), separators=(",", ":"))
            if line not in known:
                known[line] = len(known)
                with writing(path), path.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            seen[key] = known[line]
        return seen[key]

    return number


def read(path: Path) -> list[Named]:
    """Returns the plans of a run by their lines, none if there is no such file.

    Raises:
        InputError: A line is damaged.
    """
    if not path.is_file():
        return []
    text = path.read_bytes()
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    found: list[Named] = []
    names: set[str] = set()
    for k, line in enumerate(lines, 1):
        try:
            plan = json.loads(line)
            fresh = {name for row in plan for name in row} - names
            for name in fresh:
                format_names.parse(name)
            if any(len(row) != len(record.OPERANDS) for row in plan):
                raise ValueError(line)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged at line {k}.") from error
        names |= fresh
        found.append(plan)
    return found


def named(packed: Any) -> Named:
    """Returns the names of the formats of a packed plan, by layer and operand.

    >>> row = np.array([[[6, 6, -128, 127, 0, 0, 1]] * 6], np.float32)
    >>> named(row)
    [['int8', 'int8', 'int8', 'int8', 'int8', 'int8']]
    """
    rows = np.asarray(packed)
    fields = record.formats_of(rows)
    return [
        [
            formats.describe(formats.Format(*(each[i, j] for each in fields)))
            for j in range(rows.shape[1])
        ]
        for i in range(rows.shape[0])
    ]
