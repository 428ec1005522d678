"""The walk: lists, names and rounds every contraction of a JAX function."""

from adaprec_jax.contractions.compute_dtype import Compute
from adaprec_jax.contractions.products import Stored
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
from adaprec_jax.contractions.weights import Weight, Weights, weights_of

__all__ = [
    "Compute",
    "Contraction",
    "NotReached",
    "Options",
    "RecipeStates",
    "Stats",
    "Stored",
    "Table",
    "TensorStats",
    "Watch",
    "Weight",
    "Weights",
    "contraction_table",
    "init_recipes",
    "update_recipes",
    "value_and_grad",
    "weights_of",
    "with_precision",
]
