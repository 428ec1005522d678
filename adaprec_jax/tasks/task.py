"""The pieces of a task: data, a model's functions, and what is measured.

A task holds plain functions and host arrays, so a train step is a pure function of
parameters and batch, and many runs share one copy of the data:

    rows = split.train[order.indices(seed, steps, batch, len(split.train))]  # (K, B)
    batch = task.data.gather(task.data.arrays, rows[k])   # host or device, also vmapped

`arrays` holds every example once; what a seed changes are the row numbers alone. A
split has the same sizes for every seed, so the rows of several seeds stack.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn, nnx
from jaxtyping import Array, Float, Int32, Key, PyTree, Shaped

from adaprec_jax.tasks import order
from adaprec_jax.tasks.network import (
    Network,
    Params,
    Result,
    Variables,
    of_linen,
    of_nnx,
)

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
            float32 mean over the batch, and what the model itself adds to it, such as
            the balance of `models.Experts`; `key` is for dropout and the like.
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


def from_arrays(
    inputs: Shaped[np.ndarray, "size ..."], targets: Shaped[np.ndarray, "size ..."]
) -> Data:
    """Returns examples as data; each seed draws its own split, 60 : 20 : 20.

    Args:
        inputs: uint8, int32 or float32.
        targets: As many.

    Raises:
        ValueError: There are fewer than five examples, or the counts differ.

    >>> data = from_arrays(np.zeros((10, 2), np.float32), np.arange(10, dtype=np.int32))
    >>> [len(rows) for rows in data.split(0)]
    [6, 2, 2]
    """
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    size, held = len(inputs), len(inputs) // 5
    if len(targets) != size or not held:
        raise ValueError(
            f"There must be as many inputs as targets, at least 5, got {size} and "
            f"{len(targets)}."
        )
    digest = hashlib.sha256()
    for array in (inputs, targets):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return Data(
        arrays=Batch(inputs, targets),
        split=lambda seed: Split(
            *np.split(order.permutation(size, seed, 0), [size - 2 * held, size - held])
        ),
        gather=gather_rows,
        fingerprint=digest.hexdigest(),
    )


def widen(inputs: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Returns stored inputs as float32; uint8 as 0 to 1.

    >>> widen(jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    wide = inputs.astype(jnp.float32)
    return wide / 255 if inputs.dtype == jnp.uint8 else wide


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
                f"{where} is {array.dtype}; allowed are uint8, int32 and float32 "
                "(convert it, .astype(np.int32) for instance)."
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

    The module is called as `model(inputs)`. It may have batch statistics: then it takes
    an argument `train` as well, and normalises by the batch in training and by its
    running averages in evaluation. What it sows into the collection `losses` is added
    to the loss.

    Args:
        name: What the task is called in tables and messages.
        data: The examples.
        model: Maps a batch of prepared inputs to outputs.
        objective: What is asked of the outputs.
        prepare: As of `from_network`, which says what is refused.
    """
    return from_network(name, data, of_linen(model), objective, prepare)


def from_nnx(
    name: str,
    data: Data,
    make: Callable[..., nnx.Module],
    objective: Objective,
    prepare: Callable[[Any], Any],
) -> Task:
    """Returns the task of fitting a Flax nnx module to data.

    It may have batch statistics, as `from_linen` says.

    Args:
        name: What the task is called in tables and messages.
        data: The examples.
        make: Makes the module, called as `make(rngs=rngs)`. The module maps a batch of
            prepared inputs to outputs.
        objective: What is asked of the outputs.
        prepare: As of `from_network`, which says what is refused.
    """
    return from_network(name, data, of_nnx(make), objective, prepare)


def from_network(
    name: str,
    data: Data,
    network: Network,
    objective: Objective,
    prepare: Callable[[Any], Any],
) -> Task:
    """Returns the task of fitting a model's functions to data.

    A model with dropout needs a `Task` written out, whose loss is given a key.

    Args:
        name: What the task is called in tables and messages.
        data: The examples.
        network: Maps a batch of prepared inputs to outputs.
        objective: What is asked of the outputs.
        prepare: What happens to the stored inputs on the device, such as the scaling
            of uint8 pixels.

    Raises:
        TypeError: The data has another dtype than uint8, int32 or float32.
        ValueError: The data is not finite; in `init`, the model has more than
            parameters and batch statistics.
    """
    check_arrays(name, data.arrays)
    example = data.gather(data.arrays, data.split(0).train[:1]).inputs

    def init(key: Key[Array, ""]) -> Variables:
        return network.init(key, prepare(jnp.asarray(example)))

    def run(params: Params, model_state: Any, inputs: Any, *, train: bool) -> Result:
        inputs = prepare(jax.tree.map(jnp.asarray, inputs))
        return network.apply(params, model_state, inputs, train=train)

    def scores(params: Params, model_state: Any, batch: Batch) -> Scores:
        found = run(params, model_state, batch.inputs, train=False)
        return objective.scores(found.outputs, jnp.asarray(batch.targets))

    def loss(
        params: Params, model_state: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Aux]:
        del key  # Nothing here is random.
        found = run(params, model_state, batch.inputs, train=True)
        scores = objective.scores(found.outputs, jnp.asarray(batch.targets))
        metrics = jax.tree.map(jnp.mean, scores)
        return metrics["loss"] + found.penalty, Aux(metrics, found.model_state)

    return Task(name, data, objective.metric, init, loss, scores)
