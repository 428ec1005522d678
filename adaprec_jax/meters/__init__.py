"""Meters: what reads energy from hardware, and windows in which to read it.

Imports no JAX. A meter that has nothing to read says None, never 0.
"""

from adaprec_jax.meters.codecarbon import codecarbon
from adaprec_jax.meters.measure import Measurement, Protocol, Window, measure, summary
from adaprec_jax.meters.meter import Meter, Reading, fake, none
from adaprec_jax.meters.nvml import nvml
from adaprec_jax.meters.rapl import rapl
from adaprec_jax.meters.zeus import zeus

__all__ = [
    "Measurement",
    "Meter",
    "Protocol",
    "Reading",
    "Window",
    "codecarbon",
    "fake",
    "measure",
    "none",
    "nvml",
    "rapl",
    "summary",
    "zeus",
]
