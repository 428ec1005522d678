"""What rounding did to a tensor, as sums that add up over uses, batches and devices.

Ratios (underflow fraction, signal-to-noise) are formed by the reader, last, so that
merging parts gives the statistics of the whole.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from adaprec_jax.formats import Format


class TensorStats(NamedTuple):
    """Sums over one tensor, float32; leading axes are the plan axes.

    A field that was not asked for is None.

    Attributes:
        elements: How many.
        amax: Largest magnitude, infinite if an element is. (XLA's maximum on a CPU
            passes over NaN and forgets what it met before: with a NaN in the tensor
            this is any number. Sums are NaN then.)
        sum_abs: Sum of magnitudes.
        sum_squares: Sum of squares.
        zeros: Elements that are exactly zero.
        underflows: Elements that are not zero but were rounded to zero.
        saturations: Elements beyond the range of the format.
        noise_squares: Sum of squared rounding errors.
        sum_abs_rounded: Sum of magnitudes after rounding.
    """

    elements: Float[Array, "*axes"] | None = None
    amax: Float[Array, "*axes"] | None = None
    sum_abs: Float[Array, "*axes"] | None = None
    sum_squares: Float[Array, "*axes"] | None = None
    zeros: Float[Array, "*axes"] | None = None
    underflows: Float[Array, "*axes"] | None = None
    saturations: Float[Array, "*axes"] | None = None
    noise_squares: Float[Array, "*axes"] | None = None
    sum_abs_rounded: Float[Array, "*axes"] | None = None


QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "amax": ("amax",),
    "mean_abs": ("elements", "sum_abs"),
    "rms": ("elements", "sum_squares"),
    "zero_fraction": ("elements", "zeros"),
    "underflow_fraction": ("elements", "zeros", "underflows"),
    "saturation_fraction": ("elements", "saturations"),
    "sqnr_db": ("sum_squares", "noise_squares"),
    "mean_abs_rounded": ("elements", "sum_abs_rounded"),
}
ROLES = ("activation", "weight", "gradient")


class Watch(NamedTuple):
    """Which statistics are gathered; static, but for the formats of `what_if`.

    Attributes:
        quantities: Keys of `QUANTITIES`.
        roles: Of "activation", "weight" and "gradient".
        what_if: Formats that are not in force but asked about, by name.
    """

    quantities: tuple[str, ...] = ()
    roles: tuple[str, ...] = ROLES
    what_if: Mapping[str, Format] = {}


# By contraction and role ("activation", "weight", "gradient").
Tensors: TypeAlias = Mapping[str, Mapping[str, TensorStats]]


class Stats(NamedTuple):
    """What one evaluation of loss and gradients saw.

    Attributes:
        loss: The loss.
        gradient_norm: Global 2-norm of the gradients.
        finite: Whether loss and every gradient are finite. Where not, the step is
            skipped, and nobody learns from the rest.
        tensors: Statistics by contraction and role.
        what_if: The same for formats that were only asked about, by their name.
        amax: Largest magnitudes by contraction and role, for the scaling recipes that
            have a state.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    finite: Bool[Array, ""]
    tensors: Tensors
    what_if: Mapping[str, Tensors]
    amax: Mapping[str, Mapping[str, Float[Array, "*axes"]]]


def fields_of(quantities: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the fields of `TensorStats` that the quantities are formed from.

    Raises:
        ValueError: A quantity is unknown.

    >>> fields_of(("sqnr_db", "amax"))
    ('amax', 'sum_squares', 'noise_squares')
    """
    unknown = [q for q in quantities if q not in QUANTITIES]
    if unknown:
        raise ValueError(
            f"Unknown quantities {unknown}; known are {sorted(QUANTITIES)} (a tuple)."
        )
    wanted = {field for q in quantities for field in QUANTITIES[q]}
    return tuple(field for field in TensorStats._fields if field in wanted)


def measure(
    x: Float[Array, "..."],
    values: Float[Array, "..."],
    scale: Float[Array, "*members"],
    lowest: Float[Array, "..."],
    highest: Float[Array, "..."],
    fields: tuple[str, ...],
    members: tuple[int, ...],
) -> TensorStats:
    """Returns the statistics of rounding `x` to `values * scale`, by member.

    Args:
        x: The tensor before rounding, float32.
        values: The same tensor after it, in the units of its format.
        scale: What leads back to the units of `x`.
        lowest: Lower bound of the format's range in the units of `x`, by member or by
            element.
        highest: Upper bound, as `lowest`.
        fields: Which fields to fill.
        members: Positions of the member axes in `x`.
    """

    def vectors(a: Array) -> Array:
        return jnp.moveaxis(a, members, range(len(members))).reshape(*scale.shape, -1)

    one = functools.partial(_measure_vector, fields=fields)
    for _ in members:
        one = jax.vmap(one)
    if lowest.shape == x.shape != scale.shape:
        lowest, highest = vectors(lowest), vectors(highest)
    return one(vectors(x), vectors(values), scale, lowest, highest)


# Elements per step of the loop below: 64 KiB of float32 stay in the first cache.
_CHUNK = 16384


def _measure_vector(
    x: Float[Array, "n"],
    values: Float[Array, "n"],
    scale: Float[Array, ""],
    lowest: Float[Array, "..."],
    highest: Float[Array, "..."],
    fields: tuple[str, ...],
) -> TensorStats:
    if x.size <= _CHUNK:
        return _plain(x, values, scale, lowest, highest, fields)
    # XLA:CPU merges several sums over one tensor into a loop that first writes every
    # summand out to memory: five sums cost 20 times `x + 1`, the chunked loop 2 times.
    return lax.platform_dependent(
        x,
        values,
        scale,
        lowest,
        highest,
        cpu=functools.partial(_chunked, fields=fields),
        default=functools.partial(_plain, fields=fields),
    )


def _summands(
    x: Array,
    values: Array,
    scale: Array,
    lowest: Array,
    highest: Array,
    fields: tuple[str, ...],
) -> dict[str, Array]:
    """Returns what each field sums (amax: takes the maximum of), element by element."""
    zero = x == 0
    restored = values * scale  # Here, so that it is never written out.
    of = {
        "elements": lambda: jnp.ones_like(x),
        "amax": lambda: jnp.abs(x),
        "sum_abs": lambda: jnp.abs(x),
        "sum_squares": lambda: jnp.square(x),
        "zeros": lambda: zero.astype(x.dtype),
        "underflows": lambda: ((restored == 0) & ~zero).astype(x.dtype),
        "saturations": lambda: ((x < lowest) | (x > highest)).astype(x.dtype),
        "noise_squares": lambda: jnp.square(x - restored),
        "sum_abs_rounded": lambda: jnp.abs(restored),
    }
    return {field: of[field]() for field in fields}


def _reduce(terms: Mapping[str, Array]) -> TensorStats:
    return TensorStats(
        **{
            f: jnp.max(t, initial=0.0) if f == "amax" else jnp.sum(t)
            for f, t in terms.items()
        }
    )


def _plain(
    x: Array,
    values: Array,
    scale: Array,
    lowest: Array,
    highest: Array,
    fields: tuple[str, ...],
) -> TensorStats:
    return _reduce(_summands(x, values, scale, lowest, highest, fields))


def _chunked(
    x: Array,
    values: Array,
    scale: Array,
    lowest: Array,
    highest: Array,
    fields: tuple[str, ...],
) -> TensorStats:
    if x.size > np.iinfo(np.int32).max:
        raise ValueError(
            f"A tensor of {x.size} numbers is too large for its statistics, which take "
            "up to 2**31 - 1."
        )
    chunks = -(-x.size // _CHUNK)

    def body(i: Array, sums: dict[str, Array]) -> dict[str, Array]:
        # The last chunk reaches back to stay inside; what it repeats counts as zero.
        start = jnp.minimum(i * _CHUNK, x.size - _CHUNK)
        fresh = jnp.arange(_CHUNK, dtype=jnp.int32) >= i * _CHUNK - start
        part = functools.partial(
            lax.dynamic_slice, start_indices=(start,), slice_sizes=(_CHUNK,)
        )
        low, high = (part(b) if b.ndim else b for b in (lowest, highest))
        terms = _summands(part(x), part(values), scale, low, high, fields)
        terms = {f: jnp.where(fresh, t, 0) for f, t in terms.items()}
        return {
            f: jnp.maximum(sums[f], t) if f == "amax" else sums[f] + t
            for f, t in terms.items()
        }

    zeros = {field: jnp.zeros(_CHUNK, x.dtype) for field in fields}
    return _reduce(lax.fori_loop(0, chunks, body, zeros))


def merge_axis(stats: TensorStats, axis: int) -> TensorStats:
    """Returns `stats` merged over one of their axes.

    >>> merge_axis(TensorStats(amax=jnp.array([1.0, 3.0])), 0).amax
    Array(3., dtype=float32)
    """
    return TensorStats(
        *(
            None if x is None else (x.max(axis) if field == "amax" else x.sum(axis))
            for field, x in zip(TensorStats._fields, stats, strict=True)
        )
    )


def nothing(shape: tuple[int, ...], fields: tuple[str, ...]) -> TensorStats:
    """Returns the statistics of no elements, the neutral element of `merge_axis`.

    >>> nothing((), ("elements",)).elements
    Array(0., dtype=float32)
    """
    return TensorStats(**{field: jnp.zeros(shape, jnp.float32) for field in fields})


def pack(stats: TensorStats, fields: tuple[str, ...]) -> Float[Array, "*axes fields"]:
    """Returns the given fields along a new last axis, the layout of a probe."""
    return jnp.stack([getattr(stats, field) for field in fields], axis=-1)


def unpack(
    packed: Float[Array, "*axes fields"], fields: tuple[str, ...]
) -> TensorStats:
    """Undoes `pack`.

    >>> unpack(jnp.array([4.0, 2.0]), ("elements", "amax")).amax
    Array(2., dtype=float32)
    """
    return TensorStats(**{field: packed[..., i] for i, field in enumerate(fields)})
