"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, no download.

The smallest real task: a network of one hidden layer of 64 reaches 96 to 97 % in a few
seconds. The data comes with the scikit-learn package (UCI optical recognition of
handwritten digits, BSD licence).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from adaprec_jax.tasks import network, objectives, order, pinned
from adaprec_jax.tasks.files import check_digest
from adaprec_jax.tasks.network import Model
from adaprec_jax.tasks.task import (
    Batch,
    Data,
    Split,
    Task,
    from_network,
    gather_rows,
)


def load() -> Data:
    """Returns the digits, each seed with its own stratified split, 60 : 20 : 20.

    Arrays: inputs uint8 (1797, 64) with values 0 to 16, targets int32 (1797,). A
    split holds 1079 training, 359 validation and 359 test rows.

    Raises:
        DataError: scikit-learn ships other data than the results here were made with.

    >>> data = load()
    >>> [len(rows) for rows in data.split(3)]
    [1079, 359, 359]
    """
    from sklearn.datasets import load_digits  # Slow to import.

    images, labels = load_digits(return_X_y=True)
    arrays = Batch(images.astype(np.uint8), labels.astype(np.int32))
    check_digest(arrays.inputs.tobytes(), pinned.DIGITS["images"])
    check_digest(arrays.targets.astype(np.uint8).tobytes(), pinned.DIGITS["labels"])
    return Data(
        arrays=arrays,
        split=lambda seed: stratified(arrays.targets, seed),
        gather=gather_rows,
        fingerprint=pinned.fingerprint(pinned.DIGITS.values()),
    )


def task(data: Data, model: Model, shape: tuple[int, ...] = (64,)) -> Task:
    """Returns the task of classifying digits.

    Args:
        data: What `load` returned.
        model: Maps float32 pixels in [0, 1] of shape (batch, *shape) to 10 logits; a
            linen module, or what makes an nnx module.
        shape: One digit as the model reads it: (64,) a row of pixels, (8, 8) a sequence
            of rows, (8, 8, 1) an image, (64, 1) nodes of one feature.
    """
    return from_network(
        "digits",
        data,
        network.of(model),
        objectives.classification(10),
        lambda images: pixels(images).reshape(-1, *shape),
    )


def stratified(labels: Int32[np.ndarray, " size"], seed: int) -> Split:
    """Returns a random 60 : 20 : 20 split with every class in these proportions.

    Args:
        labels: One class per row.
        seed: Which split; the sizes are the same for all seeds.

    >>> split = stratified(np.repeat(np.int32([0, 1]), [5, 10]), seed=0)
    >>> [len(rows) for rows in split], len(np.unique(np.concatenate(split)))
    ([9, 3, 3], 15)
    """
    parts: list[list[np.ndarray]] = []
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label).astype(np.int32)
        # The zero sets these streams apart from those of the epochs.
        rows = rows[order.permutation(len(rows), seed, 0, label)]
        held = round(0.2 * len(rows))
        parts.append(np.split(rows, [len(rows) - 2 * held, len(rows) - held]))
    return Split(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))


def pixels(images: UInt8[Array, "batch 64"]) -> Float[Array, "batch 64"]:
    """Returns the grey values of stored images, 0 to 1."""
    return images.astype(jnp.float32) / 16
