"""What a train step takes on this machine, beside the plain float32 step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adaprec_jax import stats
from adaprec_jax.contractions import Table
from adaprec_jax.meters import Meter, none, nvml, rapl
from adaprec_jax.meters.measure import Measurement, Protocol, measure
from adaprec_jax.native import foresee, learns
from adaprec_jax.runs.build import Built, build, make_schedule
from adaprec_jax.runs.config import Emulated, Experiment, Float32
from adaprec_jax.runs.dispatching import target_here
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.run import fetch
from adaprec_jax.train import Program, init_state, make_dispatch, make_train_step

PLAIN = "plain float32"


def any_meter() -> Meter:
    """Returns the first meter that there is: GPUs, the processor, or none.

    >>> any_meter().name in ("nvml", "rapl", "none")
    True
    """
    for made in (nvml(), rapl()):
        if made.read() is not None:
            return made
    return none()


def measured(
    experiment: Experiment,
    meter: Meter,
    protocol: Protocol = Protocol(),
    **clocks: Callable[..., Any],
) -> Measurement:
    """Returns the windows of an experiment's step and of the plain float32 step.

    The plain step multiplies in float32 at the highest matmul precision: "float32" is
    TF32 on recent GPUs otherwise, and bfloat16 on TPUs. The experiment's own step
    emulates its formats, and counts as emulated, unless it is native. A call is the
    run's first dispatch, `steps_per_dispatch` steps of training in the formats that it
    begins with; compilation comes before the first window.

    Args:
        experiment: All settings.
        meter: Reads the energy.
        protocol: How is measured.
        **clocks: `clock` and `sleep` of `adaprec_jax.meters.measure`, for tests.

    Raises:
        InputError: The data is missing, the settings do not fit, or the run is native
            on what is not here, or under a schedule that learns.
    """
    built = build(experiment)
    own = _natively(experiment, built) or built.program
    batches = fetch(experiment, built, np.arange(experiment.steps_per_dispatch))
    plain = built.program._replace(
        table=Table((), ()),
        schedule=make_schedule(Float32(), experiment.steps),
        options=built.program.options._replace(untouched=lambda _: True),
        costs={},
    )
    with jax.default_matmul_precision("highest"):
        ways = {
            experiment.name: _dispatched(built, own, batches),
            PLAIN: _dispatched(built, plain, batches),
        }
        emulated = [experiment.name] if own is built.program else []
        return measure(ways, meter, protocol, emulated=emulated, **clocks)


def _natively(experiment: Experiment, built: Built) -> Program | None:
    """Returns the program with the kernels of its first dispatch; None if emulated."""
    execution, program = experiment.execution, built.program
    if isinstance(execution, Emulated):
        return None
    nothing = stats.empty(program.table, program.watch)
    schedule_state = jax.eval_shape(built.init, built.key).schedule_state
    if learns(program.schedule, nothing, schedule_state):
        raise InputError(
            f"schedule: {experiment.schedule.kind} learns from the run, so its formats "
            "are not known before it, and no native step can be measured."
        )
    dispatch = experiment.steps_per_dispatch
    target = target_here(execution.target)
    _, kinds = foresee(program, target, steps=dispatch, dispatch=dispatch)
    options = program.options._replace(kernels=kinds[0])
    return program._replace(options=options)


def _dispatched(built: Built, program: Program, batches: Any) -> Callable[[], Any]:
    """Returns what trains for the first dispatch, ever again, and waits for it."""
    dispatch = make_dispatch(make_train_step(program))
    first = jax.jit(built.init)(built.key)
    state = init_state(program, first.params, first.model_state, built.key)
    # On the host, as what a dispatch is given cannot be read afterwards.
    begins = jax.device_get((state.calls, state.schedule_state))

    def once() -> Any:
        nonlocal state
        calls, schedule_state = begins
        state = state._replace(calls=calls, schedule_state=schedule_state)
        state, metrics = dispatch(state, batches)
        return jax.block_until_ready((state, metrics))

    return once
