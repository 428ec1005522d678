"""Optax transformations that act on master parameters, moments and gradients.

Precision beyond the three products: what the optimizer remembers, what travels between
devices, and which weights the model is given. Each is a transformation for any optax
program; behind `adaprec_jax.loss_scaling` a skipped step changes none of their states:

>>> import optax
>>> from adaprec_jax import formats, loss_scaling, transforms
>>> fp8 = formats.get("float8_e4m3fn")
>>> tx = loss_scaling.dynamic(
...     optax.chain(
...         transforms.narrow_all_reduce(fp8),
...         transforms.narrow_moments(optax.adam(1e-3), transforms.coat()),
...         transforms.oscillation_reset(fp8, start=8000),
...         transforms.averaging(start=10_000, every=100),
...     )
... )
"""

from adaprec_jax.transforms.averaging import AveragingState, averaged, averaging
from adaprec_jax.transforms.communication import (
    NarrowAllReduceState,
    Reduced,
    all_reduce,
    narrow_all_reduce,
    next_factor,
)
from adaprec_jax.transforms.hysteresis import (
    HysteresisState,
    hysteresis,
    round_with_memory,
    rounded_weights,
)
from adaprec_jax.transforms.in_place import in_place
from adaprec_jax.transforms.moments import (
    Expanded,
    Moment,
    NarrowMomentsState,
    coat,
    contract,
    expand,
    fp8_lm,
    narrow_moments,
    round_moment,
)
from adaprec_jax.transforms.oscillation_reset import (
    OscillationResetState,
    oscillation_reset,
)
from adaprec_jax.transforms.wage import WAGEState, wage, wage_steps

__all__ = [
    "AveragingState",
    "Expanded",
    "HysteresisState",
    "Moment",
    "NarrowAllReduceState",
    "NarrowMomentsState",
    "OscillationResetState",
    "Reduced",
    "WAGEState",
    "all_reduce",
    "averaged",
    "averaging",
    "coat",
    "contract",
    "expand",
    "fp8_lm",
    "hysteresis",
    "in_place",
    "narrow_all_reduce",
    "narrow_moments",
    "next_factor",
    "oscillation_reset",
    "round_moment",
    "round_with_memory",
    "rounded_weights",
    "wage",
    "wage_steps",
]
