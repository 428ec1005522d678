"""Accelerators by their published rates: what they compute and move in a second."""

import csv
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from adaprec_jax.cost.numbers import Number

DATA = Path(__file__).parent / "data"

# Short name -> name in the table.
_NAMES = {
    "v100": "V100-SXM2-32GB",
    "a100": "A100-SXM4-80GB",
    "h100": "H100-SXM5-80GB",
    "h200": "H200-SXM-141GB",
    "b200": "B200-HGX-1000W",
    "mi300x": "MI300X",
    "tpu-v4": "TPU-v4",
    "tpu-v5e": "TPU-v5e",
    "tpu-v5p": "TPU-v5p",
    "tpu-v6e": "TPU-v6e",
    "tpu7x": "TPU7x-Ironwood",
}
# Unit -> most bits of an integer and of a float that it takes without loss; 16-bit
# floats have one rate wherever both are published, and count as one.
_HOLDS = {
    "int4": (4, 0),
    "int8": (8, 0),
    "float4": (0, 4),
    "float6": (0, 6),
    "float8": (0, 8),
    "float16": (12, 16),
    "bfloat16": (9, 16),
    "tf32": (12, 19),
    "float32": (24, 32),
}


class Device(NamedTuple):
    """One accelerator.

    Attributes:
        name: Its short name.
        product: Its name.
        rates: Dense peak in FLOP/s by the unit's dtype; those that are published.
        bandwidth: Of its memory, byte/s.
        power: Rated power in W; None where it is not published.
        memory: Bytes.
        source: Of these numbers.
    """

    name: str
    product: str
    rates: Mapping[str, float]
    bandwidth: float
    power: float | None
    memory: float
    source: str


def names() -> tuple[str, ...]:
    """Returns the short names of all devices."""
    return tuple(_NAMES)


def device(name: str) -> Device:
    """Returns an accelerator by its short name.

    Raises:
        ValueError: There is none of that name.

    >>> device("h100").rates["float8"] / device("h100").rates["bfloat16"]
    2.0001010713563776
    """
    if name not in _NAMES:
        raise ValueError(f"device must be one of {', '.join(_NAMES)}, got {name!r}.")
    rows = [row for row in _rows() if row["device"] == _NAMES[name]]
    rates = {
        row["dtype"]: float(row["dense_peak_tflops"]) * 1e12
        for row in rows
        if row["dense_peak_tflops"]
    }
    first = rows[0]
    return Device(
        name=name,
        product=first["device"],
        rates=rates,
        bandwidth=float(first["mem_bw_GBps"]) * 1e9,
        power=float(first["tdp_W"]) if first["tdp_W"] else None,
        memory=float(first["mem_GB"]) * 1e9,
        source=first["source"],
    )


def unit(device: Device, first: Number, second: Number) -> str | None:
    """Returns the fastest unit that multiplies both kinds of numbers without loss.

    What a chip has no units for it computes in wider ones: integers of 3 bits in those
    for 8, FP8 on an A100 in those for bfloat16. None if no published rate fits.

    >>> from adaprec_jax import formats
    >>> from adaprec_jax.cost.numbers import number
    >>> int3, fp8 = number(formats.integer(3)), number(formats.get("float8_e5m2"))
    >>> unit(device("h100"), int3, int3), unit(device("a100"), fp8, fp8)
    ('int8', 'float16')
    """
    fits = [
        name
        for name, rate in device.rates.items()
        if rate and _takes(name, first) and _takes(name, second)
    ]
    return max(fits, key=lambda name: (device.rates[name], name), default=None)


def _takes(unit: str, number: Number) -> bool:
    integers, floats = _HOLDS[unit]
    return number.bits <= (integers if number.integer else floats)


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    with (DATA / "hardware.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
