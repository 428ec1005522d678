"""Fashion-MNIST: 70,000 grey images of 28 x 28 pixels in ten classes of clothing.

Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747; MIT licence. The last 10,000 of the
60,000 training images are for validation; the test set is the published one.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, UInt8

from adaprec_jax.tasks import files, network, objectives, pinned
from adaprec_jax.tasks.files import DataError
from adaprec_jax.tasks.network import Model
from adaprec_jax.tasks.task import (
    Batch,
    Data,
    Split,
    Task,
    from_network,
    gather_rows,
    widen,
)

SOURCE = files.Source(
    base_url=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/"
        "data/fashion/"
    ),
    remedy=(
        "get the data with `apt-get install dataset-fashion-mnist`, or pass a folder "
        "that holds its four .gz files"
    ),
    installed=Path("/usr/share/datasets/fashion-mnist"),
)


def load(
    source: files.Source = SOURCE,
    *,
    validation: int = 10_000,
    sha256: Mapping[str, str] = pinned.FASHION_MNIST,
) -> Data:
    """Returns the images, split as published.

    Arrays: inputs uint8 (70000, 28, 28), targets int32 (70000,).

    Args:
        source: Where the four files may lie; `SOURCE._replace(folder=...)` for a
            folder of one's own.
        validation: How many of the training images, from the end, are for validation.
        sha256: What each decompressed file hashes to.

    Raises:
        DataError: A file is missing, damaged, or not the published one.
    """
    parts = [
        files.read(name, source, partial(_read_idx, sha256=sha256[name]))
        for name in pinned.FASHION_MNIST
    ]
    arrays = Batch(
        inputs=np.concatenate(parts[0::2]),
        targets=np.concatenate(parts[1::2]).astype(np.int32),
    )
    seen, size = len(parts[0]), len(arrays.inputs)
    rows = np.arange(size, dtype=np.int32)
    split = Split(*np.split(rows, [seen - validation, seen]))
    return Data(
        arrays=arrays,
        split=lambda seed: split,  # The same for every seed.
        gather=gather_rows,
        fingerprint=pinned.fingerprint(sha256.values()),
    )


def task(data: Data, model: Model) -> Task:
    """Returns the task of classifying clothing.

    Args:
        data: What `load` returned.
        model: Maps float32 pixels in [0, 1] of shape (batch, 28, 28, 1) to 10 logits.
    """
    return from_network(
        "fashion-mnist", data, network.of(model), objectives.classification(10), _pixels
    )


def _read_idx(compressed: bytes, sha256: str) -> UInt8[np.ndarray, "..."]:
    """Returns the array in a compressed IDX file of bytes, after every check."""
    try:
        raw = gzip.decompress(compressed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"is truncated or not a gzip file ({error})") from error
    # Two zeros, 8 for unsigned bytes, the rank, then a big-endian size for each axis.
    rank = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    if rank not in (1, 3) or len(raw) < 4 + 4 * rank:
        raise DataError(f"is not an IDX file of images or labels (begins {raw[:4]!r})")
    shape = struct.unpack_from(f">{rank}I", raw, 4)
    if len(raw) != 4 + 4 * rank + math.prod(shape) or shape[1:] not in ((), (28, 28)):
        raise DataError(f"holds {len(raw)} bytes, which do not fit its shape {shape}")
    files.check_digest(raw, sha256)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _pixels(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    return widen(images)[..., None]
