"""Loss, gradients and statistics of one step: the scaled loss, over micro-batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float32, Key, PyTree

from adaprec_jax import stats
from adaprec_jax.contractions import Stats, Watch, value_and_grad
from adaprec_jax.loss_scaling import LossScalingState, all_finite, scale_loss, unscale
from adaprec_jax.precision import Plan
from adaprec_jax.train.state import Program, TrainState, stream


class Gradients(NamedTuple):
    """What one step computed from its batch.

    Attributes:
        loss: Without the loss scale.
        metrics: The task's, float32 means over the batch.
        model_state: The model's next state.
        gradients: Of the scaled loss, unrounded.
        stats: Of the scaled loss and its gradients; `finite` is the step's one test,
            of the gradients with and without the scale.
    """

    loss: Float32[Array, ""]
    metrics: dict[str, Float32[Array, ""]]
    model_state: PyTree
    gradients: PyTree
    stats: Stats


def make_gradients(program: Program, watch: Watch) -> Callable[..., Gradients]:
    """Returns `f(state, plan, batch, collect) -> Gradients`.

    The batch is cut into `program.micro_batches` equal parts along its first axis.
    Their gradients are averaged in float32, their statistics merged, and the model's
    state goes from part to part. `collect` says whether statistics are gathered.
    """

    def scaled_loss(
        params: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: Key[Array, ""],
        scaling: LossScalingState,
    ) -> tuple[Array, Any]:
        loss, aux = program.loss(params, model_state, batch, key)
        return scale_loss(loss, scaling), (loss, aux)

    rounded = value_and_grad(scaled_loss, program.options, watch)

    def of_part(
        state: TrainState,
        plan: Plan,
        batch: PyTree,
        collect: Bool[Array, ""] | None,
        key: Key[Array, ""],
    ) -> Gradients:
        (_, (loss, aux)), gradients, found = rounded(
            state.params,
            state.model_state,
            batch,
            stream(key, "dropout"),
            state.opt_state._replace(inner=(), master=()),
            plan=plan,
            key=stream(key, "rounding"),
            states=state.recipe_states,
            collect=collect,
        )
        return Gradients(loss, aux.metrics, aux.model_state, gradients, found)

    def of_batch(
        state: TrainState, plan: Plan, batch: PyTree, collect: Bool[Array, ""] | None
    ) -> Gradients:
        key = jax.random.fold_in(state.key, state.calls)
        if program.micro_batches == 1:
            return _tested(of_part(state, plan, batch, collect, key), state.opt_state)

        def of_one(i: Array, part: PyTree, model_state: PyTree) -> Gradients:
            here = state._replace(model_state=model_state)
            return of_part(here, plan, part, collect, jax.random.fold_in(key, i))

        averaged = _averaged(program.micro_batches, of_one, state, batch)
        return _tested(averaged, state.opt_state)

    return of_batch


def _averaged(
    count: int, of_one: Callable[..., Gradients], state: TrainState, batch: PyTree
) -> Gradients:
    """Returns the mean over the parts of a batch."""
    parts = jax.tree.map(lambda leaf: _cut(leaf, count), batch)
    # Many gradients in a narrow format add up to more than one of them.
    zeros = jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)),
        state.params,
    )

    def add(carry: tuple[PyTree, PyTree], x: tuple[Array, PyTree]) -> tuple[Any, Any]:
        sums, model_state = carry
        found = of_one(*x, model_state)
        sums = jax.tree.map(lambda s, g: s + g.astype(s.dtype), sums, found.gradients)
        return (sums, found.model_state), found._replace(gradients=(), model_state=())

    numbered = (jnp.arange(count, dtype=jnp.int32), parts)
    (sums, model_state), found = lax.scan(add, (zeros, state.model_state), numbered)
    gradients = jax.tree.map(lambda s: s / count, sums)
    loss, metrics = jax.tree.map(lambda x: jnp.mean(x, 0), (found.loss, found.metrics))
    norm = optax.tree.norm(gradients).astype(jnp.float32)
    merged = stats.merge(found.stats)._replace(gradient_norm=norm)
    return Gradients(loss, metrics, model_state, gradients, merged)


def _tested(found: Gradients, scaling: LossScalingState) -> Gradients:
    """Returns what was found, with the step's one test of the unrounded gradients.

    A part of a batch that is not finite leaves its mark on the sum: inf - inf is NaN.
    Without the scale, for one below 1 lets gradients overflow that are finite with it.
    """
    # The norm is there anyway, and finite if they are, unless a square overflows.
    finite = lax.cond(
        jnp.isfinite(unscale(found.stats.gradient_norm, scaling)),
        lambda gradients: jnp.bool_(True),
        lambda gradients: all_finite(unscale(gradients, scaling)),
        found.gradients,
    )
    finite &= jnp.isfinite(found.stats.loss)
    return found._replace(stats=found.stats._replace(finite=finite))


def _cut(leaf: Array, count: int) -> Array:
    size = leaf.shape[0]
    if size % count:
        raise ValueError(
            f"A batch of {size} examples cannot be cut into {count} equal "
            "micro-batches."
        )
    return leaf.reshape(count, size // count, *leaf.shape[1:])
