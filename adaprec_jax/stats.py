"""What is read from the statistics of a step.

The sums of `TensorStats` add up over uses, micro-batches and devices; the ratios below
are formed from them last, each element by element along the plan axes. A ratio of
nothing, 0 / 0, is NaN, and every schedule takes NaN for "not known".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from adaprec_jax.contractions.statistics import (
    QUANTITIES,
    Stats,
    TensorStats,
    Watch,
    fields_of,
    merge_axis,
    nothing,
)
from adaprec_jax.contractions.table import Table
from adaprec_jax.contractions.transform import Options, stateful_roles

_EVERYTHING = Watch(tuple(QUANTITIES))


def empty(
    table: Table, watch: Watch = _EVERYTHING, options: Options = Options()
) -> Stats:
    """Returns what is known before the first step: no element has been counted.

    It has the structure of what a step with the same watch and options returns, and
    `finite` is false, so that no schedule takes a decision from it.

    >>> stats = empty(Table((), ()))
    >>> bool(stats.finite), stats.tensors
    (False, {})
    """
    fields = fields_of(watch.quantities)
    tensors = {
        contraction.name: {
            role: nothing(contraction.axes, fields) for role in watch.roles
        }
        for contraction in table.contractions
    }
    unknown = jnp.float32(jnp.nan)
    return Stats(
        loss=unknown,
        gradient_norm=unknown,
        finite=jnp.bool_(False),
        tensors=tensors,
        what_if=dict.fromkeys(watch.what_if, tensors),
        amax={
            contraction.name: {
                role: jnp.zeros(contraction.axes, jnp.float32)
                for role in stateful_roles(options.recipes, contraction)
            }
            for contraction in table.contractions
        },
    )


def merge(parts: Stats) -> Stats:
    """Returns the statistics of a step from those of its equal micro-batches.

    Sums add, amax is the largest, the loss is the mean, and the step is finite if all
    its parts are. The norm of a mean gradient does not follow from the parts' norms;
    their mean, returned here, bounds it from above: replace it where the accumulated
    gradient is at hand.

    Args:
        parts: Statistics whose every leaf has the micro-batches as leading axis.

    >>> parts = empty(Table((), ()))._replace(
    ...     loss=jnp.array([1.0, 3.0]),
    ...     gradient_norm=jnp.array([2.0, 2.0]),
    ...     finite=jnp.array([True, False]),
    ... )
    >>> whole = merge(parts)
    >>> float(whole.loss), bool(whole.finite)
    (2.0, False)
    """
    tensors, what_if = jax.tree.map(
        lambda sums: merge_axis(sums, 0),
        (parts.tensors, parts.what_if),
        is_leaf=lambda node: isinstance(node, TensorStats),
    )
    return Stats(
        loss=jnp.mean(parts.loss),
        gradient_norm=jnp.mean(parts.gradient_norm),
        finite=jnp.all(parts.finite),
        tensors=tensors,
        what_if=what_if,
        amax=jax.tree.map(lambda amax: jnp.max(amax, 0), parts.amax),
    )


def amax(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the largest magnitude, max |x|; see `TensorStats` about NaN.

    Raises:
        ValueError: It was not gathered.

    >>> amax(TensorStats(amax=jnp.float32(2)))
    Array(2., dtype=float32)
    """
    (largest,) = _gathered(sums, "amax", "amax")
    return largest


def mean_abs(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the mean magnitude, mean |x|.

    Raises:
        ValueError: A field that it is formed from was not gathered.

    >>> mean_abs(TensorStats(elements=jnp.float32(4), sum_abs=jnp.float32(6)))
    Array(1.5, dtype=float32)
    """
    elements, sum_abs = _gathered(sums, "mean_abs", "elements", "sum_abs")
    return sum_abs / elements


def rms(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the root mean square, sqrt(mean x^2).

    Raises:
        ValueError: A field that it is formed from was not gathered.

    >>> rms(TensorStats(elements=jnp.float32(4), sum_squares=jnp.float32(36)))
    Array(3., dtype=float32)
    """
    elements, sum_squares = _gathered(sums, "rms", "elements", "sum_squares")
    return jnp.sqrt(sum_squares / elements)


def zero_fraction(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the share of elements that were exactly zero before rounding.

    Raises:
        ValueError: A field that it is formed from was not gathered.

    >>> zero_fraction(TensorStats(elements=jnp.float32(4), zeros=jnp.float32(1)))
    Array(0.25, dtype=float32)
    """
    elements, zeros = _gathered(sums, "zero_fraction", "elements", "zeros")
    return zeros / elements


def underflow_fraction(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the share of the nonzero elements that were rounded to zero.

    Raises:
        ValueError: A field that it is formed from was not gathered.

    >>> four = TensorStats(
    ...     elements=jnp.float32(4), zeros=jnp.float32(2), underflows=jnp.float32(1)
    ... )
    >>> underflow_fraction(four)
    Array(0.5, dtype=float32)
    """
    elements, zeros, underflows = _gathered(
        sums, "underflow_fraction", "elements", "zeros", "underflows"
    )
    return underflows / (elements - zeros)


def saturation_fraction(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the share of elements beyond the range of their format.

    Raises:
        ValueError: A field that it is formed from was not gathered.

    >>> saturation_fraction(
    ...     TensorStats(elements=jnp.float32(4), saturations=jnp.float32(1))
    ... )
    Array(0.25, dtype=float32)
    """
    elements, saturations = _gathered(
        sums, "saturation_fraction", "elements", "saturations"
    )
    return saturations / elements


def sqnr_db(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the signal-to-quantisation-noise ratio in decibels.

    It is 10 log10(sum x^2 / sum (x - q(x))^2), infinite where rounding was exact.

    Raises:
        ValueError: A field that it is formed from was not gathered.

    >>> sqnr_db(
    ...     TensorStats(sum_squares=jnp.float32(100), noise_squares=jnp.float32(1))
    ... )
    Array(20., dtype=float32)
    """
    signal, noise = _gathered(sums, "sqnr_db", "sum_squares", "noise_squares")
    return 10 * jnp.log10(signal / noise)


def mean_abs_rounded(sums: TensorStats) -> Float32[Array, "*axes"]:
    """Returns the mean magnitude after rounding.

    Raises:
        ValueError: A field that it is formed from was not gathered.

    >>> mean_abs_rounded(
    ...     TensorStats(elements=jnp.float32(4), sum_abs_rounded=jnp.float32(6))
    ... )
    Array(1.5, dtype=float32)
    """
    elements, sum_abs = _gathered(
        sums, "mean_abs_rounded", "elements", "sum_abs_rounded"
    )
    return sum_abs / elements


def _gathered(sums: TensorStats, ratio: str, *fields: str) -> list[Array]:
    """Returns the named fields, or says which of them the step did not gather."""
    if not isinstance(sums, TensorStats):
        raise TypeError(
            f"{ratio} takes the sums of one tensor, such as "
            f"stats.tensors['Dense_0']['weight'], got a {type(sums).__name__}."
        )
    missing = [field for field in fields if getattr(sums, field) is None]
    if missing:
        raise ValueError(
            f"{ratio} is formed from {missing}, which the step did not gather: "
            f"put {ratio!r} among the quantities of its Watch (of the schedule's, "
            "if it is one that reads)."
        )
    return [getattr(sums, field) for field in fields]
