"""Microscaling: blocks of 32 elements that share a power of two (OCP MX)."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float32

from adaprec_jax.scaling.blocks import E8M0, by_block
from adaprec_jax.scaling.per_tensor import rounding_by
from adaprec_jax.scaling.powers import ceil_log2_ratio, floor_log2, power_of_two
from adaprec_jax.scaling.recipe import Quantizer, Recipe


@functools.cache
def mx(
    size: int = 32,
    *,
    shared_exponent: str = "floor",
    square: bool = False,
    rounding: str = "nearest_even",
    quantizer: Quantizer | None = None,
) -> Recipe:
    """Returns microscaling: for each block an E8M0 scale, a power of two.

    The rule for the exponent of the scale is one of

        floor:  floor(log2 amax) - floor(log2 max_value)
        up:     the least at which amax does not exceed max_value

    The first is that of the specification and of the microxcaling package: the largest
    elements of a block may saturate (in E4M3 those from 448 to 512 scales). The second
    is that of MXFP8 pre-training.

    The element format is that of the plan: float8_e4m3fn, float8_e5m2, float6_e3m2fn,
    float6_e2m3fn, float4_e2m1fn or int8 for those of OCP, but any that is scaled will
    do. (MXINT8 counts in 1/64; here the scale holds that factor.) A block whose scale
    would exceed 2^127 is NaN, and so is one that holds an infinity. E8M0's lowest and
    highest scales have no normal reciprocal in float32; here they end at 2^-126 and at
    2^126, above which no format of OCP needs one.

    Source: OCP Microscaling Formats (MX) v1.0; "up": MXFP8 pre-training,
    arXiv:2506.08027.

    Args:
        size: Elements of a block, along the axes that the product sums over.
        shared_exponent: "floor" or "up".
        square: Whether blocks have two sides, as in `blockwise`.
        rounding: As in `adaprec_jax.quantize`; microxcaling's is "nearest_away".
        quantizer: In place of its rounding.

    Raises:
        ValueError: `size` is less than 1, or `shared_exponent` is neither.

    >>> from adaprec_jax import formats
    >>> from adaprec_jax.scaling import Use
    >>> x, use = jnp.array([0.4, 7.3]), Use("forward", (0,))
    >>> fmt = formats.get("float8_e4m3fn")
    >>> for rule in ("floor", "up"):
    ...     recipe = mx(shared_exponent=rule)
    ...     values, scale = recipe.round(x, fmt, (), axes=(0,), key=None, use=use)
    ...     print(values * scale)
    [0.40625 7.     ]
    [0.40625 7.5    ]
    """
    if shared_exponent not in ("floor", "up"):
        raise ValueError(
            f"shared_exponent must be 'floor' or 'up', got {shared_exponent!r}."
        )
    find = _floor_multiplier if shared_exponent == "floor" else _up_multiplier
    scale = E8M0 if quantizer is None else ""
    return by_block(size, square, rounding_by(find, rounding, quantizer), scale)


def _floor_multiplier(
    amax: Float32[Array, "..."], max_value: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    return _reciprocal(floor_log2(amax) - floor_log2(max_value))


def _up_multiplier(
    amax: Float32[Array, "..."], max_value: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    return _reciprocal(ceil_log2_ratio(amax, max_value))


def _reciprocal(exponent: Array) -> Float32[Array, "..."]:
    """Returns 2^-exponent within the bounds of E8M0; beyond them NaN."""
    return jnp.where(exponent > 127, jnp.nan, power_of_two(-exponent))
