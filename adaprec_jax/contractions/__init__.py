"""The walk: lists, names and rounds every contraction of a JAX function."""

from adaprec_jax.contractions.compute_dtype import Compute
from adaprec_jax.contractions.statistics import Stats, TensorStats, Watch
from adaprec_jax.contractions.table import Contraction, NotReached, Table
from adaprec_jax.contractions.transform import (
    Options,
    RecipeStates,
    contraction_table,
    init_recipes,
    update_recipes,
    value_and_grad,
    with_precision,
)

__all__ = [
    "Compute",
    "Contraction",
    "NotReached",
    "Options",
    "RecipeStates",
    "Stats",
    "Table",
    "TensorStats",
    "Watch",
    "contraction_table",
    "init_recipes",
    "update_recipes",
    "value_and_grad",
    "with_precision",
]
