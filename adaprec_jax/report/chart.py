"""A quantity over the steps of a run, as a line of text."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

_LEVELS = "▁▂▃▄▅▆▇█"


def chart(
    bits: Mapping[str, Int[np.ndarray, " steps"]], *, width: int = 79
) -> list[str]:
    """Returns a line for each name: its bits over time, and between which they lay.

    All lines share one scale. Names whose bits are the same at all steps share a line.

    Args:
        bits: By name, the bits at each step.
        width: Of the lines, in characters.

    >>> bits = {"a": np.repeat([3, 8, 4], 4), "b": np.full(12, 8)}
    >>> for line in chart(bits, width=17):
    ...     print(line)
    a ▁▁██▂▂ 3-8 bits
    b ██████ 8 bits
    """
    together: dict[bytes, list[str]] = {}
    for name, values in bits.items():
        together.setdefault(np.asarray(values).tobytes(), []).append(name)
    labels = [_label(names, len(bits)) for names in together.values()]
    rows = [np.asarray(bits[names[0]]) for names in together.values()]
    low, high = (int(end([end(row) for row in rows])) for end in (np.min, np.max))
    ranges = [bit_range(row) for row in rows]
    pad = max(map(len, labels))
    room = max(width - pad - max(map(len, ranges)) - 2, 1)
    return [
        f"{label:{pad}} {_draw(row, low, high, room)} {between}"
        for label, row, between in zip(labels, rows, ranges, strict=True)
    ]


def bit_range(bits: Int[np.ndarray, "..."]) -> str:
    """Returns between which the bits lie.

    >>> bit_range(np.array([3, 8])), bit_range(np.array([8, 8]))
    ('3-8 bits', '8 bits')
    """
    low, high = np.min(bits), np.max(bits)
    return f"{low} bits" if low == high else f"{low}-{high} bits"


def _label(names: Sequence[str], total: int) -> str:
    if len(names) == total > 1:
        return "all layers"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _draw(row: Int[np.ndarray, " steps"], low: int, high: int, width: int) -> str:
    parts = np.array_split(row, min(width, len(row)))
    means: Float[np.ndarray, " width"] = np.array([part.mean() for part in parts])
    share = (means - low) / (high - low) if high > low else np.ones_like(means)
    levels = np.rint(share * (len(_LEVELS) - 1)).astype(int)
    return "".join(_LEVELS[level] for level in levels)
