"""Several runs as one pack: each writes its own directory, as a run alone does.

Runs of a pack differ in numbers alone: seeds, schedules that depend on the step alone,
constant learning rates (`adaprec_jax.studies.packs` says which). They take their steps
together, in one compilation; their metrics, checkpoints and results are those of
ordinary runs. The sums of a batch of matrices may be formed in another order than those
of one, so a run of a pack equals the run alone to float32 rounding, not to the bit.

A pack that was killed goes on with the same members at the last step of which all have
a checkpoint, and so comes to the same end to the bit. Members that are over by then
take part, and nothing of theirs is written.
"""

import contextlib
import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, Int32, PyTree

from adaprec_jax.report.chart import bit_range
from adaprec_jax.report.progress import Display, Moment, display
from adaprec_jax.runs import environment, identity, metrics, plan_log, rows, store
from adaprec_jax.runs.build import Built, as_input_error, build, make_schedule
from adaprec_jax.runs.config import ConstantRate, Experiment
from adaprec_jax.runs.environment import Environment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.expected import decay
from adaprec_jax.runs.load import from_json
from adaprec_jax.runs.memory import check_fits
from adaprec_jax.runs.results import (
    Means,
    energies,
    from_metrics,
    named,
    of_test,
)
from adaprec_jax.runs.run import (
    EVALUATED,
    add_note,
    cadence_of,
    fetch,
    message_of,
    noted,
    steps_written,
    stoppable,
)
from adaprec_jax.runs.store import Outcome
from adaprec_jax.schedules import stack
from adaprec_jax.tasks import order
from adaprec_jax.tasks.task import Split
from adaprec_jax.train import (
    Ending,
    Hooks,
    Metrics,
    TrainState,
    diverged,
    evaluate,
    ill_parameter,
    make_diagnose,
    make_pack_dispatch,
    make_score,
    pack_score,
    run_of,
    train,
)
from adaprec_jax.train.checkpoint import restore, saving
from adaprec_jax.train.guard import CheckpointError
from adaprec_jax.transforms import averaged


class _Member(NamedTuple):
    """A run of a pack.

    Attributes:
        experiment: Its settings.
        directory: Its own.
        split: Its rows of the data.
        first: Its first state, as of a run alone.
        writes: Whether it is to be trained; else it only takes part.
    """

    experiment: Experiment
    directory: Path
    split: Split
    first: TrainState
    writes: bool


class _Halt(NamedTuple):
    """Where a run of a pack has diverged, and why if that is known."""

    step: int
    metrics: Metrics | None
    message: str = ""


def run_pack(experiments: Sequence[Experiment], *, out: Path) -> list[Outcome]:
    """Trains several runs together; goes on from where all of them can.

    Args:
        experiments: They differ in numbers alone.
        out: The folder of runs.

    Returns:
        How each ended.

    Raises:
        InputError: Data, a directory or a checkpoint cannot be used, or a run that was
            trained with these is gone. What the directories hold is kept.
    """
    wanted = {identity.run_id(each): each for each in experiments}
    every = _members(wanted, out)
    (_, first), *_ = every.items()
    built = build(first)
    states = _first_states([*every.values()], built)
    members = [
        _Member(
            each,
            store.locate(out, each),
            built.task.data.split(each.seed),
            state,
            writes=run_id in wanted,
        )
        for (run_id, each), state in zip(every.items(), states, strict=True)
    ]
    check_fits(states)
    now = environment.capture() | {"pack": _named(every)}
    mine = [member for member in members if member.writes]
    with contextlib.ExitStack() as sessions:
        for member in mine:
            _begin(sessions, member, now, built.task.data.fingerprint)
            store.write_json(member.directory / store.PACK, {"members": [*every]})
        outcomes = _recorded(members, built)
        for member, outcome in zip(mine, outcomes, strict=True):
            store.finish(member.directory, outcome)
    return outcomes


def _members(wanted: dict[str, Experiment], out: Path) -> dict[str, Experiment]:
    """Returns the experiments of the pack by id: those wanted, or as it was begun."""
    directories = [store.locate(out, each) for each in wanted.values()]
    begun = dict.fromkeys(i for each in directories for i in store.pack_of(each))
    if not begun:
        return wanted
    found: dict[str, Experiment] = {}
    for run_id in begun:
        if run_id in wanted:
            found[run_id] = wanted[run_id]
            continue
        path = next(iter(sorted(out.glob(f"*-{run_id}/{store.CONFIG}"))), None)
        if path is None:
            raise InputError(
                f"The run {run_id}, which was trained together with {directories[0]}, "
                f"is not in {out}."
            )
        found[run_id] = from_json(path)
    return found | wanted


def _named(members: Iterable[str]) -> str:
    """Returns what names a pack: other members are another environment.

    >>> _named(["a", "b"])
    '2 runs, c8687a08'
    """
    ids = [*members]
    digest = hashlib.sha256(" ".join(ids).encode()).hexdigest()
    return f"{len(ids)} runs, {digest[:8]}"


def _begin(
    sessions: contextlib.ExitStack, member: _Member, now: Environment, data: str
) -> None:
    changed = sessions.enter_context(
        store.session(member.directory, member.experiment, now, data)
    )
    for change in changed:
        add_note(member.directory / store.LOG, f"since the last session, {change}")


def _first_states(experiments: Sequence[Experiment], built: Built) -> list[TrainState]:
    """Returns the first state of each run, as it has alone."""
    with as_input_error():
        schedules = [
            make_schedule(each.schedule, each.steps, decay(each)).init(
                built.program.table
            )
            for each in experiments
        ]
    init = jax.jit(built.init)  # of one shape, for one compilation
    padded = stack(schedules)
    found = []
    for k, (each, schedule) in enumerate(zip(experiments, schedules, strict=True)):
        own = jax.tree.map(lambda leaf, k=k: leaf[k], padded)
        state = init(jax.random.key(each.seed), own)
        state = state._replace(schedule_state=jax.tree.map(jnp.asarray, schedule))
        rate = each.optimizer.learning_rate
        if isinstance(rate, ConstantRate):
            opt_state = optax.tree_utils.tree_set(
                state.opt_state,
                lambda path, value: isinstance(value, jax.Array),
                learning_rate=jnp.float32(rate.peak),
            )
            state = state._replace(opt_state=opt_state)
        found.append(state)
    return found


def _joined(states: Sequence[TrainState]) -> TrainState:
    """Returns the state of a pack of runs that have taken as many steps."""
    schedules = stack([state.schedule_state for state in states])
    alone = [state._replace(calls=(), schedule_state=()) for state in states]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    return together._replace(calls=states[0].calls, schedule_state=schedules)


def _alone(state: TrainState, k: int, like: TrainState) -> TrainState:
    """Returns the state of one run of a pack, as long as it has it alone."""

    def cut(leaf: Any, own: Any) -> Any:
        return leaf[tuple(map(slice, own.shape))] if leaf.shape != own.shape else leaf

    return jax.tree.map(cut, run_of(state, k), like)


def _recorded(members: Sequence[_Member], built: Built) -> list[Outcome]:
    """Returns the outcomes of a session of the runs that write, whatever happens."""
    mine = [member for member in members if member.writes]
    experiment = members[0].experiment

    def note(text: str) -> None:
        for member in mine:
            add_note(member.directory / store.LOG, text)

    try:
        state, said = _state_of(members)
        start = int(state.calls)
        note(f"trained with {len(members) - 1} other runs")
        with display(f"{len(members)} runs", start, experiment.steps) as shown:
            for text in said:
                note(text)
                shown.say(text)
            if start:
                note(f"goes on from step {start}")
            outcomes = _train(members, built, state, shown)
    except InputError as error:
        note(str(error))
        raise
    except CheckpointError as error:
        note(str(error))
        raise InputError(str(error)) from error
    except Exception as error:
        message = noted(error, note)
        outcomes = [
            Outcome("failed", steps_written(member.directory), {}, message)
            for member in mine
        ]
    for member, outcome in zip(mine, outcomes, strict=True):
        ended = f"{outcome.state} after {outcome.step} steps {outcome.message}"
        add_note(member.directory / store.LOG, ended.rstrip())
    return outcomes


def _state_of(members: Sequence[_Member]) -> tuple[TrainState, list[str]]:
    """Returns the state of the pack at the last step of which all have a checkpoint."""
    limit: int | None = None
    said: dict[str, None] = {}
    while True:
        found = [
            restore(member.directory / store.CHECKPOINTS, member.first, at_most=limit)
            for member in members
        ]
        said |= dict.fromkeys(text for each in found if each for text in each.refused)
        steps = [each.step if each else 0 for each in found]
        if len({*steps}) == 1 or min(steps) == 0:
            break
        limit = min(steps)
    if min(steps) == 0:
        return _joined([member.first for member in members]), [*said]
    return _joined([each.state for each in found if each]), [*said]


def _train(
    members: Sequence[_Member], built: Built, state: TrainState, shown: Display
) -> list[Outcome]:
    """Returns how the runs that write ended, once all have."""
    start, experiment = int(state.calls), members[0].experiment
    gather, arrays = built.task.data.gather, jax.device_put(built.task.data.arrays)
    compilations = itertools.count()
    dispatch = make_pack_dispatch(built.program, gather, lambda: next(compilations))
    score = jax.jit(pack_score(make_score(built.program, built.task.scores), gather))
    halts: dict[int, _Halt] = {}
    with (
        contextlib.ExitStack() as opened,
        stoppable() as stop,
    ):
        files, saves = _opened(opened, members, start)

        def going() -> list[int]:
            return [k for k in files if k not in halts]

        def append(k: int, found: Iterator[rows.Row]) -> None:
            for steps, columns in rows.blocks(found):
                metrics.append(files[k], steps, columns)

        def validate(step: int, state: TrainState) -> None:
            means = _means(score, state, [m.split.validation for m in members], arrays)
            for k in going():
                append(k, iter([(step, named("validation", _of(means, k)))]))

        def save(step: int, state: TrainState) -> None:
            for k in going():
                own = _alone(state, k, members[k].first)
                if ill := ill_parameter(own):
                    halts[k] = _Halt(step, None, f"{ill} at step {step}")
                else:
                    saves[k](step, own)

        hooks = Hooks(
            fetch=functools.partial(_fetch, members),
            on_metrics=_reporter(members, built, state, append, halts, shown),
            evaluate=validate,
            save=save,
            stop=stop,
        )
        ending = train(
            lambda state, rows: dispatch(state, rows, arrays),
            state,
            cadence_of(experiment),
            hooks,
        )
    results = _tested(members, score, ending, arrays)
    count = next(compilations)
    return [
        _outcome(k, members[k], built, ending, halts.get(k), results, count)
        for k in files
    ]


def _opened(
    opened: contextlib.ExitStack, members: Sequence[_Member], start: int
) -> tuple[dict[int, io.FileIO], dict[int, Callable[[int, PyTree], None]]]:
    """Returns the metrics and what saves a checkpoint, of each run that writes."""
    files, saves = {}, {}
    for k, member in enumerate(members):
        if member.writes:
            path, every = member.directory, member.experiment.log_every
            files[k] = opened.enter_context(
                metrics.start(path / store.METRICS, start, every)
            )
            keep = member.experiment.keep_checkpoints
            saves[k] = opened.enter_context(
                saving(path / store.CHECKPOINTS, start, keep=keep)
            )
    return files, saves


def _fetch(
    members: Sequence[_Member], numbers: Int[np.ndarray, " steps"]
) -> Int32[np.ndarray, "steps runs batch"]:
    """Returns the rows that these steps read, for each run as it has them alone."""
    batch = members[0].experiment.batch_size
    found = [
        member.split.train[
            order.indices(
                member.experiment.seed, numbers, batch, len(member.split.train)
            )
        ]
        for member in members
    ]
    return np.stack(found, axis=1)


def _reporter(
    members: Sequence[_Member],
    built: Built,
    state: TrainState,
    append: Callable[[int, Iterator[rows.Row]], None],
    halts: dict[int, _Halt],
    shown: Display,
) -> Callable[[Int[np.ndarray, " steps"], Metrics], None]:
    """Returns what writes the metrics of each run up to the step where it halts."""
    experiment = members[0].experiment
    layout = rows.layout(built.program, experiment.statistics, experiment.log_every)
    before = np.array(state.plan)  # the state is donated
    number_of = {
        k: plan_log.numbering(member.directory / plan_log.FILE)
        for k, member in enumerate(members)
        if member.writes
    }

    def report(numbers: Int[np.ndarray, " steps"], found: Metrics) -> None:
        nonlocal before
        for k, number in number_of.items():
            if k in halts:
                continue
            own = jax.tree.map(lambda leaf, k=k: leaf[:, k], found)
            halted = bool(own.halted.any())
            count = int(np.argmax(own.halted)) + 1 if halted else len(numbers)
            kept = jax.tree.map(lambda leaf, n=count: leaf[:n], own)
            append(k, rows.rows(layout, numbers[:count], kept, before[k], number))
            if halted:
                last = jax.tree.map(lambda leaf: leaf[-1], kept)
                halts[k] = _Halt(int(numbers[count - 1]), last)
        before = found.plan[-1]
        moment = Moment(
            step=int(numbers[-1]),
            loss=float(np.mean(found.scalars["loss"][-1])),
            precision=bit_range(rows.bits_of(before)[:, :, :2]),
            saturation=float("nan"),
            skipped=int(np.sum(found.scalars["skipped"][-1])),
        )
        shown.update(moment)

    return report


def _means(
    score: Any,
    state: TrainState,
    splits: Sequence[Int[np.ndarray, " rows"]],
    arrays: PyTree,
) -> Means:
    """Returns the mean scores of all runs, each over its own rows."""
    size, count = min(EVALUATED, len(splits[0])), len(splits[0])
    chunks = zip(*(order.chunks(split, size) for split in splits), strict=True)
    batches = ((np.stack(chunk), arrays) for chunk in chunks)
    return evaluate(score, state, batches, count)


def _of(means: Means, k: int) -> Means:
    """Returns the means of one run."""
    return {name: {n: m[k] for n, m in each.items()} for name, each in means.items()}


def _tested(
    members: Sequence[_Member], score: Any, ending: Ending, arrays: PyTree
) -> dict[str, Means]:
    """Returns the means over the test set, by the name of the split in the results."""
    if ending.kind != "done":
        return {}
    splits, state = [member.split.test for member in members], ending.state
    found = {"test": _means(score, state, splits, arrays)}
    if members[0].experiment.optimizer.averaging is not None:
        params = jax.vmap(averaged)(state.opt_state, state.params)
        mean = state._replace(params=params)
        found["test_averaged"] = _means(score, mean, splits, arrays)
    return found


def _outcome(
    k: int,
    member: _Member,
    built: Built,
    ending: Ending,
    halt: _Halt | None,
    tested: dict[str, Means],
    compilations: int,
) -> Outcome:
    """Returns how one run ended."""
    ending = ending._replace(state=_alone(ending.state, k, member.first))
    if ending.kind == "interrupted":
        halt = None  # It will get there again.
    elif halt:
        ending = _diverged(member, built, halt, ending.state)
    results: dict[str, float] = {}
    if ending.kind == "done":
        for split, means in tested.items():
            results |= of_test(split, _of(means, k))
    columns = metrics.read(member.directory / store.METRICS)
    results |= from_metrics(member.experiment, built, columns, ending.step)
    if "cost" in results:
        results |= energies(member.directory)
    results["compilations"] = compilations
    return Outcome(
        ending.kind, ending.step, results, message_of(ending, member.directory)
    )


def _diverged(member: _Member, built: Built, halt: _Halt, state: TrainState) -> Ending:
    """Returns the ending of a run that halted; from then on its state stood still."""
    if halt.metrics is None:
        return Ending("diverged", halt.step, state, halt.message)
    own = built._replace(split=member.split)
    hooks = Hooks(
        fetch=functools.partial(fetch, member.experiment, own),
        diagnose=make_diagnose(built.program),
    )
    return diverged(halt.step, halt.metrics, state, hooks)
