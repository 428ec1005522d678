"""How a study is declared: lists of experiments, made from lists of experiments.

    def sweep() -> list[Experiment]:
        static = grid(config("int8"), {"schedule.precision.weight": ["int4", "int8"]})
        return seeds(chain(static, config("cpt")), 10)

Every function takes an experiment or a list of them and returns a list. Settings are
paths as after `--set` on the command line, and are checked by the same code.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from adaprec_jax.runs import identity, overrides
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError

Experiments: TypeAlias = Experiment | Iterable[Experiment]


def grid(
    experiments: Experiments, settings: Mapping[str, Iterable[Any]]
) -> list[Experiment]:
    """Returns every experiment with every combination of the settings.

    Args:
        experiments: One or several.
        settings: The values of each path. The last path varies fastest.

    Raises:
        InputError: A setting is unknown, a value does not fit, a path has no values, or
            two of the results would be the same run.

    >>> from adaprec_jax.runs.load import load
    >>> found = grid(load("digits-cpt"), {"schedule.min_bits": [3, 4], "steps": [200]})
    >>> [each.schedule.min_bits for each in found]
    [3, 4]
    """
    lists = _lists(settings)
    return _each(experiments, lists, itertools.product(*lists.values()))


def zip_(
    experiments: Experiments, settings: Mapping[str, Iterable[Any]]
) -> list[Experiment]:
    """Returns every experiment with the first values of all paths, the second, ...

    Args:
        experiments: One or several.
        settings: The values of each path, as many for each.

    Raises:
        InputError: As `grid`; or the paths do not have as many values.

    >>> from adaprec_jax.runs.load import load
    >>> bits = {"schedule.min_bits": [3, 4], "schedule.max_bits": [6, 8]}
    >>> [each.schedule.max_bits for each in zip_(load("digits-cpt"), bits)]
    [6, 8]
    """
    lists = _lists(settings)
    counts = {path: len(values) for path, values in lists.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {path}" for path, count in counts.items())
        raise InputError(f"zip_ needs as many values for each path, got {said}.")
    return _each(experiments, lists, zip(*lists.values(), strict=True))


def chain(*experiments: Experiments) -> list[Experiment]:
    """Returns all experiments, one list after another.

    Raises:
        InputError: Two are the same run.

    >>> from adaprec_jax.runs.load import load
    >>> [each.name for each in chain(load("digits-cpt"), [load("digits-int8")])]
    ['digits-cpt', 'digits-int8']
    """
    return _different([each for some in experiments for each in _listed(some)])


def seeds(experiments: Experiments, seeds: int | Iterable[int]) -> list[Experiment]:
    """Returns every experiment with every seed.

    Args:
        experiments: One or several.
        seeds: The seeds, or how many, from 0 on.

    Raises:
        InputError: There is no seed, one cannot be a seed, or one is given twice.

    >>> from adaprec_jax.runs.load import load
    >>> [each.seed for each in seeds(load("digits-cpt"), 3)]
    [0, 1, 2]
    """
    given = range(seeds) if isinstance(seeds, int) else seeds
    return grid(experiments, {"seed": given})


def where(
    experiments: Experiments, keep: Callable[[Experiment], bool]
) -> list[Experiment]:
    """Returns the experiments for which a function says yes.

    Args:
        experiments: One or several.
        keep: The function.

    >>> from adaprec_jax.runs.load import load
    >>> short = where(seeds(load("digits-cpt"), 3), lambda each: each.seed > 0)
    >>> [each.seed for each in short]
    [1, 2]
    """
    return [each for each in _listed(experiments) if keep(each)]


def _listed(experiments: Experiments) -> list[Experiment]:
    if isinstance(experiments, Experiment):
        return [experiments]
    return list(experiments)


def _lists(settings: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
    """Returns the values of each path as a list, which has some."""
    for path, values in settings.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise InputError(f"{path} needs a list of values, got {values!r}.")
    lists = {path: list(values) for path, values in settings.items()}
    if empty := [path for path, values in lists.items() if not values]:
        raise InputError(f"{empty[0]} has no values.")
    return lists


def _each(
    experiments: Experiments,
    paths: Iterable[str],
    rows: Iterable[Sequence[Any]],
) -> list[Experiment]:
    """Returns every experiment with every row of values."""
    chosen = [overrides.assignments(dict(zip(paths, row, strict=True))) for row in rows]
    return _different(
        [_applied(each, given) for each in _listed(experiments) for given in chosen]
    )


def _applied(experiment: Experiment, given: Sequence[str]) -> Experiment:
    try:
        return overrides.apply(experiment, given)
    except InputError as error:
        where = f"{experiment.name} with {' '.join(given)}"
        raise InputError(*(f"{where}: {fault}" for fault in error.args)) from error


def _different(experiments: list[Experiment]) -> list[Experiment]:
    """Refuses two experiments that would be the same run; returns them."""
    first: dict[str, Experiment] = {}
    for each in experiments:
        settings = identity.canonical(identity.deciding(each))
        if other := first.get(settings):
            raise InputError(
                f"{each.name} with seed {each.seed} is there twice"
                + (f", also as {other.name}." * (other.name != each.name) or ".")
            )
        first[settings] = each
    return experiments
