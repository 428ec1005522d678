"""The pieces of a task: data, a model's functions, and what is measured.

A task holds plain functions and host arrays, so a train step is a pure function of
parameters and batch, and many runs share one copy of the data:

    rows = split.train[order.indices(seed, steps, batch, len(split.train))]  # (K, B)
    batch = task.data.gather(task.data.arrays, rows[k])   # host or device, also vmapped

`arrays` holds every example once; what a seed changes are the row numbers alone. A
split has the same sizes for every seed, so the rows of several seeds stack.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int32, Key, PyTree, Shaped

Params: TypeAlias = PyTree[Float[Array, "..."]]
Variables: TypeAlias = tuple[Any, Any]  # parameters and model state
Scores: TypeAlias = dict[str, Float[Array, " batch"]]  # one number per example
HostOrDevice: TypeAlias = np.ndarray | jax.Array


class Batch(NamedTuple):
    """Examples, the first axis counting them."""

    inputs: Any
    targets: Any


class Split(NamedTuple):
    """Disjoint row numbers, int32; `test` is for one reading, at the end."""

    train: Int32[np.ndarray, " train"]
    validation: Int32[np.ndarray, " validation"]
    test: Int32[np.ndarray, " test"]


class Data(NamedTuple):
    """Examples on the host and how to take some of them.

    Attributes:
        arrays: All examples, as a tree of uint8, int32 or float32 arrays. It may be
            put on the device, once for all runs.
        split: The row numbers a seed trains, validates and tests on.
        gather: `(arrays, rows) -> Batch` for rows of any shape, all of them on the
            host or all on the device.
        fingerprint: A sha256 that names the data.
    """

    arrays: Any
    split: Callable[[int], Split]
    gather: Callable[[Any, Any], Batch]
    fingerprint: str


class Metric(NamedTuple):
    """The score a task is judged by."""

    name: str
    higher_is_better: bool


class Objective(NamedTuple):
    """What is asked of a model's outputs.

    Attributes:
        scores: `(outputs, targets) -> Scores`; the entry `"loss"` is what is trained.
        metric: Which of the scores counts, and in which direction.
    """

    scores: Callable[[Any, Any], Scores]
    metric: Metric


class Aux(NamedTuple):
    """What the loss returns beside its value: float32 means, and the model's state."""

    metrics: dict[str, Float[Array, ""]]
    model_state: Any


class Task(NamedTuple):
    """Everything that is trained and measured, without any precision.

    Attributes:
        name: What the task is called in tables.
        data: The examples.
        metric: What it is judged by, one of the keys of `scores`.
        init: `key -> (params, model_state)`.
        loss: `(params, model_state, batch, key) -> (loss, Aux)`; the loss is the
            float32 mean over the batch, `key` is for dropout and the like.
        scores: `(params, model_state, batch) -> Scores` in evaluation, one float32
            number per example, so that padding is left out of a mean exactly.
    """

    name: str
    data: Data
    metric: Metric
    init: Callable[[Key[Array, ""]], Variables]
    loss: Callable[[Any, Any, Batch, Key[Array, ""]], tuple[Float[Array, ""], Aux]]
    scores: Callable[[Any, Any, Batch], Scores]


def gather_rows(arrays: Batch, rows: Shaped[HostOrDevice, "..."]) -> Batch:
    """Returns the examples `rows` of arrays whose first axis counts examples.

    >>> pairs = Batch(np.arange(4, dtype=np.int32), np.arange(10, 14, dtype=np.int32))
    >>> gather_rows(pairs, np.array([2, 0])).targets
    array([12, 10], dtype=int32)
    """
    return Batch(arrays.inputs[rows], arrays.targets[rows])


def check_arrays(name: str, arrays: PyTree) -> None:
    """Refuses data that would be cast or would poison a run.

    Args:
        name: The data set, for the message.
        arrays: A tree of host arrays.

    Raises:
        TypeError: An array is not uint8, int32 or float32.
        ValueError: An array holds a NaN or an infinity.

    >>> check_arrays("mine", {"x": np.array([[1.0, np.nan]], np.float32)})
    Traceback (most recent call last):
    ...
    ValueError: mine: ['x'] is nan at index (0, 1); the data must be finite.
    """
    for path, leaf in jax.tree.leaves_with_path(arrays):
        where = f"{name}: {jax.tree_util.keystr(path)}"
        array = np.asarray(leaf)
        if array.dtype not in (np.uint8, np.int32, np.float32):
            raise TypeError(
                f"{where} is {array.dtype}; allowed are uint8, int32 and float32."
            )
        finite = np.isfinite(array)
        if not finite.all():
            index = tuple(np.argwhere(~finite)[0].tolist())
            raise ValueError(
                f"{where} is {array[index]} at index {index}; the data must be finite."
            )


def from_linen(
    name: str,
    data: Data,
    model: nn.Module,
    objective: Objective,
    prepare: Callable[[Any], Any],
) -> Task:
    """Returns the task of fitting a Flax linen module to data.

    The module is called as `model(inputs)` in training and in evaluation, and has
    parameters only. A model with batch statistics or dropout needs a `Task` written
    out, which has room for both.

    Args:
        name: What the task is called in tables and messages.
        data: The examples.
        model: Maps a batch of prepared inputs to outputs.
        objective: What is asked of the outputs.
        prepare: What happens to the stored inputs on the device, such as the scaling
            of uint8 pixels.

    Raises:
        TypeError: The data has another dtype than uint8, int32 or float32.
        ValueError: The data is not finite, or the module has more than parameters.
    """
    check_arrays(name, data.arrays)
    example = data.gather(data.arrays, data.split(0).train[:1]).inputs

    def init(key: Key[Array, ""]) -> Variables:
        state = dict(model.init(key, prepare(jnp.asarray(example))))
        params = state.pop("params")
        if state:
            raise ValueError(
                f"{name}: the model has the collections {sorted(state)} beside its "
                "parameters; write its Task out instead."
            )
        return params, state

    def scores(params: Params, model_state: Any, batch: Batch) -> Scores:
        del model_state  # Parameters only.
        inputs, targets = jax.tree.map(jnp.asarray, batch)
        outputs = model.apply({"params": params}, prepare(inputs))
        return objective.scores(outputs, targets)

    def loss(
        params: Params, model_state: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Aux]:
        del key  # Nothing here is random.
        metrics = jax.tree.map(jnp.mean, scores(params, model_state, batch))
        return metrics["loss"], Aux(metrics, model_state)

    return Task(name, data, objective.metric, init, loss, scores)
