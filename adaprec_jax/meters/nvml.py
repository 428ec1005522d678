"""The energy counters of NVIDIA GPUs."""

import importlib
from typing import Any

from adaprec_jax.meters.meter import Meter, Reading, none

_MILLI = 1e-3
_TICK = 0.1  # seconds between two updates of the counter


def nvml(library: Any = None) -> Meter:
    """Returns the meter of all NVIDIA GPUs; `none` where there is none to read.

    It needs `nvidia-ml-py`, the extra `nvml`. GPUs before Volta have no counter.

    Args:
        library: In place of the module `pynvml`.

    >>> nvml(library=object()).name
    'none'
    """
    try:
        library = importlib.import_module("pynvml") if library is None else library
        library.nvmlInit()
        handles = [
            library.nvmlDeviceGetHandleByIndex(i)
            for i in range(library.nvmlDeviceGetCount())
        ]
        for handle in handles:
            library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:
        return none()
    if not handles:
        return none()

    def read() -> Reading:
        return {
            f"gpu{i}": library.nvmlDeviceGetTotalEnergyConsumption(handle) * _MILLI
            for i, handle in enumerate(handles)
        }

    return Meter("nvml", "GPUs with their memory", read, tick=_TICK)
