"""A scaling recipe by a multiple of the mean magnitude."""

import jax.numpy as jnp

from adaprec_jax import quantize, scaling


def by_mean(multiple: float = 4.0) -> scaling.Recipe:
    """Maps `multiple` times the mean magnitude to the format's largest number."""

    def round_tensor(x, fmt, state, *, axes, key, axis_names=()):
        top = multiple * jnp.mean(jnp.abs(x), axes, keepdims=True)
        scale = jnp.maximum(top, 2.0**-100) / fmt.max_value
        scale = jnp.where(fmt.scaled, scale, 1.0)
        return quantize(x / scale, fmt), scale

    return scaling.current()._replace(round=round_tensor)
