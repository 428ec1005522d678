"""Energy and time of two or more ways to do some work, measured in turns.

A window lasts some seconds, because counters are updated a few times a second and power
rises with temperature. The ways take turns, A B A B, so that what drifts meets all of
them alike; compilation and warm-up come before the first window.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaprec_jax.cost.quantity import Kind, Quantity
from adaprec_jax.meters.meter import Meter, between

SHORTEST = 5.0  # seconds; what the authors of Zeus settle on


class Protocol(NamedTuple):
    """How is measured.

    Attributes:
        seconds: Least length of a window.
        repeats: Windows of each way.
        warm_up: Calls before the first window.
        rest: Seconds between windows.
    """

    seconds: float = SHORTEST
    repeats: int = 5
    warm_up: int = 3
    rest: float = SHORTEST


class Window(NamedTuple):
    """One window.

    Attributes:
        seconds: Its length.
        cpu_seconds: Of this process on all cores.
        calls: How often the work was done.
        joules: None where no meter told.
    """

    seconds: float
    cpu_seconds: float
    calls: int
    joules: float | None


class Measurement(NamedTuple):
    """All windows of all ways.

    Attributes:
        meter: Its name.
        boundary: What it covers.
        windows: By way.
        idle_watts: Power of the machine at rest, not subtracted; None if unknown.
        emulated: Ways whose formats were emulated: what they took is the cost of
            emulation, and no property of the formats.
        kind: Of all joules and watts: as the meter's.
    """

    meter: str
    boundary: str
    windows: Mapping[str, Sequence[Window]]
    idle_watts: float | None
    emulated: frozenset[str]
    kind: Kind = "measured"


def measure(
    ways: Mapping[str, Callable[[], object]],
    meter: Meter,
    protocol: Protocol = Protocol(),
    *,
    emulated: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Measurement:
    """Returns windows of each way, taken in turns.

    Args:
        ways: By name, what does the work once and waits until it is done (with JAX:
            `jax.block_until_ready`).
        meter: Reads the energy.
        protocol: How is measured.
        emulated: The ways that emulate their formats.
        clock: Returns seconds.
        sleep: Waits for some.

    Raises:
        ValueError: There is no way, a window is shorter than five seconds, or
            `emulated` names no way.
    """
    if not ways or protocol.repeats < 1:
        raise ValueError("Measuring takes at least one way and one repeat.")
    if protocol.seconds < SHORTEST:
        raise ValueError(
            f"A window must last at least {SHORTEST:g} s, got {protocol.seconds:g}."
        )
    if unknown := sorted({*emulated} - {*ways}):
        raise ValueError(f"emulated names {unknown}, which are not measured.")
    for work in ways.values():
        for _ in range(protocol.warm_up):
            work()
    idle = _window(lambda: sleep(protocol.seconds), meter, protocol.seconds, clock)
    windows: dict[str, list[Window]] = {name: [] for name in ways}
    for _ in range(protocol.repeats):
        for name, work in ways.items():
            sleep(protocol.rest)
            windows[name].append(_window(work, meter, protocol.seconds, clock))
    idle_watts = None if idle.joules is None else idle.joules / idle.seconds
    return Measurement(
        meter.name, meter.boundary, windows, idle_watts, frozenset(emulated), meter.kind
    )


def _window(
    work: Callable[[], object],
    meter: Meter,
    seconds: float,
    clock: Callable[[], float],
) -> Window:
    """Returns one window: the work again and again, for at least so long."""
    before, cpu, start = meter.read(), time.process_time(), clock()
    calls = 0
    while clock() - start < seconds:
        work()
        calls += 1
    end, cpu_end, after = clock(), time.process_time(), meter.read()
    length = end - start
    joules = between(meter, before, after) if length > meter.tick else None
    return Window(length, cpu_end - cpu, calls, joules)


class Summary(NamedTuple):
    """What a way took for one piece of work.

    Attributes:
        energy: Joules, of the meter's kind; None without a meter, and of an emulated
            way, whose energy says nothing of its formats.
        emulation_cost: Joules of an emulated way.
        latency: Seconds for one.
        cpu_seconds: Of this process.
        throughput: Pieces of work a second.
        device_hours: That all windows took.
    """

    energy: Quantity | None
    emulation_cost: Quantity | None
    latency: Quantity
    cpu_seconds: float
    throughput: float
    device_hours: float


def summary(found: Measurement, way: str) -> Summary:
    """Returns the medians over the windows of a way, from the lowest to the highest.

    Raises:
        ValueError: The way was not measured.
    """
    if way not in found.windows:
        raise ValueError(f"way must be one of {', '.join(found.windows)}, got {way!r}.")
    windows = found.windows[way]
    said = f"{found.meter}: {found.boundary}; {len(windows)} windows"
    joules = [w.joules / w.calls for w in windows if w.joules is not None]
    energy = _median(joules, found.kind, said) if len(joules) == len(windows) else None
    seconds = [window.seconds / window.calls for window in windows]
    latency = Quantity(
        float(np.median(seconds)), "s", min(seconds), max(seconds), "measured", "clock"
    )
    is_emulated = way in found.emulated
    return Summary(
        energy=None if is_emulated else energy,
        emulation_cost=energy if is_emulated else None,
        latency=latency,
        cpu_seconds=float(np.median([w.cpu_seconds / w.calls for w in windows])),
        throughput=1 / latency.value,
        device_hours=sum(w.seconds for w in windows) / 3600,
    )


def _median(values: Sequence[float], kind: Kind, source: str) -> Quantity | None:
    if not values:
        return None
    return Quantity(
        float(np.median(values)), "J", min(values), max(values), kind, source
    )
