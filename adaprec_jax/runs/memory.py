"""Whether a train state fits into memory: a model too large would hang, not fail."""

import os
from typing import Any

import jax

from adaprec_jax.runs.errors import InputError

_GIB = 2**30


def check_fits(state: Any) -> None:
    """Refuses a train state that is larger than the memory of a device.

    Args:
        state: Arrays, or their shapes.

    Raises:
        InputError: It does not fit.
    """
    leaves = jax.tree.leaves(state)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    there = (jax.local_devices()[0].memory_stats() or {}).get(
        "bytes_limit"
    ) or _physical()
    if needed > there:
        raise InputError(
            f"The model with its optimizer takes {needed / _GIB:.3g} GiB, more than "
            f"the {there / _GIB:.3g} GiB there are."
        )


def _physical() -> int:
    """Returns the bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
