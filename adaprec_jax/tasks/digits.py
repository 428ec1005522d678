"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, no download.

The smallest real task: a network of one hidden layer of 64 reaches 96 to 97 % in a few
seconds. The data comes with the scikit-learn package (UCI optical recognition of
handwritten digits, BSD licence).
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int32, UInt8

from adaprec_jax.tasks import objectives, order, pinned
from adaprec_jax.tasks.files import check_digest
from adaprec_jax.tasks.task import (
    Batch,
    Data,
    Split,
    Task,
    from_linen,
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


def task(data: Data, model: nn.Module) -> Task:
    """Returns the task of classifying digits.

    Args:
        data: What `load` returned.
        model: Maps float32 pixels in [0, 1] of shape (batch, 64) to 10 logits.
    """
    return from_linen("digits", data, model, objectives.classification(), _pixels)


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


def _pixels(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    return images.astype(jnp.float32) / 16
