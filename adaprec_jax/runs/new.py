"""The files that a schedule of one's own begins with."""

import keyword
from pathlib import Path

from adaprec_jax.runs.errors import InputError, writing

_SCHEDULE = '''\
"""A precision schedule: say here what it decides, and on what ground."""

import jax
import jax.numpy as jnp

import adaprec_jax as ap


def {name}(low: int, high: int, *, steps: int) -> ap.schedules.Schedule:
    """Uses `low` bits in the first half of a run and `high` bits in the second."""

    def init(table: ap.Table) -> ap.schedules.Scope:
        return ap.schedules.Scope(table)

    def update(step: jax.Array, stats: ap.Stats, state: ap.schedules.Scope) -> tuple:
        entry = ap.plan.integers(jnp.where(step < steps // 2, low, high), 8)
        plan = {{c.name: ap.plan.fill(c, entry) for c in state.table.contractions}}
        return plan, state

    return ap.schedules.Schedule(init, update)
'''
_TEST = """\
from {name} import {name}

from adaprec_jax.testing import check_schedule


def test_{name}_keeps_what_a_schedule_promises():
    check_schedule({name}(low=4, high=8, steps=10))
"""


def new_schedule(name: str, folder: Path) -> list[Path]:
    """Writes a schedule that runs, and its test; returns the two files.

    Args:
        name: Of the schedule and of its module.
        folder: Where they are written; it is made if need be.

    Raises:
        InputError: The name is no Python identifier, a file is there already, or the
            folder cannot be written.
    """
    plain = name.isidentifier() and name.isascii() and name == name.lower()
    if not plain or keyword.iskeyword(name):
        raise InputError(
            "A schedule's name is a Python identifier in lower case, and no keyword, "
            f"got {name!r}."
        )
    files = {f"{name}.py": _SCHEDULE, f"test_{name}.py": _TEST}
    paths = [folder / file for file in files]
    if there := [str(path) for path in paths if path.exists()]:
        raise InputError(f"{' and '.join(there)} exist already; nothing was written.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text.format(name=name), encoding="utf-8")
    return paths
