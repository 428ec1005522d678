"""Random bits for stochastic rounding: one cheap hash of the key and the index.

Threefry costs 25 times `x + 1`, more than everything else that rounding does, and its
strength buys nothing here. This generator is counter-based as well: element i of a
draw depends on the key and i alone, so it is the same under `jit`, in any order of
evaluation and for any sharding, and it fuses with the rounding that reads it.

The hash is the 32-bit finaliser with the lowest known avalanche bias, two multiplies
and three shifts (C. Wellons, "Prospecting for Hash Functions", 2018,
https://nullprogram.com/blog/2018/07/31/, the function published as lowbias32). A
finaliser alone maps one counter; here each word of the key enters it once more, as the
rounds of a counter-based generator do (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3", doi:10.1145/2063384.2063405).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, UInt32

_GOLDEN_RATIO = 0x9E3779B9  # keeps the all-zero key from being a fixed point


def random_bits(key: ArrayLike, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns independent uniform 32-bit words, a pure function of key and position.

    Two draws with the same key and size hold the same words, so split or fold the key
    as with `jax.random`. Words repeat in position after 2^32 elements.

    Args:
        key: A JAX key, or its raw uint32 words (two or more).
        shape: Of the result.

    Raises:
        TypeError: `key` is neither a JAX key nor uint32 words.

    >>> bits = random_bits(jax.random.key(0), (1000,))
    >>> bits.dtype, bool(abs(jnp.mean(bits / 2.0**32) - 0.5) < 0.05)
    (dtype('uint32'), True)
    """
    # Each word of the seed depends on all words of the key before it, so that keys
    # that differ in one bit give unrelated seeds.
    seed, word = [], jnp.uint32(_GOLDEN_RATIO)
    for key_word in _key_words(key):
        word = _finalise(word ^ key_word)
        seed.append(word)
    return functools.reduce(
        lambda x, word: _finalise(x ^ word), seed[-2:], _index(shape)
    )


def _index(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns the position of each element, from one iota per axis.

    A reshaped iota would be the same, but would not be split between devices.
    """
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position = lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += position * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def _finalise(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mixes the bits of x, one to one: each input bit flips half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _key_words(key: ArrayLike) -> list[UInt32[Array, ""]]:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = jnp.asarray(key)
    if words.dtype != jnp.uint32 or words.ndim != 1:
        raise TypeError(
            "key must be one JAX key or its uint32 words, got "
            f"{words.dtype}{list(words.shape)}."
        )
    return list(words)
