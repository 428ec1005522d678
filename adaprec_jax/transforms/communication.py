"""The all-reduce of gradients in a narrow format, with a factor that finds its place.

Devices that share a batch add up their gradients. In a narrow format the sum of many
overflows where each of them just fits, and what is scaled down to prevent that
underflows. FP8-LM (Peng et al. 2023, arXiv:2310.18313) multiplies the gradients by a
factor that is halved when too large a share of the sum saturates, and grows slowly
otherwise.

Inside `shard_map`, where each device has its own gradients, `narrow_all_reduce` takes
the place of the mean over devices; under `jax.vmap` with an axis name it does the same
on one device:

>>> import functools, jax, jax.numpy as jnp
>>> from adaprec_jax import formats
>>> fmt = formats.get("float8_e4m3fn")
>>> of_each_device = jnp.array([[1.0, 0.1], [3.0, 0.3]])
>>> reduce = functools.partial(all_reduce, fmt=fmt, axis_name="devices")
>>> mean, saturated = jax.vmap(reduce, (0, None), 0, axis_name="devices")(
...     of_each_device, jnp.float32(1.0)
... )
>>> print(mean[0], saturated[0])
[1.75     0.203125] 0.5

The train step of this package works on gradients that XLA has already summed in
float32; in it, `narrow_all_reduce` without an axis rounds that sum once. It shows what
the format does to a reduced gradient, not what adding up in it does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Float32, PyTree

from adaprec_jax import scaling
from adaprec_jax.formats import SATURATE, Format
from adaprec_jax.quantizers import quantize
from adaprec_jax.transforms.rounding import (
    Number,
    Whole,
    as_arrays,
    check_format,
    check_from,
    unscaled,
)

# Ours: wide enough for thousands of doublings, and a product with them has no overflow.
_SMALLEST_FACTOR, _LARGEST_FACTOR = 2.0**-32, 2.0**32
_SMALLEST, _LARGEST = 2.0**-126, 2.0**126


class Reduced(NamedTuple):
    """What `all_reduce` returns.

    Attributes:
        mean: The mean over the devices, float32.
        saturated: Share of the sum that lies at the format's bound, 0 to 1, float32.
    """

    mean: Float32[Array, "..."]
    saturated: Float32[Array, ""]


class NarrowAllReduceState(NamedTuple):
    """State of `narrow_all_reduce`; the same on every device.

    Attributes:
        factor: By tensor what its gradient is multiplied by, float32; 1 at first.
        fmt: The format. It is data: another one may be put in its place.
    """

    factor: PyTree
    fmt: Format


def narrow_all_reduce(
    fmt: Format,
    axis_name: str | tuple[str, ...] | None = None,
    *,
    threshold: Number = 1e-5,
    window: Whole = 1000,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that averages gradients over devices in a format.

    It stands first in a chain: what follows sees the mean, in the dtype of the
    gradients. Behind loss scaling inside `shard_map` give `update` the answer of
    `loss_scaling.all_finite(grads, axis_name)`, so that all devices skip together.

    Source: FP8-LM, Peng et al. 2023, arXiv:2310.18313.

    Args:
        fmt: What travels between the devices: FP8-LM has float8_e4m3fn.
        axis_name: Mesh axes over which the gradients are averaged; None is one device
            alone, whose gradients are rounded twice, as what it sends and as the sum.
        threshold: Share of a tensor's reduced values at the bound above which its
            factor is halved; FP8-LM has 0.001 %.
        window: Steps in which it doubles otherwise; FP8-LM has 1000.

    Raises:
        ValueError: An argument is out of its range.

    >>> from adaprec_jax import formats
    >>> tx = narrow_all_reduce(formats.get("float8_e4m3fn"))
    >>> state = tx.init(jnp.zeros(2))
    >>> updates, state = tx.update(jnp.array([0.3, 7.0]), state)
    >>> print(updates, state.factor)
    [0.3125 7.    ] 0.5
    """
    check_format("narrow_all_reduce", fmt)
    check_from("narrow_all_reduce", "threshold", threshold, 0)
    check_from("narrow_all_reduce", "window", window, 1)

    def init(params: PyTree) -> NarrowAllReduceState:
        one = lambda _: jnp.ones((), jnp.float32)
        return NarrowAllReduceState(jax.tree.map(one, params), as_arrays(fmt))

    def update(
        updates: PyTree,
        state: NarrowAllReduceState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, NarrowAllReduceState]:
        del params, extra_args
        leaves, structure = jax.tree.flatten(updates)
        factors = structure.flatten_up_to(state.factor)
        found = [
            all_reduce(leaf, factor, fmt=state.fmt, axis_name=axis_name)
            for leaf, factor in zip(leaves, factors, strict=True)
        ]
        means = [
            each.mean.astype(leaf.dtype)
            for each, leaf in zip(found, leaves, strict=True)
        ]
        factors = [
            next_factor(factor, each.saturated, threshold=threshold, window=window)
            for factor, each in zip(factors, found, strict=True)
        ]
        state = state._replace(factor=structure.unflatten(factors))
        return structure.unflatten(means), state

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )


def all_reduce(
    gradient: Float[Array, "..."],
    factor: Float32[Array, ""],
    *,
    fmt: Format,
    axis_name: str | tuple[str, ...] | None = None,
) -> Reduced:
    """Returns the mean of a tensor over devices that speak a narrow format.

    All devices share one scale, that of the largest magnitude among them, rounded so
    that it is a power of two; with the factor it says what they round:

        q_i = Q(factor * g_i / scale),   mean = Q(sum q_i) * scale / (factor * N).

    The sum is formed in float32 and rounded once. A machine that adds in the format
    rounds after every addition, in an order of its own. Values beyond the range
    saturate; an infinity or NaN on any device makes the mean non-finite. A format that
    is not scaled has neither scale nor factor.

    Args:
        gradient: This device's.
        factor: FP8-LM's mu.
        fmt: What travels; data.
        axis_name: Mesh axes, or None for one device.

    >>> from adaprec_jax import formats
    >>> g = jnp.array([1.0, 1e-4])
    >>> for factor in (1.0, 0.001):
    ...     found = all_reduce(g, jnp.float32(factor), fmt=formats.get("float8_e5m2"))
    ...     print(found.mean[1] > 0)
    True
    True
    """
    axes = tuple(range(gradient.ndim))
    names = () if axis_name is None else axis_name
    names = (names,) if isinstance(names, str) else names
    wide = gradient.astype(jnp.float32)
    _, scale = scaling.current().round(
        wide, fmt, (), axes=axes, key=None, axis_names=names
    )
    multiplier = jnp.clip(factor / jnp.squeeze(scale, axes), _SMALLEST, _LARGEST)
    multiplier = jnp.where(fmt.scaled, multiplier, 1.0)
    sent = _saturated(wide, multiplier, fmt)
    total = lax.psum(sent, names) if names else sent
    received = _saturated(total, jnp.float32(1.0), fmt)
    devices = lax.psum(jnp.float32(1.0), names) if names else jnp.float32(1.0)
    whole = unscaled(received, 1.0 / multiplier)
    mean = jnp.where(jnp.isfinite(received), whole, received)
    at_bound = (received >= fmt.max_value) | (received <= -jnp.abs(fmt.min_value))
    saturated = jnp.sum(at_bound, dtype=jnp.float32) / max(gradient.size, 1)
    return Reduced(jnp.where(devices == 1.0, mean, mean / devices), saturated)


def next_factor(
    factor: Float32[Array, ""],
    saturated: Float32[Array, ""],
    *,
    threshold: Number = 1e-5,
    window: Whole = 1000,
) -> Float32[Array, ""]:
    """Returns FP8-LM's factor for the next step.

    It is halved if the saturated share is above the threshold; else it is multiplied by
    2^(1/window), so that it doubles in `window` steps. It stays within 2^-32 to 2^32.

    >>> half = next_factor(jnp.float32(1.0), jnp.float32(0.5))
    >>> print(half, next_factor(half, jnp.float32(0.0), window=1))
    0.5 1.0
    """
    growth = jnp.exp2(1.0 / jnp.asarray(window).astype(jnp.float32))
    new = jnp.where(saturated > threshold, factor * 0.5, factor * growth)
    return jnp.clip(new, _SMALLEST_FACTOR, _LARGEST_FACTOR)


def _saturated(
    x: Float32[Array, "..."], multiplier: Float32[Array, ""], fmt: Format
) -> Float32[Array, "..."]:
    """Rounds x times multiplier; a scaled format cuts what is finite to its range."""
    # Not times 1: XLA may flush float32's subnormals in a product.
    x = jnp.where(multiplier == 1.0, x, x * multiplier)
    overflow = jnp.where(fmt.scaled, SATURATE, fmt.overflow)
    rounded = quantize(x, fmt._replace(overflow=overflow), overflow="format")
    return jnp.where(jnp.isinf(x), x, rounded)
