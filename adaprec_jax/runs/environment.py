"""What a run depends on besides its config: versions, flags, hardware, code.

It is recorded beside the results and compared when they are put together: a change of
JAX version can move a loss by more than a change of precision does.
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import adaprec_jax

Environment: TypeAlias = dict[str, str | bool | None]

_PACKAGES = (
    "adaprec-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml_dtypes",
    "numpy",
)


def capture() -> Environment:
    """Returns the whole environment; imports JAX and asks it for its devices."""
    import jax

    flags = jax.config.values
    device = jax.devices()[0]
    return code() | {
        "device": device.device_kind,
        "devices": str(jax.device_count()),
        "pack": None,  # `run_pack` has it.
        "matmul_precision": flags["jax_default_matmul_precision"],
        "prng": flags["jax_default_prng_impl"],
        "prng_partitionable": flags["jax_threefry_partitionable"],
        "x64": flags["jax_enable_x64"],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def code() -> Environment:
    """Returns the part that is known without JAX: versions, processor, commit."""
    versions: Environment = {name: _version(name) for name in _PACKAGES}
    return versions | {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cpu": _cpu(),
        **_commit(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yields a phrase for each entry that both know and that changed.

    >>> list(differences({"jax": "0.9.0", "cpu": "a"}, {"jax": "0.10.2", "x64": False}))
    ['jax was 0.9.0, is 0.10.2']
    """
    for name in before:
        if name in now and before[name] != now[name]:
            old, new = (str(each[name]) for each in (before, now))
            if name == "commit":
                old, new = old[:12], new[:12]
            yield f"{name} was {old}, is {new}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # On the path, not installed.
        return None


def _cpu() -> str:
    """Returns the processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next(models, platform.machine()).strip()


def _commit() -> Environment:
    """Returns the commit of this package's source, None where it is no checkout."""
    folder = Path(adaprec_jax.__file__).parent
    # An installed copy may lie inside somebody else's repository.
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    if tracked is None:
        return {"commit": None, "uncommitted": None}
    changes = _git(folder, "status", "--porcelain", ".")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "uncommitted": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what git prints, None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
