"""Searching the settings of a schedule for the front of accuracy and cost.

A config file declares it beside `config` and `sweep`:

    def search() -> Search:
        space = {"schedule.min_bits": [2, 3, 4, 5], "schedule.cycles": [1, 2, 4, 8]}
        return Search(config("cpt"), space)

optuna proposes settings one after another (ask and tell, by the genetic algorithm
NSGA-II). Its proposals are a function of its seed and of the results so far, and the
results are in the run directories, so nothing else is stored: a search typed again asks
the same questions, and trains only what has no answer yet. It needs
`pip install 'adaprec-jax[search]'`.

What a search finds is too good by chance: its front is the best of so many trials. So
it is read from validation data alone, and `front_study` lists its members for seeds
that the search did not see; and, asked to, for a task that it did not see.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from adaprec_jax.runs import identity, overrides
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.store import Outcome
from adaprec_jax.studies.study import Study, study_of
from adaprec_jax.studies.sweep import grid, seeds


class Search(NamedTuple):
    """What is searched.

    Attributes:
        base: The experiment whose settings are varied; its seed is that of all trials.
        space: The values that each path may have, in a meaningful order if they have
            one.
        metric: The result that should be large; of validation data.
    """

    base: Experiment
    space: Mapping[str, Sequence[Any]]
    metric: str = "validation/highest/accuracy"


class Trial(NamedTuple):
    """One proposal, and what came of it.

    Attributes:
        experiment: The proposal.
        metric: Its result; None of a run that diverged or failed.
        cost: Bit operations relative to float32, mean over the run; None as above.
        steps: How many it took.
        is_new: Whether no earlier trial proposed the same.
    """

    experiment: Experiment
    metric: float | None
    cost: float | None
    steps: int
    is_new: bool


def search(
    what: Search, trials: int, seed: int, train: Callable[[Experiment], Outcome]
) -> Iterator[Trial]:
    """Yields proposals with their results, one after another.

    Args:
        what: What is searched.
        trials: How many proposals.
        seed: Of the sampler.
        train: Returns how the run of a proposal ended; a run that is over is not
            trained again.

    Raises:
        InputError: optuna is not installed, the space is empty, or a value in it does
            not fit.
    """
    optuna = _optuna()
    for path in what.space:  # Says what is wrong before anything is trained.
        grid(what.base, {path: what.space[path]})
    with _quiet(optuna):
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=16)
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=sampler
        )
        seen: set[str] = set()
        for _ in range(trials):
            asked = study.ask()
            chosen = {
                path: values[asked.suggest_int(path, 0, len(values) - 1)]
                for path, values in what.space.items()
            }
            experiment = _proposed(what.base, chosen)
            if experiment is None:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                continue
            outcome = train(experiment)
            values = _values(what, outcome)
            if values is None:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(asked, values)
            key = experiment.model_dump_json()
            metric, cost = values or (None, None)
            yield Trial(experiment, metric, cost, outcome.step, key not in seen)
            seen.add(key)


def _values(what: Search, outcome: Outcome) -> tuple[float, float] | None:
    """Returns metric and cost of a run, None if it has no sound ones."""
    if outcome.state != "done":
        return None
    results = outcome.results
    if missing := [name for name in (what.metric, "cost") if name not in results]:
        raise InputError(
            f"A run has no result {missing[0]!r}; it has {', '.join(results)}."
        )
    metric, cost = results[what.metric], results["cost"]
    return (metric, cost) if math.isfinite(metric) and math.isfinite(cost) else None


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that no other beats in both metric and cost, cheapest first.

    >>> def trial(metric, cost):
    ...     return Trial(None, metric, cost, 1, True)
    >>> found = front([trial(0.9, 0.5), trial(0.8, 0.6), trial(0.7, 0.1)])
    >>> [(each.metric, each.cost) for each in found]
    [(0.7, 0.1), (0.9, 0.5)]
    """
    known = [each for each in trials if each.is_new and each.metric is not None]
    best: list[Trial] = []
    for each in sorted(known, key=lambda t: (t.cost, -(t.metric or 0.0))):
        if not best or (each.metric or 0.0) > (best[-1].metric or 0.0):
            best.append(each)
    return best


def front_study(
    what: Search,
    trials: Sequence[Trial],
    name: str,
    count: int,
    other: Experiment | None = None,
) -> Study:
    """Returns the members of the front, each with seeds that the search did not see.

    What holds on the task that was searched may hold there alone. With another
    experiment the study has its task, too: the settings that were found, put into it,
    beside both experiments as they are, for a baseline on each task.

    Args:
        what: What was searched.
        trials: All of them.
        name: Of the study.
        count: How many seeds.
        other: An experiment that the search did not see.

    Raises:
        InputError: No trial had a result, or what was found does not fit the other
            experiment.
    """
    best = front(trials)
    if not best:
        raise InputError("No trial of the search had a result.")
    members = [each.experiment for each in best]
    if other is not None:
        moved = [_elsewhere(what, each.experiment, other) for each in best]
        members = [*_unlike([what.base, *members]), *_unlike([other, *moved])]
    first = what.base.seed + 1
    if other is not None:
        first = max(first, other.seed + 1)
    return study_of(seeds(members, range(first, first + count)), name)


def check_elsewhere(what: Search, other: Experiment) -> None:
    """Refuses an experiment that what is searched cannot be put into.

    Raises:
        InputError: It has no such settings, or its task is the one that is searched.
    """
    if identity.canonical(_task(what.base)) == identity.canonical(_task(other)):
        raise InputError(
            f"The task {other.task.kind} is the one that is searched; what is found "
            "must be confirmed on another."
        )
    for path, values in what.space.items():
        grid(other, {path: values})


def _task(experiment: Experiment) -> Any:
    return experiment.task.model_dump(mode="json", exclude={"folder"})


def _elsewhere(what: Search, found: Experiment, other: Experiment) -> Experiment:
    """Returns another experiment with the settings that were found."""
    tree = found.model_dump(mode="json")
    chosen = {path: _at(tree, path) for path in what.space}
    return overrides.apply(other, overrides.assignments(chosen))


def _at(tree: Any, path: str) -> Any:
    """Returns what stands at a path of settings."""
    for name in path.split("."):
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    return tree


def _unlike(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Returns experiments without those that are there before."""
    found: dict[str, Experiment] = {}
    for each in experiments:
        found.setdefault(identity.canonical(identity.deciding(each)), each)
    return [*found.values()]


def spent(trials: Sequence[Trial]) -> float:
    """Returns the cost of the search itself, in steps of float32.

    Trials whose cost is unknown, such as those that diverged, count as float32.
    """
    return sum(
        each.steps * (1.0 if each.cost is None else each.cost)
        for each in trials
        if each.is_new
    )


def _proposed(base: Experiment, chosen: Mapping[str, Any]) -> Experiment | None:
    """Returns the experiment, None where the values do not fit together."""
    try:
        return overrides.apply(base, overrides.assignments(chosen))
    except InputError:
        return None


def _optuna() -> ModuleType:
    try:
        return importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        raise InputError(
            "A search needs optuna, which is not installed: "
            "pip install 'adaprec-jax[search]'."
        ) from error


@contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    """Keeps optuna from telling of each trial what we tell ourselves."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
