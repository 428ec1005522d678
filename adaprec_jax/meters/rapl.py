"""Intel's and AMD's counters of processor energy, as Linux shows them in sysfs."""

from pathlib import Path

from adaprec_jax.meters.meter import Meter, Reading, none

_MICRO = 1e-6


def rapl(root: Path = Path("/sys/class/powercap")) -> Meter:
    """Returns the meter of the processor packages and of separate memory domains.

    Only whole packages count, and of what lies inside them the memory, which is not
    part of a package's own counter. Counters that show the same domain a second time
    (`intel-rapl-mmio`, and `psys`, which is the whole platform) are left out. Where
    nothing can be read, as in most virtual machines or without the right to, it is the
    meter `none`.

    Args:
        root: Where the kernel lists the counters.

    >>> rapl(Path("/nowhere")).name
    'none'
    """
    found: dict[str, Path] = {}
    wraps: dict[str, float] = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        name, energy = _text(folder / "name"), _text(folder / "energy_uj")
        limit = _text(folder / "max_energy_range_uj")
        package = folder.name.count(":") == 1 and name != "psys"
        if energy is None or name is None or not (package or name == "dram"):
            continue
        counter = f"{folder.name} {name}"
        found[counter] = folder / "energy_uj"
        if limit is not None:
            wraps[counter] = float(limit) * _MICRO
    if not found:
        return none()

    def read() -> Reading:
        texts = {counter: _text(path) for counter, path in found.items()}
        known = {c: float(text) * _MICRO for c, text in texts.items() if text}
        return known if len(known) == len(found) else None

    return Meter("rapl", "processor packages and their memory", read, wraps, tick=1e-3)


def _text(path: Path) -> str | None:
    """Returns what a file says, None where it is missing or may not be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
