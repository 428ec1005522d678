"""What two runs differ in, down to the first step at which they part; no JAX."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adaprec_jax.runs import environment, identity, metrics, store
from adaprec_jax.runs.load import from_json
from adaprec_jax.runs.overrides import leaves

_NOT_COMPARED = ("began",)
_OWN = ("compilations",)  # of the session, not of the run


class Parting(NamedTuple):
    """The first number in which two runs differ.

    Attributes:
        step: At which step.
        name: Of the number.
        values: Of both runs; None where one has no such number.
    """

    step: int
    name: str
    values: tuple[float | None, float | None]


class Difference(NamedTuple):
    """What two runs differ in.

    Attributes:
        settings: Those that decide the outcome, by path, with both values.
        environment: A phrase for each entry that both know and that differs.
        data: Both fingerprints, None if they are the same.
        parting: Where their metrics differ first; None if they never do.
        results: Those that differ, by name, with both values.
    """

    settings: dict[str, tuple[Any, Any]]
    environment: tuple[str, ...]
    data: tuple[str, str] | None
    parting: Parting | None
    results: dict[str, tuple[float | None, float | None]]


def difference(one: Path, other: Path) -> Difference:
    """Returns what two runs differ in.

    Args:
        one: The directory of a run.
        other: That of another.

    Raises:
        InputError: What a run wrote is damaged.
    """
    trees = [
        leaves(identity.deciding(from_json(path / store.CONFIG)))
        for path in (one, other)
    ]
    a, b = store.record(one), store.record(other)
    there, here = (_last(each) for each in (a, b))
    outcomes = store.outcome(one), store.outcome(other)
    results = [_results(each) for each in outcomes]
    return Difference(
        settings=_different(trees[0], trees[1]),
        environment=tuple(environment.differences(there, here)),
        data=None if a.data == b.data else (a.data, b.data),
        parting=parting(_columns(one), _columns(other)),
        results=_different(results[0], results[1]),
    )


def parting(
    one: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]
) -> Parting | None:
    """Returns the first number in which two metrics differ, None if there is none.

    Args:
        one: Values by name and step, as `adaprec_jax.runs.metrics.read` returns them.
        other: Those of another run.

    >>> parting({"loss": {1: 2.0, 2: 1.0}}, {"loss": {1: 2.0, 2: 1.5}})
    Parting(step=2, name='loss', values=(1.0, 1.5))
    """
    first: Parting | None = None
    for name in [*one, *(name for name in other if name not in one)]:
        a, b = one.get(name, {}), other.get(name, {})
        for step in sorted({*a, *b}):
            if first is not None and step >= first.step:
                break
            values = a.get(step), b.get(step)
            if not _same(*values):
                first = Parting(step, name, values)
                break
    return first


def _same(a: Any, b: Any) -> bool:
    """Returns whether two numbers are equal; NaN equals itself."""
    return a == b or json.dumps(a) == json.dumps(b)


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    names = [*one, *(name for name in other if name not in one)]
    return {
        name: (one.get(name), other.get(name))
        for name in names
        if not _same(one.get(name), other.get(name))
    }


def _columns(directory: Path) -> dict[str, dict[int, float]]:
    path = directory / store.METRICS
    return metrics.read(path) if path.is_file() else {}


def _results(outcome: store.Outcome | None) -> dict[str, float]:
    found = outcome.results if outcome else {}
    return {name: value for name, value in found.items() if name not in _OWN}


def _last(record: store.Record) -> dict[str, Any]:
    """Returns the environment that a run was last worked on in."""
    last = record.sessions[-1] if record.sessions else {}
    return {name: value for name, value in last.items() if name not in _NOT_COMPARED}
