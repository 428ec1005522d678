"""Few bits for a tensor as long as rounding to them errs little, more otherwise."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax.contractions.fitting import fit_entry
from adaprec_jax.contractions.statistics import ROLES, Stats, TensorStats, Watch
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.formats import describe
from adaprec_jax.plan import by_slot, describe_entry
from adaprec_jax.precision import Plan, SharedPrecision
from adaprec_jax.schedules.by_layer import not_gathered
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select


class Tensor(NamedTuple):
    """What is decided for one tensor, over the plan axes of its contraction.

    Attributes:
        low: Whether it is rounded to the low format.
        error: Relative error of rounding to the low format when last looked at; NaN
            before the first look.
    """

    low: Bool[Array, "*axes"]
    error: Float32[Array, "*axes"]


class MixtureState(NamedTuple):
    """State of `mor`.

    Attributes:
        scope: The contractions it plans for.
        threshold: Largest relative error of a tensor in the low format.
        every: Calls between two looks.
        tensors: By path and role.
    """

    scope: Scope
    threshold: Float32[Array, ""]
    every: Int32[Array, ""]
    tensors: dict[str, dict[str, Tensor]]


def mor(
    low: SharedPrecision,
    high: SharedPrecision,
    *,
    threshold: float = 0.03,
    every: int = 1,
) -> Schedule:
    """Rounds each tensor to a low format where that errs little, else to a high one.

    The relative error of a tensor x in the low format Q of its role is

        sqrt(sum (x - Q(x))^2 / sum x^2),

    the low format is taken where it is at most `threshold`, the high one elsewhere. A
    per-tensor scaled E4M3 leaves about 0.026 of a normal distribution, more where the
    tensor's magnitudes spread beyond its range.

    Decides:
        One of two formats for each activation, weight and gradient of each layer, anew
        every `every` calls. High before the first look.

    Signal:
        The squared error and the squares of every tensor in its low format, in force or
        not, of the last step.

        Logs `signal/relative_error_activation/PATH`,
        `signal/relative_error_weight/PATH` and `signal/relative_error_gradient/PATH`,
        as of the last look: at most `threshold` is low. The formats of the same row
        follow from them.

    Costs:
        A flag and a number per tensor; a rounding of every tensor to each low format
        and two sums over it, in the steps that are looked at.

    Source:
        MoR, mixture of representations, NVIDIA 2025, arXiv:2512.22804.

    Against:
        The threshold and the 2-norm of the error are ours. The method rounds a tensor,
        measures it and decides for that tensor; here the decision comes one step
        later. Of its variants this is the one per tensor, not the one per block, and
        its group scaling by the mantissa of the amax is left out.

    Args:
        low: Low formats by role, FP8 in the source.
        high: High formats by role, bfloat16 in the source.
        threshold: Largest relative error in the low format, above 0.
        every: Calls from one look to the next, at least 1.

    Raises:
        ValueError: An argument is out of range; (in `update`) the statistics were not
            gathered.

    >>> from adaprec_jax import formats
    >>> fp8, bfloat16 = (
    ...     SharedPrecision(*[formats.get(name)] * 3)
    ...     for name in ("float8_e4m3fn", "bfloat16")
    ... )
    >>> schedule = mor(fp8, bfloat16, threshold=0.03)
    >>> list(schedule.reads.what_if)
    ['float8_e4m3fn']
    """
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold must be a number above 0, got {threshold}.")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    if not all(isinstance(entry, SharedPrecision) for entry in (low, high)):
        raise ValueError("low and high must have one format for each role.")
    asked = {describe(fmt): fmt for fmt in low}

    def init(table: Table) -> MixtureState:
        def undecided(c: Contraction) -> Tensor:
            unknown = jnp.full(c.axes, jnp.nan, jnp.float32)
            return Tensor(low=jnp.zeros(c.axes, jnp.bool_), error=unknown)

        tensors = {
            c.name: {role: undecided(c) for role in ROLES} for c in table.contractions
        }
        fixed = describe_entry(low), describe_entry(high)
        return MixtureState(
            Scope(table, fixed), jnp.float32(threshold), jnp.int32(every), tensors
        )

    def update(
        step: Int32[Array, ""], stats: Stats, state: MixtureState
    ) -> tuple[Plan, MixtureState]:
        due = stats.finite & (step % state.every == 0)
        plan, tensors = {}, {}
        for c in state.scope.table.contractions:
            lows, highs = by_slot(c, low)._asdict(), by_slot(c, high)._asdict()
            found = {
                role: _decide(
                    _error(stats, describe(lows[role]), c.name, role),
                    due,
                    state.tensors[c.name][role],
                    state.threshold,
                )
                for role in ROLES
            }
            chosen = {
                role: select(found[role].low, lows[role], highs[role]) for role in ROLES
            }
            plan[c.name] = fit_entry(SharedPrecision(**chosen), c)
            tensors[c.name] = found
        return plan, state._replace(tensors=tensors)

    return Schedule(
        init, update, Watch(("sqnr_db",), what_if=asked), every, signals=_signals
    )


def _decide(
    error: Float32[Array, "*axes"],
    due: Bool[Array, ""],
    before: Tensor,
    threshold: Float32[Array, ""],
) -> Tensor:
    """Returns the decision after one call; a NaN leaves the tensor as it was."""
    return select(
        due & ~jnp.isnan(error), Tensor(low=error <= threshold, error=error), before
    )


def _error(stats: Stats, fmt: str, path: str, role: str) -> Float32[Array, "*axes"]:
    """Returns the relative error of a tensor in a format; NaN where nothing is known.

    Raises:
        ValueError: It was not gathered.
    """
    sums = stats.what_if.get(fmt, {}).get(path, {}).get(role, TensorStats())
    noise, squares = sums.noise_squares, sums.sum_squares
    if noise is None or squares is None:
        raise not_gathered(f"the error of {fmt} in the {role} of {path!r}")
    return jnp.sqrt(noise / squares)


def _signals(state: MixtureState) -> Signals:
    return {
        f"relative_error_{role}": {
            path: tensors[role].error for path, tensors in state.tensors.items()
        }
        for role in ROLES
    }
