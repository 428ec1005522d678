"""BERT's uncased word pieces (Wu et al. 2016, arXiv:1609.08144), for alphabets."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int32

# Letters and digits, or one sign; an underscore is a sign.
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def batch(
    texts: Sequence[str], vocabulary: Mapping[str, int], length: int
) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
    """Returns the padded numbers of each text, and where they are not padding."""
    ids = np.zeros((len(texts), length), np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, text in enumerate(texts):
        found = numbers(text, vocabulary, length)
        ids[row, : len(found)], mask[row, : len(found)] = found, True
    return ids, mask


def numbers(text: str, vocabulary: Mapping[str, int], length: int) -> list[int]:
    """Returns the numbers of a text between [CLS] and [SEP], cut to `length`.

    >>> pieces = ("[CLS]", "[SEP]", "[UNK]", "pre", "##cis", "##ion", "!")
    >>> numbers("Précision! x", {piece: i for i, piece in enumerate(pieces)}, 8)
    [0, 3, 4, 5, 6, 2, 1]
    """
    letters = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in letters if unicodedata.category(c) != "Mn")
    inside = [
        vocabulary[piece]
        for word in _WORD.findall(plain)
        for piece in _pieces(word, vocabulary)
    ]
    return [vocabulary["[CLS]"], *inside[: length - 2], vocabulary["[SEP]"]]


def _pieces(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """Returns the longest known beginning, then that of the rest, and so on."""
    pieces, mark = [], ""
    while word:
        end = len(word)
        while end and mark + word[:end] not in vocabulary:
            end -= 1
        if not end:
            return ["[UNK]"]
        pieces.append(mark + word[:end])
        word, mark = word[end:], "##"
    return pieces
