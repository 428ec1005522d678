"""The quantisers of DoReFa-Net: of weights, of activations, of gradients."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import Format
from adaprec_jax.scaling.levels import (
    bits_of,
    divide,
    in_units,
    multiplier_of,
    noise_of,
    steps_of,
)
from adaprec_jax.scaling.per_tensor import largest_magnitude
from adaprec_jax.scaling.powers import floor_log2, power_of_two
from adaprec_jax.scaling.recipe import (
    Recipe,
    Use,
    check_role,
    keep_state,
    no_state,
    shape_of_scale,
)
from adaprec_jax.scaling.slices import within_slices

# `(x, fmt, axes, axis_names, key) -> (levels, largest)`
_Levels: TypeAlias = Callable[..., tuple[Array, Array]]


@functools.cache
def dorefa(role: str) -> Recipe:
    r"""Returns the recipe of DoReFa-Net for a role.

    With $q(x) = \mathrm{rint}(n x) / n$ and n = 2^b - 1 for the bits b of the format,
    of which nothing else counts:

    - weights: $2 q(\tanh w / (2 \max |\tanh w|) + 1/2) - 1$, and with one bit
      $\mathrm{sign}(w) \cdot \mathrm{mean} |w|$
    - activations: $q(\mathrm{clip}(a, 0, 1))$
    - gradients, for each example with its own $m = \max |g|$:
      $2 m (q(\mathrm{clip}(g / 2 m + 1/2 + u / n, 0, 1)) - 1/2)$, with u uniform in
      -1/2 to 1/2

    A weight of more bits is not restored to its size: its levels lie in -1 to 1, and
    zero is none of them, but for a tensor of zeros. A recipe has no say over
    gradients, so those of the tanh and of the clip are left out.

    Source: Zhou et al. 2016, arXiv:1606.06160, and the code of tensorpack.

    Args:
        role: "activation", "weight" or "gradient".

    Raises:
        ValueError: The role is unknown.

    >>> from adaprec_jax import formats
    >>> a = jnp.array([-0.3, 0.3, 0.6, 7.0])
    >>> call = functools.partial(dorefa("activation").round, axes=(0,), key=None)
    >>> values, scale = call(a, formats.integer(1), ())
    >>> values * scale
    Array([0., 0., 1., 1.], dtype=float32)
    """
    check_role(role)
    levels_of: _Levels = {
        "activation": _activation,
        "weight": _weight,
        "gradient": _gradient,
    }[role]

    def round_to_levels(
        x: Float[Array, "..."],
        fmt: Format,
        state: tuple[()],
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
        use: Use | None = None,
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del state
        if use is not None:
            axes, axis_names = within_slices(x, use, axis_names)
        wide = x.astype(jnp.float32)
        levels, largest = levels_of(wide, fmt, axes, axis_names, key)
        multiplier = multiplier_of(
            jnp.broadcast_to(largest, shape_of_scale(x, axes)), fmt
        )
        return in_units(x, levels * multiplier, multiplier, fmt)

    return Recipe(no_state, round_to_levels, keep_state, per_product=role == "gradient")


def _activation(
    x: Array, fmt: Format, axes: object, axis_names: object, key: object
) -> tuple[Array, Array]:
    del axes, axis_names, key
    return _nearest(jnp.clip(x, 0.0, 1.0), fmt), jnp.float32(1.0)


def _weight(
    x: Array,
    fmt: Format,
    axes: tuple[int, ...],
    axis_names: tuple[str, ...],
    key: object,
) -> tuple[Array, Array]:
    del key
    bent = jnp.tanh(x)
    largest = largest_magnitude(bent, axes, axis_names)
    share = _share(bent, largest)
    levels = jnp.where(largest > 0, 2.0 * _nearest(share, fmt) - 1.0, 0.0)
    # In units of the largest magnitude, so that no sum overflows.
    unit = power_of_two(floor_log2(largest_magnitude(x, axes, axis_names)))
    total = jnp.sum(jnp.abs(x) / unit, axes, keepdims=True)
    count = jnp.float32(x.size / total.size)
    if axis_names:
        total, count = lax.psum((total, count), axis_names)
    mean = total / jnp.maximum(count, 1.0) * unit
    alone = bits_of(fmt) == 1
    return jnp.where(alone, jnp.sign(x) * mean, levels), jnp.where(alone, mean, 1.0)


def _gradient(
    x: Array,
    fmt: Format,
    axes: tuple[int, ...],
    axis_names: tuple[str, ...],
    key: ArrayLike | None,
) -> tuple[Array, Array]:
    largest = largest_magnitude(x, axes, axis_names)
    noise = jnp.asarray(noise_of("stochastic", key, x.shape))
    noise = divide(noise, steps_of(fmt))
    share = jnp.clip(_share(x, largest) + noise, 0.0, 1.0)
    return (2.0 * _nearest(share, fmt) - 1.0) * largest, largest


def _share(x: Array, largest: Array) -> Array:
    """Returns where `x` lies between -largest, 0, and largest, 1."""
    return divide(x, jnp.where(largest > 0, largest, 1.0)) * 0.5 + 0.5


def _nearest(share: Array, fmt: Format) -> Array:
    """Returns the nearest of 2^b numbers from 0 to 1."""
    steps = steps_of(fmt)
    return divide(jnp.round(share * steps), steps)
