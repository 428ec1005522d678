"""A quantiser: whole numbers, a tie away from zero."""

import jax.numpy as jnp


def away():
    """Rounds to integers within the format's bounds."""

    def quantize(x, fmt, key):
        whole = jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)
        return jnp.clip(whole, fmt.min_value, fmt.max_value)

    return quantize
