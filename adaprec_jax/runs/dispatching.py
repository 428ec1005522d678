"""The compiled steps of a run, emulated or native, and what they took."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
from jaxtyping import PyTree

from adaprec_jax import targets
from adaprec_jax.native import Native, make_native_dispatch
from adaprec_jax.runs import config
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.targets import Target
from adaprec_jax.train import (
    Program,
    TrainState,
    make_dispatch,
    make_train_step,
)

Dispatch: TypeAlias = Callable[..., Any]
Taken: TypeAlias = Callable[[], dict[str, int | float]]

# What JAX calls the devices of a target.
_KINDS = {
    "h100": ("H100", "H200"),
    "b200": ("B200", "GB200"),
    "tpu-v5e": ("v5 lite", "v5e"),
    "tpu-v5p": ("v5p", "v5"),
    "tpu-v6e": ("v6 lite", "v6e"),
    "tpu7x": ("7x",),
}


@contextlib.contextmanager
def dispatching(
    experiment: Experiment,
    program: Program,
    state: TrainState,
    shardings: tuple[PyTree, PyTree],
) -> Iterator[tuple[Dispatch, Taken]]:
    """Yields the dispatch of a run, and what says afterwards what it took.

    Args:
        experiment: All settings.
        program: What a step does.
        state: To go on from, on its devices.
        shardings: Of the state and of the metrics.

    Raises:
        InputError: The run cannot be native: the target is not what is here, or too
            many executables are needed.
    """
    execution = experiment.execution
    if isinstance(execution, config.Emulated):
        compilations = itertools.count()
        step = make_train_step(program)
        dispatch = make_dispatch(step, shardings, lambda: next(compilations))
        yield dispatch, lambda: {"compilations": next(compilations)}
        return
    native = Native(
        target_here(execution.target),
        experiment.steps,
        experiment.steps_per_dispatch,
        execution.max_executables,
        execution.on_compile_failure == "emulate",
    )
    try:
        dispatch = make_native_dispatch(program, native, state, shardings)
    except ValueError as error:
        raise InputError(f"execution: {error}") from error

    def taken() -> dict[str, int | float]:
        report = dispatch.report()
        return {
            "compilations": report.executables,
            "executables_emulated": len(report.failures),
            "seconds_waited_for_executables": report.waited,
        }

    try:
        yield dispatch, taken
    finally:
        dispatch.close()


def target_here(name: str) -> Target:
    """Returns the target that a run is to be native on.

    Raises:
        InputError: It is not what JAX finds here, or what JAX finds is not known.
    """
    device = jax.devices()[0]
    here = "cpu" if device.platform == "cpu" else ""
    for known, kinds in _KINDS.items():
        if not here and any(kind in device.device_kind for kind in kinds):
            here = known
    if not here:
        raise InputError(
            f"execution.target: what JAX finds here, {device.device_kind}, is none of "
            f"{', '.join(targets.names())}."
        )
    if name not in ("here", here):
        raise InputError(
            f"execution.target: {name} is not here, JAX finds {here}; `adaprec compile "
            f"--target {name}` compiles for it."
        )
    return targets.get(here)
