"""One run: from its config, or from its last checkpoint, to its outcome.

Progress is told on the standard error and in the run's log. Rows of metrics up to a
step are written before the checkpoint of that step; on resume those above it go.
"""

import contextlib
import datetime
import functools
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from adaprec_jax.report import chart
from adaprec_jax.report.progress import Display, Moment, display
from adaprec_jax.runs import (
    environment,
    metrics,
    plan_log,
    processes,
    rows,
    sinks,
    store,
)
from adaprec_jax.runs.build import Built, build
from adaprec_jax.runs.config import Experiment, ImportedSink
from adaprec_jax.runs.dispatching import dispatching
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.leaving import cursor, leave
from adaprec_jax.runs.memory import check_fits
from adaprec_jax.runs.results import (
    Means,
    energies,
    from_metrics,
    named,
    of_test,
)
from adaprec_jax.runs.sinks import with_sinks
from adaprec_jax.runs.store import Outcome
from adaprec_jax.tasks import order
from adaprec_jax.train import (
    Cadence,
    Ending,
    Hooks,
    Metrics,
    Split,
    TrainState,
    data_mesh,
    evaluate,
    everywhere,
    layout,
    make_diagnose,
    make_score,
    put,
    shard,
    train,
)
from adaprec_jax.train.checkpoint import restore, saving
from adaprec_jax.train.guard import CheckpointError
from adaprec_jax.transforms import averaged

EVALUATED = 256  # examples per call of an evaluation


def run(experiment: Experiment, *, out: Path) -> Outcome:
    """Trains; goes on from the run's last checkpoint if it has one.

    Args:
        experiment: All settings.
        out: The folder of runs.

    Raises:
        InputError: The data, the directory or a checkpoint cannot be used. What the
            directory holds is kept, and the run can go on later.
    """
    return _run(store.locate(out, experiment), experiment)


def resume(directory: Path, sinks: Sequence[ImportedSink] = ()) -> Outcome:
    """Goes on with an existing run; as `run`.

    Args:
        directory: Of the run.
        sinks: Beside those that it began with.
    """
    return _run(directory, with_sinks(store.experiment_of(directory), sinks))


def _run(directory: Path, experiment: Experiment) -> Outcome:
    built, now = build(experiment), environment.capture()
    check_fits(jax.eval_shape(built.init, built.key))
    processes.check_devices(experiment.devices)
    checkpoints = directory / store.CHECKPOINTS
    if not processes.writes():
        unseen = experiment.model_copy(update={"sinks": ()})  # Process 0 shows it all.
        with processes.copied(directory) as own:
            return _recorded(own, checkpoints, unseen, built, ())
    data = built.task.data.fingerprint
    with store.session(directory, experiment, now, data) as changed:
        (directory / store.PACK).unlink(missing_ok=True)  # From here on it is alone.
        processes.agree(0)
        outcome = _recorded(directory, checkpoints, experiment, built, changed)
        store.finish(directory, outcome)
    return outcome


def _recorded(
    directory: Path,
    checkpoints: Path,
    experiment: Experiment,
    built: Built,
    changed: tuple[str, ...],
) -> Outcome:
    """Returns the outcome of a session, whatever happens in it."""
    note = functools.partial(add_note, directory / store.LOG)
    try:
        state, warnings = _first_state(checkpoints, built)
        start = int(state.calls)
        processes.agree(start)
        with display(experiment.name, start, experiment.steps) as shown:

            def say(text: str) -> None:
                note(text)
                shown.say(text)

            for change in changed:
                say(f"since the last session, {change}")
            for warning in warnings:
                say(warning)
            if start:
                say(f"goes on from step {start}")
            told = shown._replace(say=say)
            outcome = _train(directory, experiment, built, state, told)
    except InputError as error:
        note(str(error))
        raise
    except CheckpointError as error:
        note(str(error))
        raise InputError(str(error)) from error
    except Exception as error:
        message = noted(error, note)
        if processes.is_gone(error):
            message = f"{processes.GONE} (see {store.LOG})"
        outcome = Outcome("failed", steps_written(directory), {}, message)
    note(f"{outcome.state} after {outcome.step} steps {outcome.message}".rstrip())
    return outcome


def noted(error: Exception, note: Callable[[str], object]) -> str:
    """Returns what an outcome says of an error, whose traceback goes to the log."""
    note("".join(traceback.format_exception(error)))
    reason = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason} (see {store.LOG})"


def _first_state(checkpoints: Path, built: Built) -> tuple[TrainState, tuple[str, ...]]:
    """Returns the state to go on from, and what the user should know about it."""
    first = jax.jit(built.init)(built.key)
    restored = restore(checkpoints, first)
    return (restored.state, restored.refused) if restored else (first, ())


def _train(
    directory: Path,
    experiment: Experiment,
    built: Built,
    state: TrainState,
    shown: Display,
) -> Outcome:
    start, metric = int(state.calls), built.task.metric.name
    mesh, where = on_mesh(experiment, state)
    state, shardings = put(state, where), (where, everywhere(mesh))
    scored = make_score(built.program, built.task.scores)
    score = jax.jit(scored, out_shardings=everywhere(mesh))
    path = directory / store.METRICS
    results: dict[str, float] = {}
    with (
        metrics.start(path, start, experiment.log_every) as file,
        sinks.opened(experiment, directory, start, shown.say) as show,
        saving(
            directory / store.CHECKPOINTS, start, keep=experiment.keep_checkpoints
        ) as save,
        dispatching(experiment, built.program, state, shardings) as (dispatch, taken),
        stoppable() as stop,
    ):

        def append(found: Iterator[rows.Row]) -> None:
            for steps, columns in rows.blocks(found):
                metrics.append(file, steps, columns)
                show(steps, columns)

        def validate(step: int, state: TrainState) -> None:
            means = _means(built, score, state, built.split.validation)
            append(iter([(step, named("validation", means))]))
            each = ", ".join(f"{means[p][metric]:.4g} ({p})" for p in means)
            shown.say(f"step {step}, validation {metric} {each}")

        hooks = Hooks(
            fetch=lambda numbers: shard(fetch(experiment, built, numbers), mesh),
            on_metrics=_reporter(
                experiment,
                built,
                state,
                append,
                shown,
                plan_log.numbering(directory / plan_log.FILE),
            ),
            evaluate=validate,
            save=processes.gathering(save, everywhere(mesh)),
            stop=processes.any_of(stop),
            diagnose=make_diagnose(built.program),
        )
        ending = train(dispatch, state, cadence_of(experiment), hooks)
    if ending.kind == "done":
        means = _means(built, score, ending.state, built.split.test)
        results |= of_test("test", means)
        results |= _averaged(experiment, built, score, ending.state)
    results |= from_metrics(experiment, built, metrics.read(path), ending.step)
    if "cost" in results:
        results |= energies(directory)
    results |= taken()
    return Outcome(ending.kind, ending.step, results, message_of(ending, directory))


def _reporter(
    experiment: Experiment,
    built: Built,
    state: TrainState,
    append: Callable[[Iterator[rows.Row]], None],
    shown: Display,
    number_of: Callable[[Any], int],
) -> Callable[[Int[np.ndarray, " steps"], Metrics], None]:
    """Returns what writes and shows the metrics of each dispatch."""
    layout = rows.layout(built.program, experiment.statistics, experiment.log_every)
    before = np.array(state.plan)  # the state is donated
    saturation = float("nan")

    def report(numbers: Int[np.ndarray, " steps"], found: Metrics) -> None:
        nonlocal before, saturation
        append(rows.rows(layout, numbers, found, before, number_of))
        before = found.plan[-1]
        saturated = np.asarray(found.quantities["saturation_fraction"])
        saturation = rows.largest(saturated, saturation)
        moment = Moment(
            step=int(numbers[-1]),
            loss=float(found.scalars["loss"][-1]),
            precision=chart.bit_range(rows.bits_of(before)[:, :2]),
            saturation=saturation,
            skipped=int(found.scalars["skipped"][-1]),
        )
        shown.update(moment)

    return report


def on_mesh(
    experiment: Experiment, state: TrainState, devices: Sequence[Any] | None = None
) -> tuple[Mesh, TrainState]:
    """Returns the mesh of a run, and where each leaf of its state lies on it.

    Args:
        experiment: All settings.
        state: Arrays, or their shapes.
        devices: In place of the first that JAX finds here.

    Raises:
        InputError: A parameter cannot be split as the settings say.
    """
    settings = experiment.mesh
    devices = devices or jax.devices()[: experiment.devices]
    splits = [Split(each.pattern, each.axis) for each in settings.splits]
    mesh = data_mesh(devices, settings.tensor)
    try:
        where = layout(state, mesh, splits, spread=settings.spread_parameters)
    except ValueError as error:
        raise InputError(f"mesh.splits: {error}") from error
    return mesh, where


def fetch(
    experiment: Experiment, built: Built, numbers: Int[np.ndarray, " steps"]
) -> PyTree:
    """Returns the batches of these steps, stacked."""
    train, data = built.split.train, built.task.data
    found = order.indices(experiment.seed, numbers, experiment.batch_size, len(train))
    return data.gather(data.arrays, train[found])


def _means(
    built: Built, score: Any, state: TrainState, split: Int[np.ndarray, " rows"]
) -> Means:
    """Returns the mean scores over a split, by precision."""
    data = built.task.data
    chunks = order.chunks(split, min(EVALUATED, len(split)))
    batches = (data.gather(data.arrays, chunk) for chunk in chunks)
    return evaluate(score, state, batches, len(split))


def _averaged(
    experiment: Experiment, built: Built, score: Any, state: TrainState
) -> dict[str, float]:
    """Returns the test scores of the averaged weights, where there are any."""
    if experiment.optimizer.averaging is None:
        return {}
    state = state._replace(params=averaged(state.opt_state, state.params))
    means = _means(built, score, state, built.split.test)
    return of_test("test_averaged", means)


def cadence_of(experiment: Experiment) -> Cadence:
    """Returns how long a run is and when it pauses."""
    return Cadence(
        steps=experiment.steps,
        dispatch=experiment.steps_per_dispatch,
        evaluate_every=experiment.evaluate_every,
        save_every=experiment.checkpoint_every,
    )


def message_of(ending: Ending, directory: Path) -> str:
    """Returns why a run ended before its last step, "" if it did not."""
    if ending.kind == "interrupted":
        return f"`adaprec resume {directory}` goes on"
    return ending.message


def steps_written(directory: Path) -> int:
    """Returns the last step that the metrics tell of."""
    with contextlib.suppress(OSError, ValueError):
        columns = metrics.read(directory / store.METRICS)
        return max((step for values in columns.values() for step in values), default=0)
    return 0


def add_note(path: Path, text: str) -> None:
    """Adds a line to the log; a full disk must not keep anybody from saying so."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(f"{now} {text}\n")


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yields whether the user wants to stop: Ctrl-C once; twice ends the process."""
    asked = threading.Event()

    def ask(number: int, _: Any) -> None:
        asked.set()
        signal.signal(number, leave)
        sys.stderr.write(
            f"{cursor()}adaprec: stops after this dispatch, with a checkpoint; "
            "Ctrl-C again stops at once.\n"
        )

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in signals]
    try:
        yield asked.is_set
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
