"""What CodeCarbon reads of this machine, or guesses where there is nothing to read."""

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from adaprec_jax.meters.meter import Meter, Reading, none

_JOULES = 3.6e6  # of a kWh
_TICK = 1.0  # seconds between two samples of the processor's load
_OWN_PACE = 3600.0  # seconds; it reads when it is asked, and hardly by itself
_COUNTED = {"intel_rapl": "processor packages", "windows_emi": "processor"}


def codecarbon(library: Any = None) -> Meter:
    """Returns CodeCarbon as a meter of the whole machine, whoever uses it.

    It needs the package `codecarbon`, the extra of that name. Where CodeCarbon reads a
    counter of energy, of the processor or of GPUs, the meter counts what is read, and
    leaves out what CodeCarbon guesses beside it, such as some watts for each module of
    memory. Where it reads none, all is a guess from rated power and load, and the
    meter's kind is "tdp_estimate": in most virtual machines that is a constant, and
    tells little but the time.

    Nothing is sent or looked up, and no file is written. Its carbon is not used; see
    `adaprec_jax.cost.carbon`. A power usage effectiveness from its settings is not
    applied either.

    Args:
        library: In place of the module `codecarbon`.

    Raises:
        ImportError: CodeCarbon is not installed.

    >>> codecarbon(library=object()).name
    'none'
    """
    with _quiet():
        if library is None:
            library = _library()
        last: list[Any] = []
        heard = SimpleNamespace(out=lambda total, delta: last.append(total))
        try:
            # Without a forced intensity it may ask a service for one.
            tracker = library.OfflineEmissionsTracker(
                output_methods=[], output_handlers=[heard], emissions_endpoint=None,
                electricitymaps_api_token=None, force_carbon_intensity_g_co2e_kwh=0.0,
                api_call_interval=-1, measure_power_secs=_OWN_PACE, pue=1.0,
                tracking_mode="machine", log_level="error",
            )  # fmt: skip
            tracker.start()
        except Exception:
            return none()
    counted = _counted(tracker)
    parts = tuple(counted) or ("cpu", "ram")

    def read() -> Reading:
        last.clear()
        tracker.flush()  # logs its errors and goes on
        if not last:
            return None
        return {part: getattr(last[0], f"{part}_energy") * _JOULES for part in parts}

    if read() is None:
        return none()
    if counted:
        return Meter("codecarbon", " and ".join(counted.values()), read, tick=_TICK)
    return Meter(
        "codecarbon", "processor and memory, guessed from rated power and load", read,
        tick=_TICK, kind="tdp_estimate",
    )  # fmt: skip


def _counted(tracker: Any) -> dict[str, str]:
    """Returns the parts of which the tracker reads a counter, in words.

    CodeCarbon tells them apart in private only; a part that is not known is a guess.
    """
    found: dict[str, str] = {}
    for part in getattr(tracker, "_hardware", ()):
        if type(part).__name__ == "GPU":
            found["gpu"] = "GPUs with their memory"
        elif (mode := getattr(part, "_mode", None)) in _COUNTED:
            found["cpu"] = _COUNTED[mode]
    return found


def _library() -> Any:
    try:
        return importlib.import_module("codecarbon")
    except ModuleNotFoundError as error:
        raise ImportError(
            "The meter codecarbon needs CodeCarbon, which is not installed: "
            "pip install 'adaprec-jax[codecarbon]'."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps quiet what is said on import and on setting up, of absent GPUs mostly."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
