"""The quantisers of WAGE: fixed levels between -1 and 1, errors shifted to them."""

import functools
import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import Format
from adaprec_jax.scaling.levels import bits_of, in_units, multiplier_of
from adaprec_jax.scaling.per_tensor import largest_magnitude
from adaprec_jax.scaling.powers import nearest_log2, power_of_two
from adaprec_jax.scaling.recipe import (
    Recipe,
    Use,
    check_role,
    keep_state,
    no_state,
    shape_of_scale,
)
from adaprec_jax.scaling.slices import within_slices

_LIMIT = 1.5  # steps: within no less do the first weights lie


@functools.cache
def wage(role: str) -> Recipe:
    r"""Returns the recipe of WAGE for a role.

    With $\sigma = 2^{1-b}$ for the bits b of the format, of which nothing else counts,

    $$ Q(x) = \mathrm{clip}(\sigma \, \mathrm{rint}(x / \sigma), -1 + \sigma,
       1 - \sigma), \quad S(x) = 2^{\mathrm{rint}(\log_2 x)} $$

    - activations: $Q(a)$
    - weights: $Q(\alpha w) / \alpha$ with
      $\alpha = \max(S(1.5 \sigma / \sqrt{6 / n}), 1)$ for the n inputs of an output
    - gradients (WAGE: errors): $S(m) \, Q(g / S(m))$ with $m = \max |g|$

    With one bit Q is the sign. WAGE stores $\alpha w$, drops S(m), and divides by the
    size of the gradient of a weight again in its rule for the step of the optimizer.
    That rule is no scaling: it is `adaprec_jax.transforms.wage`. Beside other
    optimizers gradients keep their size here, and weights that of the model's own first
    values. A recipe has no say over gradients, so that of the clip of an activation is
    left out.

    Source: Wu et al. 2018, "Training and Inference with Integers in Deep Neural
    Networks", arXiv:1802.04680.

    Args:
        role: "activation", "weight" or "gradient".

    Raises:
        ValueError: The role is unknown.

    >>> from adaprec_jax import formats
    >>> a = jnp.array([-3.0, 0.2, 0.6, 0.7])
    >>> call = functools.partial(wage("activation").round, axes=(0,), key=None)
    >>> values, scale = call(a, formats.integer(3), ())
    >>> values * scale
    Array([-0.75,  0.25,  0.5 ,  0.75], dtype=float32)
    """
    check_role(role)

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
        del state, key
        wide, shape = x.astype(jnp.float32), shape_of_scale(x, axes)
        bits = bits_of(fmt)
        shift = jnp.ones(shape, jnp.float32)
        if role == "gradient":
            shift = largest_magnitude(wide, axes, axis_names)
            shift = power_of_two(nearest_log2(shift))
        elif use is not None:
            inputs = within_slices(x, use, axis_names)[0]
            shift = shift / alpha(math.prod(x.shape[a] for a in inputs), bits)
        steps = (1 << (bits - 1)).astype(jnp.float32)  # 1 / sigma
        whole = jnp.clip(jnp.round(wide / shift * steps), 1.0 - steps, steps - 1.0)
        levels = jnp.where(bits == 1, jnp.sign(wide), whole / steps)
        largest = jnp.where(bits == 1, 1.0, 1.0 - 1.0 / steps)
        multiplier = multiplier_of(shift * largest, fmt)
        return in_units(x, levels * (shift * multiplier), multiplier, fmt)

    return Recipe(no_state, round_to_levels, keep_state, per_product=role == "weight")


def alpha(inputs: int, bits: Array) -> Float32[Array, ""]:
    """Returns by how much a weight with so many inputs is too small for the levels.

    A power of two, at least 1; see `wage`.

    Args:
        inputs: Of an output.
        bits: Of the levels, int32, at least 1; may be traced.

    >>> print(alpha(9 * 128, jnp.int32(2)))
    8.0
    """
    first = math.sqrt(6 / max(inputs, 1))
    sigma = 1.0 / (1 << (bits - 1)).astype(jnp.float32)
    exponent = nearest_log2(_LIMIT * sigma / first)
    return power_of_two(jnp.maximum(exponent, 0))
