"""What a train step takes on this machine, beside the plain float32 step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adaprec_jax.contractions import Table
from adaprec_jax.meters import Meter, none, nvml, rapl
from adaprec_jax.meters.measure import Measurement, Protocol, measure
from adaprec_jax.runs.build import Built, build, make_schedule
from adaprec_jax.runs.config import Experiment, Float32
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
    emulates its formats, and counts as emulated. A call is one dispatch,
    `steps_per_dispatch` steps of training; compilation comes before the first window.

    Args:
        experiment: All settings.
        meter: Reads the energy.
        protocol: How is measured.
        **clocks: `clock` and `sleep` of `adaprec_jax.meters.measure`, for tests.

    Raises:
        InputError: The data is missing, or the settings do not fit.
    """
    built = build(experiment)
    batches = fetch(experiment, built, np.arange(experiment.steps_per_dispatch))
    plain = built.program._replace(
        table=Table((), ()),
        schedule=make_schedule(Float32(), experiment.steps),
        options=built.program.options._replace(untouched=lambda _: True),
        costs={},
    )
    with jax.default_matmul_precision("highest"):
        ways = {
            experiment.name: _dispatched(built, built.program, batches),
            PLAIN: _dispatched(built, plain, batches),
        }
        return measure(ways, meter, protocol, emulated=[experiment.name], **clocks)


def _dispatched(built: Built, program: Program, batches: Any) -> Callable[[], Any]:
    """Returns what trains for one dispatch and waits until it is done."""
    dispatch = make_dispatch(make_train_step(program))
    first = jax.jit(built.init)(built.key)
    state = init_state(program, first.params, first.model_state, built.key)

    def once() -> Any:
        nonlocal state
        state, metrics = dispatch(state, batches)
        return jax.block_until_ready((state, metrics))

    return once
