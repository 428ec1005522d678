"""Scaling recipes: how a tensor is brought into the range of its format.

A recipe is three pure functions. `round` gives the tensor in the format's own units
and the scale that leads back, x ~= rounded * scale; `update` gives the next state of a
recipe that has one, from the largest magnitude seen. (Transformer Engine calls the
reciprocal `scale`, and this one `scale_inv`.)

The format is data, so whether a recipe acts is data as well: where `fmt.scaled` is
false the scale is exactly 1 and the tensor is rounded as it is, with the format's own
overflow. Where a recipe acts, finite values beyond the range saturate, and an infinity
or NaN in the tensor makes the result non-finite: no clip hides it from the loss scale.
"""

from adaprec_jax.scaling.blocks import blockwise, per_channel
from adaprec_jax.scaling.dorefa import dorefa
from adaprec_jax.scaling.hadamard import hadamard, rotated
from adaprec_jax.scaling.muppet import muppet
from adaprec_jax.scaling.mx import mx
from adaprec_jax.scaling.noise import noise
from adaprec_jax.scaling.nvfp4 import nvfp4
from adaprec_jax.scaling.per_tensor import (
    DelayedState,
    current,
    delayed,
    largest_magnitude,
    none,
)
from adaprec_jax.scaling.presets import (
    deepseek_recipes,
    mxfp8_recipes,
    nvfp4_recipes,
)
from adaprec_jax.scaling.recipe import Quantizer, Recipe, Recipes, Use
from adaprec_jax.scaling.sbm import sbm
from adaprec_jax.scaling.swalp import swalp
from adaprec_jax.scaling.wage import wage

__all__ = [
    "DelayedState",
    "Quantizer",
    "Recipe",
    "Recipes",
    "Use",
    "blockwise",
    "current",
    "deepseek_recipes",
    "delayed",
    "dorefa",
    "hadamard",
    "largest_magnitude",
    "muppet",
    "mx",
    "mxfp8_recipes",
    "noise",
    "none",
    "nvfp4",
    "nvfp4_recipes",
    "per_channel",
    "rotated",
    "sbm",
    "swalp",
    "wage",
]
