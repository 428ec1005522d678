"""A made-up task of any size, for tests: a student learns what a random teacher says.

Inputs are standard normal; targets are the outputs of a fixed random network of one
hidden layer, or the largest of them. All seeds share the data: with a teacher per
seed, the differences between tasks would drown those between precisions.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adaprec_jax.tasks import network, objectives
from adaprec_jax.tasks.network import Model
from adaprec_jax.tasks.task import Batch, Data, Split, Task, from_network, gather_rows

Kind = Literal["classification", "regression"]


def load(
    kind: Kind = "classification",
    *,
    size: int = 2048,
    features: int = 16,
    outputs: int = 4,
) -> Data:
    """Returns what the teacher says, in a fixed split of 50 : 25 : 25.

    Arrays: inputs float32 (size, features); targets float32 (size, outputs) for
    regression, int32 (size,) for classification.

    Args:
        kind: Whether the targets are the teacher's outputs or the largest one's index.
        size: Examples in all.
        features: Inputs per example.
        outputs: The teacher's outputs; the number of classes.

    >>> load(size=8).arrays.inputs.shape
    (8, 16)
    """
    x_key, in_key, out_key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(x_key, (size, features))
    w_in = jax.random.normal(in_key, (features, 32)) / features**0.5
    w_out = jax.random.normal(out_key, (32, outputs)) / 32**0.5
    y = jnp.tanh(x @ w_in) @ w_out
    targets = y if kind == "regression" else jnp.argmax(y, axis=-1).astype(jnp.int32)
    rows = np.arange(size, dtype=np.int32)
    split = Split(*np.split(rows, [size // 2, size * 3 // 4]))
    return Data(
        arrays=Batch(np.asarray(x), np.asarray(targets)),
        split=lambda seed: split,  # The same for every seed.
        gather=gather_rows,
        fingerprint=f"teacher-{kind}-{size}-{features}-{outputs}",
    )


def task(data: Data, model: Model, classes: int | None = None) -> Task:
    """Returns the task of imitating the teacher.

    Args:
        data: What `load` returned.
        model: Maps float32 inputs (batch, features) to the teacher's outputs, or to a
            logit for each.
        classes: How many there are; other outputs are refused.
    """
    if data.arrays.targets.dtype == np.float32:
        objective = objectives.regression()
    else:
        objective = objectives.classification(classes)
    return from_network("teacher", data, network.of(model), objective, _unchanged)


def _unchanged(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    return inputs
