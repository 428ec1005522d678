"""What a step or a run costs: bit operations, counted work, energy, carbon, money.

Tables, lenses and quantities need no JAX; what does is imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from adaprec_jax.bit_counts import (
    Stored,
    bitops_ratio,
    bytes_per_parameter,
    effective_gbitops,
    gbitops,
)

if TYPE_CHECKING:
    from adaprec_jax.cost.bitops import narrow_share, step_cost
    from adaprec_jax.cost.devices import Device, device
    from adaprec_jax.cost.lenses import Bound, bound, look
    from adaprec_jax.cost.numbers import Number, number
    from adaprec_jax.cost.quantity import Quantity, Saving, saving, total
    from adaprec_jax.cost.tally import Product, Tally, Term, Work, step_tally, summed
    from adaprec_jax.cost.work import count, kept_bytes

_HOMES = {
    "bitops": ("narrow_share", "step_cost"),
    "devices": ("Device", "device"),
    "lenses": ("Bound", "bound", "look"),
    "numbers": ("Number", "number"),
    "quantity": ("Quantity", "Saving", "saving", "total"),
    "tally": ("Product", "Tally", "Term", "Work", "step_tally", "summed"),
    "work": ("count", "kept_bytes"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Bound",
    "Device",
    "Number",
    "Product",
    "Quantity",
    "Saving",
    "Stored",
    "Tally",
    "Term",
    "Work",
    "bitops_ratio",
    "bound",
    "bytes_per_parameter",
    "count",
    "device",
    "effective_gbitops",
    "gbitops",
    "kept_bytes",
    "look",
    "narrow_share",
    "number",
    "saving",
    "step_cost",
    "step_tally",
    "summed",
    "total",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'adaprec_jax.cost' has no attribute {name!r}")
    home = importlib.import_module(f"adaprec_jax.cost.{_HOME_OF[name]}")
    globals()[name] = value = getattr(home, name)
    return value
