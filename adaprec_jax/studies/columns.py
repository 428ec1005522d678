"""The number of each run that arms are compared by."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from adaprec_jax.runs import store
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.studies.results import Arm, Result

_HIGHER = ("accuracy",)
_LOWER = (
    "loss", "bits_per_byte", "error", "cost", "gbitops", "bytes_per_parameter",
    "skipped_steps", "compilations",
)  # fmt: skip


class Column(NamedTuple):
    """A number of each run.

    Attributes:
        name: Of the result, such as `test/highest/accuracy`.
        higher: Whether a higher value is better.
        margin: The difference that would not matter; none if it was not stated.
        values: By name of the arm and seed; NaN where a run diverged, or did not reach
            a target.
    """

    name: str
    higher: bool
    margin: float | None
    values: Mapping[str, Mapping[int, float]]

    def of(self, arm: str, seeds: Sequence[int]) -> Float[np.ndarray, " seeds"]:
        """Returns the values of an arm for some seeds."""
        return np.array([self.values[arm][seed] for seed in seeds], float)


def column(
    arms: Sequence[Arm],
    name: str,
    *,
    margin: float | None = None,
    higher: bool | None = None,
) -> Column:
    """Returns a result of every run.

    Args:
        arms: Of a study.
        name: Of the result; `test/accuracy` is short for `test/highest/accuracy`.
        margin: The difference that would not matter.
        higher: Whether a higher value is better; none asks the name.

    Raises:
        InputError: The runs have no such result, the margin is not above zero, or
            which direction is better cannot be told.
    """
    runs = [run for arm in arms for run in arm.runs.values()]
    known = {key: None for run in runs for key in run.outcome.results}
    full = _full(name, known)
    if full is None:
        raise InputError(f"No run has a result {name!r}; {suggest(name, known)}")
    values = {
        arm.name: {seed: _value(run, full) for seed, run in arm.runs.items()}
        for arm in arms
    }
    return _checked(Column(full, direction(full, higher), margin, values))


def until(arms: Sequence[Arm], name: str, target: float) -> tuple[Column, Column]:
    """Returns how many steps, and 10^9 bit operations, each run took to a target.

    Up to the first evaluation that reached it. Rows of metrics are read, so that this
    takes longer than other columns.

    Args:
        arms: Of a study.
        name: Of what is evaluated while training; `validation/accuracy` is short for
            `validation/highest/accuracy`.
        target: The value to reach.

    Raises:
        InputError: No run was evaluated so, or its metrics are damaged.
    """
    rows = {
        (arm.name, seed): _rows(run) for arm in arms for seed, run in arm.runs.items()
    }
    known = {key: None for found in rows.values() for _, row in found for key in row}
    evaluated = [key for key in known if key.startswith("validation/")]
    full = _full(name, dict.fromkeys(evaluated))
    if full is None:
        raise InputError(
            f"No run was evaluated by {name!r}; {suggest(name, evaluated)}"
        )
    higher = direction(full, None)
    steps: dict[str, dict[int, float]] = {arm.name: {} for arm in arms}
    work: dict[str, dict[int, float]] = {arm.name: {} for arm in arms}
    for arm in arms:
        for seed, run in arm.runs.items():
            reached = _reached(rows[arm.name, seed], full, target, higher=higher)
            steps[arm.name][seed] = reached
            work[arm.name][seed] = _work(rows[arm.name, seed], run, reached)
    said = f"to {full} {target:g}"
    return (
        Column(f"steps {said}", False, None, steps),
        Column(f"gbitops {said}", False, None, work),
    )


def evaluations(run: Result, name: str) -> dict[int, float]:
    """Returns the evaluations of a run while it trained, by step.

    Args:
        run: The run.
        name: Of what was evaluated, such as `validation/highest/accuracy`.

    Raises:
        InputError: Its metrics are missing or damaged.
    """
    return {step: row[name] for step, row in _rows(run) if name in row}


def direction(name: str, higher: bool | None) -> bool:  # noqa: FBT001 (of three values)
    """Returns whether a higher value of a result is better.

    Args:
        name: Of the result.
        higher: What was said; none asks the name.

    Raises:
        InputError: Nothing was said, and the name does not tell.

    >>> direction("test/highest/accuracy", None), direction("cost/joules", None)
    (True, False)
    """
    if higher is not None:
        return higher
    parts = name.split("/")
    for words, better in ((_HIGHER, True), (_LOWER, False)):
        if any(part in words for part in parts):
            return better
    raise InputError(
        f"Whether more or less of {name} is better is not known: say --higher or "
        "--lower."
    )


def _full(name: str, known: Mapping[str, None]) -> str | None:
    """Returns the whole name of what is called by a short one."""
    first, _, last = name.partition("/")
    for full in (name, f"{first}/highest/{last}"):
        if full in known:
            return full
    return None


def _value(run: Result, name: str) -> float:
    if run.outcome.state == "diverged" and name not in run.outcome.results:
        return float("nan")
    if name not in run.outcome.results:
        raise InputError(f"{run.directory} has no result {name!r}, as other runs have.")
    value = run.outcome.results[name]
    return value if np.isfinite(value) else float("nan")


def _checked(found: Column) -> Column:
    if found.margin is not None and not (0 < found.margin < float("inf")):
        raise InputError(f"A margin must be above zero, got {found.margin:g}.")
    return found


def _rows(run: Result) -> list[tuple[int, Mapping[str, float]]]:
    """Returns the rows of a run that hold an evaluation or a cost.

    The others, by far the most, are not parsed.
    """
    path = run.directory / store.METRICS
    found = []
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path} is missing: {error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        wanted = b'"validation/' in line or b'"cost"' in line
        if not wanted or not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line)
            found.append((int(row.pop("step")), row))
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is damaged at line {number}.") from error
    return found


def _reached(
    rows: Iterable[tuple[int, Mapping[str, float]]],
    name: str,
    target: float,
    *,
    higher: bool,
) -> float:
    """Returns the first step of an evaluation that reached the target, else NaN."""
    for step, row in rows:
        value = row.get(name)
        if value is not None and (value >= target if higher else value <= target):
            return float(step)
    return float("nan")


def _work(
    rows: Iterable[tuple[int, Mapping[str, float]]], run: Result, reached: float
) -> float:
    """Returns the bit operations up to a step, in units of 10^9."""
    results = run.outcome.results
    if np.isnan(reached) or "gbitops" not in results:
        return float("nan")
    costs = [(step, row["cost"]) for step, row in rows if "cost" in row]
    # In force from its step on; steps are counted from 1.
    starts = [min(step - 1.0, reached) for step, _ in costs]
    lengths = np.diff([*starts, reached])
    spent = float(np.dot(lengths, [cost for _, cost in costs]))
    return results["gbitops"] * spent / (results["cost"] * run.outcome.step)
