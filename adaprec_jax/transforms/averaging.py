"""The mean of the weights over the tail of a run, in float32.

Weights that training keeps in motion, by rounding and a constant learning rate, lie
around a better point than any of them is: their mean. SWALP takes it in high precision
while everything else is low (Yang et al. 2019, arXiv:1904.11943).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int32, PyTree

from adaprec_jax.transforms.rounding import Whole, check_from


class AveragingState(NamedTuple):
    """State of `averaging`.

    Attributes:
        calls: Updates so far. Behind loss scaling they are the applied steps.
        averaged: How many weights the mean is of.
        mean: The mean, float32, in the parameters' tree; 0 before the first.
    """

    calls: Int32[Array, ""]
    averaged: Int32[Array, ""]
    mean: PyTree


def averaging(
    *, start: Whole, every: Whole = 1
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that averages the weights and changes no update.

    The weights after call `start`, and after every `every`-th call from there, enter
    the mean: after n of them it is the sum over n, formed as

        mean += (w - mean) / n.

    It reads the parameters and the final updates, so it stands last in a chain. Where
    `hysteresis` rounds the weights, put it behind that, and it averages the rounded
    ones. Inside `adaprec_jax.loss_scaling` it averages the float32 masters. What is not
    finite is left out.

    Source: the mean of SWALP, Yang et al. 2019, arXiv:1904.11943.

    Args:
        start: The first call that counts; 0 is the first of all.
        every: Calls between two weights; SWALP takes one per epoch of the tail.

    Raises:
        ValueError: An argument is out of its range, or `update` is given no params.

    >>> tx = optax.chain(optax.sgd(1.0), averaging(start=2))
    >>> w, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    >>> for gradient in (-1.0, -1.0, -1.0, -1.0):  # 1, 2, 3, 4
    ...     updates, state = tx.update(jnp.array([gradient]), state, w)
    ...     w = optax.apply_updates(w, updates)
    >>> print(w, averaged(state, w))
    [4.] [3.5]
    """
    check_from("averaging", "start", start, 0)
    check_from("averaging", "every", every, 1)

    def init(params: PyTree) -> AveragingState:
        return AveragingState(
            calls=jnp.zeros((), jnp.int32),
            averaged=jnp.zeros((), jnp.int32),
            mean=jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
        )

    def update(
        updates: PyTree,
        state: AveragingState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AveragingState]:
        del extra_args
        if params is None:
            raise ValueError("averaging needs params in update.")
        takes = (state.calls >= start) & ((state.calls - start) % every == 0)

        def take() -> AveragingState:
            count = state.averaged + 1

            def one(param: Array, update: Array, mean: Array) -> Array:
                with jax.numpy_dtype_promotion("standard"):  # as apply_updates adds
                    weight = (param + update).astype(param.dtype).astype(jnp.float32)
                new = mean + (weight - mean) / count.astype(jnp.float32)
                return jnp.where(jnp.isfinite(new), new, mean)

            mean = jax.tree.map(one, params, updates, state.mean)
            return state._replace(averaged=count, mean=mean)

        state = lax.cond(takes, take, lambda: state)
        return updates, state._replace(calls=state.calls + 1)

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )


def averaged(state: PyTree, params: PyTree) -> PyTree:
    """Returns the mean of the weights, each in the dtype of its parameter.

    Before the first weight was taken it is the parameters themselves. Statistics of
    batch normalisation belong to the weights they were gathered with: gather them anew
    for the mean.

    Args:
        state: Any optimizer state with one `AveragingState` somewhere in it.
        params: The parameters.

    Raises:
        ValueError: The state holds no average, or several.

    >>> params = jnp.ones(2)
    >>> print(averaged(averaging(start=0).init(params), params))
    [1. 1.]
    """
    found = [
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=_is_average)
        if _is_average(leaf)
    ]
    if len(found) != 1:
        raise ValueError(
            f"Expected one averaging(...) in the optimizer, found {len(found)}."
        )
    [average] = found

    def one(param: Array, mean: Any) -> Array:
        if isinstance(mean, optax.MaskedNode):
            return param
        return jnp.where(average.averaged > 0, mean.astype(param.dtype), param)

    return jax.tree.map(one, params, average.mean)


def _is_average(node: Any) -> bool:
    return isinstance(node, AveragingState)
