"""NVFP4: blocks of 16 with a scale in E4M3, and one of float32 for the tensor."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax import formats
from adaprec_jax.formats import LARGEST_FLOAT32, Format
from adaprec_jax.quantizers import quantize
from adaprec_jax.scaling.blocks import WITHIN, Blocks, check_size
from adaprec_jax.scaling.hadamard import rotated
from adaprec_jax.scaling.per_tensor import (
    largest_magnitude,
    multiplier_of,
    round_scaled,
    rounder_of,
)
from adaprec_jax.scaling.recipe import (
    InBlocks,
    Parts,
    Quantizer,
    Recipe,
    Use,
    keep_state,
    no_state,
)

_SCALE = "float8_e4m3fn"
_SCALE_FORMAT = formats.get(_SCALE)
_CHOICES = {"none": 448.0, "mse": 256.0, "mae": 256.0}


@functools.cache
def nvfp4(
    size: int = 16,
    *,
    square: bool = False,
    hadamard: bool = False,
    four_over_six: str = "none",
    rounding: str = "nearest_even",
    quantizer: Quantizer | None = None,
) -> Recipe:
    """Returns NVFP4 scaling: E4M3 scales in blocks, and one above them.

    With max_value 6 for E2M1, everything in float32,

        s_tensor = amax of the tensor / (6 * 448)
        s_block = E4M3(amax of the block / 6 / s_tensor)
        rounded = E2M1(x / (s_block * s_tensor)), saturating
        scale = s_block * s_tensor

    in the order of operations of Transformer Engine's reference. The scale of a block
    is not rounded up, so that its largest element may saturate. A block whose scale
    E4M3 rounds to zero is zero. The element format is that of the plan, float4_e2m1fn;
    any other that is scaled is treated alike.

    Source: NVIDIA 2025, "Pretraining Large Language Models with NVFP4",
    arXiv:2509.25149.

    Args:
        size: Elements along a side of a block.
        square: Whether blocks have two sides, as those of weights, 16 x 16.
        hadamard: Whether the operands of the weight's gradient are `rotated`, as
            those two tensors are, activations and gradients.
        four_over_six: "none", or the error by which each block chooses whether its
            largest element goes to 6 or to 4, where the grid is finer: "mse" or
            "mae", the mean squared or absolute one. Its E4M3 scales end at 256, which
            leaves room for those that are larger by 6/4.
        rounding: As in `adaprec_jax.quantize`; "stochastic" for gradients.
        quantizer: In place of its rounding.

    Raises:
        ValueError: `size` is less than 1, or `four_over_six` is unknown.

    >>> x, use = jnp.array([6.0, 1.2, -0.3, 0.0]), Use("forward", (0,))
    >>> fmt = formats.get("float4_e2m1fn")
    >>> values, _ = nvfp4(2).round(x, fmt, (), axes=(0,), key=None, use=use)
    >>> values
    Array([ 6.,  1., -6.,  0.], dtype=float32)
    """
    check_size(size)
    if four_over_six not in _CHOICES:
        raise ValueError(
            f"four_over_six must be one of {', '.join(_CHOICES)}, got "
            f"{four_over_six!r}."
        )
    rounder = rounder_of(rounding, quantizer)
    scale_max = _CHOICES[four_over_six]

    def in_parts(
        x: Float[Array, "..."],
        fmt: Format,
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
        use: Use,
    ) -> tuple[Parts, Float32[Array, "..."]]:
        x = x.astype(jnp.float32)
        blocks = Blocks(x.shape, use, size, square)
        largest = blocks.common(jnp.asarray(fmt.max_value))
        amax = blocks.amax(x)
        whole = largest_magnitude(x, axes, axis_names).reshape((1,) * amax.ndim)
        # 0 gives 1, and infinity NaN.
        encode = jnp.where(whole > 0, multiplier_of(whole, largest * scale_max), 1.0)
        encode = jnp.where(jnp.isfinite(whole), encode, jnp.nan)

        # Behind barriers, or XLA keeps more digits than E4M3 has, and takes one
        # division for two: then ties of E2M1 go the other way.
        decode = lax.optimization_barrier(1.0 / encode)

        def to(top: Array) -> tuple[Array, Array, Array]:
            multiplier, *scales = map(blocks.spread, _scales(top, amax, encode, decode))
            rounded, _ = round_scaled(x, fmt, multiplier, rounder, key)
            of_block, scale = (jnp.where(fmt.scaled, s, 1.0) for s in scales)
            return rounded, of_block, scale

        values, of_block, scale = to(largest)
        if four_over_six != "none":
            fewer, larger, wider = to(largest * 2.0 / 3.0)
            error = functools.partial(_error, four_over_six, blocks, x)
            better = error(fewer, wider) < error(values, scale)
            values = jnp.where(better, fewer, values)
            of_block = jnp.where(better, larger, of_block)
            scale = jnp.where(better, wider, scale)
        return Parts(values, of_block, jnp.where(fmt.scaled, decode, 1.0)), scale

    def round_by_block(
        x: Float[Array, "..."], fmt: Format, state: tuple[()], **settings: Any
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        del state
        parts, scale = in_parts(x, fmt, **settings)
        return parts.elements, scale

    def of_one(x: Float[Array, "..."], fmt: Format, **settings: Any) -> Parts:
        parts, _ = in_parts(x, fmt, **settings)
        return parts._replace(of_tensor=parts.of_tensor.reshape(()))

    recipe = Recipe(
        no_state, round_by_block, keep_state, per_product=True,
        in_blocks=InBlocks(size, _SCALE, of_one) if quantizer is None else None,
    )  # fmt: skip
    return rotated(recipe) if hadamard else recipe


def _scales(
    top: Float32[Array, "..."],
    amax: Float32[Array, "..."],
    encode: Float32[Array, "..."],
    decode: Float32[Array, "..."],
) -> tuple[Float32[Array, "..."], Float32[Array, "..."], Float32[Array, "..."]]:
    """Returns what brings the largest of each block to `top`, and what undoes it.

    That is the scale of the block, and this one with the tensor's.
    """
    of_block = quantize(lax.optimization_barrier(amax / top) * encode, _SCALE_FORMAT)
    of_block = lax.optimization_barrier(of_block)
    some = jnp.where(of_block == 0, 1.0, of_block)
    scale = lax.optimization_barrier(some * decode)
    multiplier = jnp.minimum(1.0 / scale, LARGEST_FLOAT32)
    return jnp.where(of_block == 0, 0.0, multiplier), some, scale


def _error(
    kind: str,
    blocks: Blocks,
    x: Float32[Array, "..."],
    values: Float32[Array, "..."],
    scale: Float32[Array, "..."],
) -> Float32[Array, "..."]:
    """Returns for each element the summed error of its block."""
    noise = blocks.cut(values * scale - x)
    noise = jnp.square(noise) if kind == "mse" else jnp.abs(noise)
    return blocks.spread(jnp.sum(noise, WITHIN, keepdims=True))
