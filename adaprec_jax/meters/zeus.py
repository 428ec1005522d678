"""The counters of GPUs and processors as Zeus reads them."""

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

from adaprec_jax.meters.meter import Meter, Reading, none

_MILLI = 1e-3
_TICK = 0.1  # seconds between two updates of a GPU's counter


def zeus(library: Any = None) -> Meter:
    """Returns the meter of all that Zeus has a counter for; `none` without any.

    It needs the package `zeus`, the extra of that name (`zeus-ml` is an older one).
    Beside NVIDIA's GPUs it knows AMD's, and it asks the daemon `zeusd` where processor
    counters are root's. GPUs that have no counter of energy, and systems on a chip, are
    left out. Read are the counters themselves and not its windows, whose total is 0
    where there is nothing to read.

    Zeus follows a processor's counter in a process of its own, that imports the main
    module again: a program needs `if __name__ == "__main__"`.

    Args:
        library: In place of the module `zeus.device`.

    Raises:
        ImportError: Zeus is not installed.

    >>> zeus(library=object()).name
    'none'
    """
    # The package that reads AMD's GPUs prints where there are none.
    with contextlib.redirect_stdout(io.StringIO()):
        library = _library() if library is None else library
        gpus = _known(lambda: _gpus(library.get_gpus()))
        cpus = _known(lambda: _cpus(library.get_cpus()))
    boundary = " and ".join(
        words
        for there, words in (
            (gpus, "GPUs with their memory"),
            (cpus, "processor packages and their memory"),
        )
        if there
    )
    if not boundary:
        return none()

    def read() -> Reading:
        there = [each() for each in (*gpus, *cpus)]
        return {name: joules for found in there for name, joules in found.items()}

    return Meter("zeus", boundary, read, tick=_TICK)


def _gpus(found: Any) -> list[Callable[[], dict[str, float]]]:
    """Returns what reads each GPU that has a counter."""
    return [
        lambda i=i: {f"gpu{i}": found.get_total_energy_consumption(i) * _MILLI}
        for i in range(len(found))
        if found.supports_get_total_energy_consumption(i)
    ]


def _cpus(found: Any) -> list[Callable[[], dict[str, float]]]:
    """Returns what reads each processor package and its memory."""

    def read(i: int) -> dict[str, float]:
        both = found.get_total_energy_consumption(i)
        joules = {f"cpu{i}": both.cpu_mj, f"dram{i}": both.dram_mj}
        return {name: mj * _MILLI for name, mj in joules.items() if mj is not None}

    return [
        lambda i=i: read(i)
        for i, each in enumerate(found.cpus)
        # The platform's counter holds those of the packages.
        if getattr(getattr(each, "rapl_file", None), "name", "") != "psys"
    ]


def _known(
    find: Callable[[], list[Callable[[], dict[str, float]]]],
) -> list[Callable[[], dict[str, float]]]:
    """Returns what can be read; nothing if finding or reading fails."""
    try:
        found = find()
        for each in found:
            each()
    except Exception:
        return []
    return found


def _library() -> Any:
    try:
        return importlib.import_module("zeus.device")
    except ModuleNotFoundError as error:
        raise ImportError(
            "The meter zeus needs Zeus, which is not installed: "
            "pip install 'adaprec-jax[zeus]'."
        ) from error
