"""Precision schedules for JAX: number formats that change by phase, layer and tensor.

A number format is data, not a type, so a schedule may read statistics and decide anew
at every step, in one compilation:

    table = contraction_table(loss, params, batch)           # what there is to decide
    schedule = schedules.cpt(min_bits=3, max_bits=8, ...)    # who decides
    step = value_and_grad(loss)                              # what is rounded
    (loss, aux), grads, stats = step(params, batch, plan=plan, key=key)

Names are imported when they are first used: importing this package imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaprec_jax import (
        cost as cost,
        formats as formats,
        loss_scaling as loss_scaling,
        plan as plan,
        scaling as scaling,
        schedules as schedules,
        stats as stats,
        transforms as transforms,
    )
    from adaprec_jax.contractions import (
        Contraction as Contraction,
        Options as Options,
        Stats as Stats,
        Table as Table,
        Watch as Watch,
        contraction_table as contraction_table,
        init_recipes as init_recipes,
        update_recipes as update_recipes,
        value_and_grad as value_and_grad,
        with_precision as with_precision,
    )
    from adaprec_jax.precision import (
        Precision as Precision,
        SharedPrecision as SharedPrecision,
    )
    from adaprec_jax.quantizers import (
        binary as binary,
        quantize as quantize,
        ternary as ternary,
    )
    from adaprec_jax.runs.api import (
        Run as Run,
        experiment as experiment,
        load as load,
        run as run,
    )

    __version__: str

_MODULES = (
    "cost",
    "formats",
    "loss_scaling",
    "plan",
    "scaling",
    "schedules",
    "stats",
    "transforms",
)
_HOMES = {
    "contractions": (
        "Contraction",
        "Options",
        "Stats",
        "Table",
        "Watch",
        "contraction_table",
        "init_recipes",
        "update_recipes",
        "value_and_grad",
        "with_precision",
    ),
    "precision": ("Precision", "SharedPrecision"),
    "quantizers": ("binary", "quantize", "ternary"),
    "runs.api": ("Run", "experiment", "load", "run"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_MODULES, *_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]  (the block above names them)


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use."""
    if name in _MODULES:
        return importlib.import_module(f"adaprec_jax.{name}")
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"adaprec_jax.{_HOME_OF[name]}"), name)
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("adaprec-jax")
    else:
        raise AttributeError(f"module 'adaprec_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the public names, imported or not."""
    return sorted({*globals(), *__all__})
