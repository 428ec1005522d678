"""Random bits for stochastic rounding: a cheap hash of the key and the position.

Threefry costs 25 times `x + 1`, far more than the rounding it serves, and its strength
buys nothing there. This generator is counter-based as well: element i of a draw depends
on the key and i alone, so it is the same in any order of evaluation and however an
array is sharded, and it fuses with the rounding that reads it.

It is splitmix (Steele et al. 2014, "Fast splittable pseudorandom number generators",
doi:10.1145/2660193.2660195) at 32 bits, with a second keyed round as in other
counter-based generators (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3", doi:10.1145/2063384.2063405), which one 32-bit round needs to pass tests of
correlation. The finaliser is the two-multiply hash with the least avalanche bias that
is known (C. Wellons, https://github.com/skeeto/hash-prospector).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, UInt32

_GOLDEN_RATIO = 0x9E3779B9  # times 2^32: splitmix's odd increment of the counter


def random_bits(key: ArrayLike, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns uniform 32-bit words, a pure function of the key and each position.

    Two draws with one key hold the same words: split or fold the key, as with
    `jax.random`. Within a draw the words repeat after 2^32 elements.

    Args:
        key: One JAX key, or its raw uint32 words, two or more.
        shape: Of the result.

    Raises:
        TypeError: `key` is neither.

    >>> words = random_bits(jax.random.key(0), (1000,))
    >>> words.dtype, round(float(jnp.mean(words.astype(jnp.float32) / 2.0**32)), 1)
    (dtype('uint32'), 0.5)
    """
    # Each word of the seed depends on all words of the key up to it, so that keys that
    # differ in one bit start unrelated streams.
    seed = [jnp.uint32(_GOLDEN_RATIO)]
    for word in _key_words(key):
        seed.append(_finalise(seed[-1] ^ word))
    return _finalise(_finalise(_counter(shape) + seed[-2]) ^ seed[-1])


def needed(key: ArrayLike | None) -> ArrayLike:
    """Returns the key that stochastic rounding needs.

    Raises:
        ValueError: There is none.

    >>> needed(None)
    Traceback (most recent call last):
    ValueError: rounding="stochastic" needs a key: pass key=, in training to the
    function that value_and_grad returns.
    """
    if key is None:
        raise ValueError(
            'rounding="stochastic" needs a key: pass key=, in training to the function '
            "that value_and_grad returns."
        )
    return key


def _counter(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns the position of each element times the increment.

    From one iota per axis, which is split between devices; a reshaped one is not.
    """
    counter, stride = jnp.zeros(shape, jnp.uint32), _GOLDEN_RATIO
    for axis in reversed(range(len(shape))):
        position = lax.broadcasted_iota(jnp.uint32, shape, axis)
        counter += position * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return counter


def _finalise(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mixes one to one: each bit of the input flips half of the bits of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def _key_words(key: ArrayLike) -> list[Array]:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = jnp.asarray(key)
    if words.dtype != jnp.uint32 or words.ndim != 1 or words.size < 2:
        raise TypeError(
            "key must be one JAX key or its uint32 words, got an array of "
            f"{words.dtype} of shape {words.shape}."
        )
    return list(words)
