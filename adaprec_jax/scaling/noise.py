"""Noise in the place of rounding: as large as its error, and without its structure."""

import functools

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from adaprec_jax.formats import LARGEST_FLOAT32, Format
from adaprec_jax.random_bits import random_bits
from adaprec_jax.scaling.per_tensor import largest_magnitude
from adaprec_jax.scaling.recipe import Recipe, Use, shape_of_scale

_DISTRIBUTIONS = ("uniform", "normal")


@functools.cache
def noise(recipe: Recipe, distribution: str = "uniform") -> Recipe:
    r"""Returns the recipe that adds noise as large as the error of another recipe.

    $$ \tilde x = x + \sigma u, \qquad
       \sigma^2 = \frac{1}{n} \sum_i (\hat x_i - x_i)^2 $$

    where $\hat x$ is the tensor as the other recipe rounds it in the same call, and u
    has mean 0 and variance 1, drawn for each element by itself, whatever the tensor.
    The signal-to-noise ratio of each tensor is that of rounding to its format; what
    else rounding does (that few values are left, that small ones vanish and large ones
    saturate, that the error follows from the value) is gone. Where the other recipe
    changes nothing, as with float32, this one does not either. A sharing of the scale
    within the tensor, as in blocks, does not matter: one variance holds for all of it.

    The derivative with respect to the tensor is 1. Infinities and NaN stay what they
    are, and count for nothing in the variance.

    Source: ours, a control; rounding as independent noise is the model of Widrow 1956.

    Args:
        recipe: Whose error is measured; its state is kept as it would be.
        distribution: Of u, "uniform" or "normal".

    Raises:
        ValueError: `distribution` is neither; (in `round`) there is no key.

    >>> import jax
    >>> from adaprec_jax import formats
    >>> from adaprec_jax.scaling import current
    >>> x, key = jnp.linspace(-1.0, 1.0, 1000), jax.random.key(0)
    >>> call = functools.partial(noise(current()).round, x, axes=(0,), key=key)
    >>> values, scale = call(formats.integer(4), ())
    >>> rounded, unit = current().round(x, formats.integer(4), (), axes=(0,), key=None)
    >>> ratio = jnp.std(values * scale - x) / jnp.std(rounded * unit - x)
    >>> round(float(ratio), 1)
    1.0
    """
    if distribution not in _DISTRIBUTIONS:
        allowed = ", ".join(_DISTRIBUTIONS)
        raise ValueError(
            f"distribution must be one of {allowed}, got {distribution!r}."
        )

    def add_noise(
        x: Float[Array, "..."],
        fmt: Format,
        state: object,
        *,
        axes: tuple[int, ...],
        key: ArrayLike | None,
        axis_names: tuple[str, ...] = (),
        use: Use | None = None,
    ) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
        if key is None:
            raise ValueError(
                "Noise needs a key: pass key=, in training to the function that "
                "value_and_grad returns."
            )
        settings = {} if use is None else {"use": use}
        rounded, scale = recipe.round(
            x, fmt, state, axes=axes, key=key, axis_names=axis_names, **settings
        )
        wide = x.astype(jnp.float32)
        deviation = _root_mean_square(rounded * scale - wide, axes, axis_names)
        added = lax.stop_gradient(deviation * _draw(distribution, key, x.shape))
        # Rounding does not lead out of the range of float32, so noise must not.
        bound = jnp.float32(LARGEST_FLOAT32)
        added = jnp.clip(added, -bound - wide, bound - wide)
        keeps = (deviation == 0) | ~jnp.isfinite(wide)
        values = wide + jnp.where(keeps, 0.0, lax.stop_gradient(added))
        return values, jnp.ones(shape_of_scale(x, axes), jnp.float32)

    return recipe._replace(round=add_noise, on_grid=False)


def _root_mean_square(
    error: Float32[Array, "..."], axes: tuple[int, ...], axis_names: tuple[str, ...]
) -> Float32[Array, "..."]:
    """Returns the root of the mean square of what is finite, over `axes`."""
    error = lax.stop_gradient(jnp.where(jnp.isfinite(error), error, 0.0))
    # In units of the largest, so that no square overflows.
    unit = largest_magnitude(error, axes, axis_names)
    share = error / jnp.where(unit > 0, unit, 1.0)
    total = jnp.sum(share * share, axes, keepdims=True)
    count = jnp.float32(error.size / max(total.size, 1))
    if axis_names:
        total, count = lax.psum((total, count), axis_names)
    return unit * jnp.sqrt(total / jnp.maximum(count, 1.0))


def _draw(
    distribution: str, key: ArrayLike, shape: tuple[int, ...]
) -> Float32[Array, "..."]:
    """Returns independent numbers of mean 0 and variance 1."""
    # The middle of one of 2^23 intervals, which float32 holds exactly.
    words = random_bits(key, shape) >> 9
    centred = (words.astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
    if distribution == "uniform":
        return centred * jnp.sqrt(jnp.float32(3.0))
    return lax.erf_inv(centred) * jnp.sqrt(jnp.float32(2.0))
