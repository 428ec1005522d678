"""WAGE's rule for the step of the optimizer: whole steps on a grid, drawn at random.

An integer weight can move by whole units alone. WAGE divides the gradient of a tensor
by its own size, which leaves a direction, and lets the learning rate say how many units
the largest part of it moves by; what is between two whole numbers becomes one of them
at random, so that the mean is right and small gradients are not lost. Activations,
weights and errors, WAGE's other three, are `adaprec_jax.scaling.wage`.
"""

import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32, Key, PyTree, UInt32

from adaprec_jax import formats
from adaprec_jax.quantizers import quantize
from adaprec_jax.scaling import largest_magnitude
from adaprec_jax.scaling.powers import nearest_log2, power_of_two
from adaprec_jax.scaling.wage import alpha
from adaprec_jax.transforms.rounding import Number, Whole

_MOST_BITS = 16
_LARGEST_RATE = 2**_MOST_BITS  # crosses the whole range of every grid in one step
_WHOLE = formats.integer(24)  # as many units as float32 counts


class WAGEState(NamedTuple):
    """State of `wage`.

    Attributes:
        calls: Updates so far; the noise depends on it.
        key: Words of the key of the noise. They are data: runs that `jax.vmap` maps
            over may have a key each.
    """

    calls: Int32[Array, ""]
    key: UInt32[Array, " words"]


def wage(
    learning_rate: Number,
    bits: Whole = 8,
    *,
    weight_bits: Whole | None = None,
    on_grid: bool = True,
    seed: Whole = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns WAGE's optimizer: steps that are multiples of the grid's unit.

    It takes the place of `optax.sgd`: it reads gradients and has no momentum. With
    $\sigma = 2^{1-b}$ for b = `bits` and the steps $n$ of `wage_steps`, whole numbers,

    $$ w' = \mathrm{clip}(\sigma \, \mathrm{rint}(w / \sigma) - \sigma n,
       -1 + \sigma, 1 - \sigma) $$

    Once the weights lie on the grid the inner rounding does nothing: it brings the
    first ones there, with the first update, to float32's rounding. Without `on_grid`
    the weights are what they are and w' = w - sigma n.

    What is WAGE's: the step, a grid of 8 bits that the weights are kept on, and its
    bound. What is not: here the weights are float32 arrays that hold values of the
    grid, so no memory is saved; every tensor follows the rule, while WAGE's networks
    have neither biases nor norms (`optax.multi_transform` gives those another one); and
    WAGE's code begins at the grid of the rounded weights and uses their narrower bound.

    WAGE stores a weight times its layer's alpha, by which the first weights are too
    small for their few bits. Where the model rounds by `scaling.wage("weight")`, which
    leaves weights their size, give `weight_bits`: grid and bound of a tensor of two
    axes or more are then divided by that alpha, for as many inputs as all of its axes
    but the last have elements, and each weight moves as WAGE's does.

    Source: Wu et al. 2018, "Training and Inference with Integers in Deep Neural
    Networks", arXiv:1802.04680.

    Args:
        learning_rate: In units of the grid: about the steps of the largest gradient.
            WAGE's code has 8, then 1, then 1/8 on CIFAR-10. 0 to 2^16.
        bits: Of the grid, 2 to 16.
        weight_bits: What the model rounds its weights to, 2 to 16; None divides
            nothing.
        on_grid: Whether the weights are kept on the grid and within its bound.
        seed: Of the noise; runs of a pack share it.

    Raises:
        ValueError: An argument is out of its range, or `update` is given no params
            where `on_grid` needs them.

    >>> tx = wage(2.0, bits=4)  # the unit is 1/8
    >>> w = jnp.array([0.52, 0.0, -0.8])
    >>> state = tx.init(w)
    >>> updates, state = tx.update(jnp.array([0.5, -1.0, 1.0]), state, w)
    >>> print(optax.apply_updates(w, updates))
    [ 0.375  0.25  -0.875]
    """
    _check_range("learning_rate", learning_rate, 0, _LARGEST_RATE)
    _check_range("bits", bits, 2, _MOST_BITS)
    if weight_bits is not None:
        _check_range("weight_bits", weight_bits, 2, _MOST_BITS)

    def init(params: PyTree) -> WAGEState:
        del params
        key = jax.random.key_data(jax.random.key(seed))
        return WAGEState(jnp.zeros((), jnp.int32), key)

    def update(
        updates: PyTree,
        state: WAGEState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, WAGEState]:
        del extra_args
        if on_grid and params is None:
            raise ValueError("wage needs params in update.")
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.calls)

        def one(
            path: Any, gradient: Array, weight: Array | None = None
        ) -> Float[Array, "..."]:
            steps = wage_steps(gradient, learning_rate, key=_key_of(path, key))
            amplification = _amplification(gradient.shape, weight_bits)
            return _moved(gradient, weight, steps, _whole(bits), amplification)

        trees = (updates, params) if on_grid else (updates,)
        moved = jax.tree_util.tree_map_with_path(one, *trees)
        return moved, state._replace(calls=state.calls + 1)

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )


def wage_steps(
    gradient: Float[Array, "..."], learning_rate: Number, *, key: ArrayLike
) -> Float32[Array, "..."]:
    r"""Returns by how many units of the grid each weight goes down, whole numbers.

    With $S(x) = 2^{\mathrm{rint}(\log_2 x)}$ and the learning rate $\eta$,

    $$ g_s = \eta \, g / S(\max |g|), \quad n = \mathrm{sgn}(g_s) \,
       (\lfloor |g_s| \rfloor + \mathrm{Bernoulli}(|g_s| - \lfloor |g_s| \rfloor)) $$

    so that n is one of the neighbours of $g_s$ and its mean is $g_s$. The size of the
    gradient counts only within a factor of two: the largest $|g_s|$ lies between
    $\eta / \sqrt{2}$ and $\sqrt{2} \, \eta$. A gradient of zeros makes no step. What is
    not finite stays as it is, and takes no part in the size.

    Args:
        gradient: Of one tensor, over all of which the size is taken.
        learning_rate: Eta.
        key: A JAX key or its words.

    >>> g = jnp.array([3.0, -1.5, 0.0, jnp.nan])  # S is 4
    >>> print(wage_steps(g, 8.0, key=jax.random.key(0)))
    [ 6. -3.  0. nan]
    """
    wide = gradient.astype(jnp.float32)
    finite = jnp.isfinite(wide)
    clean = jnp.where(finite, wide, 0.0)
    exponent = nearest_log2(largest_magnitude(clean, tuple(range(clean.ndim))))
    # In two halves: 2^-128, for the largest numbers, is no normal float32.
    half = exponent >> 1
    shifted = clean * power_of_two(-half) * power_of_two(half - exponent)
    units = jnp.asarray(learning_rate).astype(jnp.float32) * shifted
    steps = quantize(units, _WHOLE, rounding="stochastic", key=key)
    return jnp.where(finite, steps, wide)


def _moved(
    gradient: Float[Array, "..."],
    weight: Float[Array, "..."] | None,
    steps: Float32[Array, "..."],
    bits: Int32[Array, ""],
    amplification: Float32[Array, ""],
) -> Float[Array, "..."]:
    """Returns the update of one tensor; without a weight that of the step alone."""
    half = power_of_two(bits - 1)
    units = half * amplification  # in 1
    change = -steps / units
    if weight is not None:
        wide, bound = weight.astype(jnp.float32), half - 1.0
        whole = jnp.clip(jnp.round(wide * units) - steps, -bound, bound)
        # No clip hides what is not finite from the loss scale.
        change = jnp.where(jnp.isfinite(steps), whole / units - wide, change)
    return change.astype(gradient.dtype)


def _amplification(
    shape: tuple[int, ...], weight_bits: Whole | None
) -> Float32[Array, ""]:
    if weight_bits is None or len(shape) < 2:
        return jnp.ones((), jnp.float32)
    return alpha(math.prod(shape[:-1]), _whole(weight_bits))


def _key_of(path: Any, key: Key[Array, ""]) -> Key[Array, ""]:
    """Returns the key of a tensor, which other tensors in the tree do not change."""
    name = jax.tree_util.keystr(path)
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def _whole(number: Whole) -> Int32[Array, ""]:
    return jnp.asarray(number).astype(jnp.int32)


def _check_range(name: str, value: Number, lowest: int, largest: int) -> None:
    if isinstance(value, jax.Array):
        return  # perhaps traced
    if not lowest <= value <= largest:
        raise ValueError(f"wage needs {name} from {lowest} to {largest}, got {value}.")
