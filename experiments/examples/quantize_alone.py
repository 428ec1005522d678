"""Rounding alone: how much of a bell curve each 4-bit and 8-bit format keeps."""

import jax
import jax.numpy as jnp

from adaprec_jax import formats, quantize

x = jax.random.normal(jax.random.key(0), (100_000,))
signal_to_noise_db = {}
for name in ("int4", "float4_e2m1fn", "int8", "float8_e4m3fn", "float8_e5m2"):
    fmt = formats.get(name)
    scale = jnp.max(jnp.abs(x)) / fmt.max_value
    error = quantize(x / scale, fmt) * scale - x
    ratio = jnp.sum(x**2) / jnp.sum(error**2)
    signal_to_noise_db[name] = float(10 * jnp.log10(ratio))

# Stochastic rounding needs a key, and is right on average.
one = jnp.full(100_000, 1.3)
rounded = quantize(
    one, formats.get("int4"), rounding="stochastic", key=jax.random.key(1)
)
mean = float(rounded.mean())
print(signal_to_noise_db, mean)
