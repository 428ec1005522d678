"""The work of an experiment's train step, counted without data and without training."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaprec_jax.contractions import Table
from adaprec_jax.cost.work import Work, count, kept_bytes
from adaprec_jax.runs import build, imports
from adaprec_jax.runs.build_task import blank_data, make_task
from adaprec_jax.runs.config import Experiment
from adaprec_jax.train import Program, make_train_step


class Memory(NamedTuple):
    """Bytes that a step needs at once, by class, in the dtypes that they really have.

    Attributes:
        weights: The parameters, and what else the model keeps.
        gradients: One for each parameter, and float32 sums over micro-batches.
        optimizer: What the optimizer remembers, emulated formats as they are: float32.
        master: Float32 copies of narrower parameters.
        activations: What the backward pass of a micro-batch needs of the forward pass.
        batch: The examples.
    """

    weights: int
    gradients: int
    optimizer: int
    master: int
    activations: int
    batch: int


class Counted(NamedTuple):
    """A train step before anything was trained.

    Attributes:
        program: What a step does.
        work: Its work, by product and part.
        memory: What it needs at once.
        parameters: How many the model has.
    """

    program: Program
    work: Work
    memory: Memory
    parameters: int

    @property
    def table(self) -> Table:
        """The contractions of a micro-batch."""
        return self.program.table


def counted(experiment: Experiment) -> Counted:
    """Returns the work and the memory of an experiment's train step.

    It traces the step and computes nothing; data is needed by a task of one's own only.

    Raises:
        InputError: Data or model do not fit the settings.

    >>> from adaprec_jax.runs.load import load
    >>> found = counted(load("digits-int8"))
    >>> found.parameters, found.memory.weights
    (4810, 19240)
    """
    with build.as_input_error():
        task = make_task(experiment, blank_data(experiment.task))
    program = build.make_program(experiment, task)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(
        functools.partial(build.first_state, experiment, task, program), key
    )
    batch = _batch(experiment, task, experiment.batch_size)
    own = imports.targets((experiment.task, experiment.model))
    with build.as_input_error(), imports.blamed(*own):
        closed = jax.make_jaxpr(make_train_step(program))(state, batch)
        part = _batch(
            experiment, task, experiment.batch_size // experiment.micro_batches
        )
        kept = kept_bytes(program.loss, state.params, state.model_state, part, key)
    work = count(closed, program.table, gather_every=program.gather_every)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    gradients = _bytes(state.params)
    memory = Memory(
        weights=gradients + _bytes(state.model_state),
        gradients=gradients + (4 * sum(sizes) if experiment.micro_batches > 1 else 0),
        optimizer=_bytes(state.opt_state.inner),
        master=_bytes(state.opt_state.master),
        activations=kept,
        batch=_bytes(batch),
    )
    return Counted(program, work, memory, sum(sizes))


def _batch(experiment: Experiment, task: Any, size: int) -> Any:
    rows = jax.ShapeDtypeStruct((size,), jnp.int32)
    return jax.eval_shape(task.data.gather, task.data.arrays, rows)


def _bytes(tree: Any) -> int:
    return sum(
        leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
