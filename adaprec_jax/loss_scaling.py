"""Loss scaling and float32 master parameters, as one optax transformation.

Gradients in a narrow format underflow. Multiplying the loss by a scale lifts them
into range, and dividing them by it before the optimizer undoes it (Micikevicius et
al. 2018, arXiv:1710.03740). A step whose gradients are not finite is skipped and the
scale backs off. `none`, `static` and `dynamic` differ in how the scale moves
and in nothing else; each wraps any optax transformation:

>>> import jax, jax.numpy as jnp, optax
>>> from adaprec_jax import loss_scaling
>>> tx = loss_scaling.dynamic(
...     optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
... )
>>> @jax.jit
... def train_step(params, state, x, y):
...     def scaled_loss(params):
...         loss = jnp.mean((x @ params - y) ** 2)
...         return loss_scaling.scale_loss(loss, state)
...     grads = jax.grad(scaled_loss)(params)
...     updates, new_state = tx.update(grads, state, params)
...     return loss_scaling.apply(params, updates, new_state), new_state
>>> x, y = jnp.eye(4, dtype=jnp.float16), jnp.arange(4, dtype=jnp.float16)
>>> params = jnp.zeros(4, jnp.float16)
>>> state = tx.init(params)
>>> for batch in (y, y, y * 60000, y):  # the third one overflows
...     params, state = train_step(params, state, x, batch)
>>> print(params.dtype, state.calls, state.applied, state.skipped, state.scale)
float16 4 3 1 16384.0

**Order of events.** The gradients are cast to float32 and unscaled; then tested, so
that one which a scale below 1 lets overflow counts like one that came in infinite;
then they enter the inner transformation, so a clip in it sees true magnitudes. A step
that is not finite changes neither parameters nor inner state, not in one bit.

**Master parameters.** For each parameter narrower than float32 the state holds a
float32 master, which is what the inner transformation sees and what its updates are
added to. Therefore use `apply` in place of `optax.apply_updates`: there the new
parameter is the cast master, since no sum of an update and a narrow parameter can be.

**Which counter to read.** `calls` counts every step, `applied` those that reached the
inner transformation, `skipped` the rest. A learning-rate schedule inside the inner
transformation keeps its own count, which moves with `applied`; a precision schedule
reads `calls`.

**Composition.** Loss scaling is the outermost transformation. With accumulation the
order is `dynamic(optax.MultiSteps(inner, k))`: a micro-batch that is not finite leaves
the accumulator as it was, and `calls`, `applied` and `skipped` count micro-batches.
Parameters changed in this call exactly if
`state.last_finite & multi_steps.has_updated(state.inner)`.
Everything that moves is an array of fixed dtype in the state, so one executable
serves every scale, and a pack of runs under `jax.vmap` has a scale each.
"""

import functools
import operator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

Number: TypeAlias = float | int
Master: TypeAlias = Array | tuple[()]

# Between these a float32 scale and its reciprocal are normal numbers.
_SMALLEST_SCALE = 2.0**-126
_LARGEST_SCALE = 2.0**126


class LossScalingState(NamedTuple):
    """State of `none`, `static` and `dynamic`.

    Attributes:
        scale: What the loss of the next call is multiplied by, float32.
        finite_steps: Finite steps since the scale last grew or a step was skipped.
        calls: All steps since the start: `applied + skipped`.
        applied: Steps that the inner transformation has seen.
        skipped: Steps that were not finite and changed nothing.
        consecutive_skips: Skipped steps since the last finite one.
        skips_at_floor: Those of them that ran at a scale which cannot get smaller.
        last_finite: Whether the last step was finite; True before the first.
        diverged: Whether `skips_at_floor` ever reached its limit; stays True.
        inner: State of the wrapped transformation.
        master: The parameters' tree with a float32 copy of each parameter that is
            narrower than float32 and `()` in place of each other one.
    """

    scale: Float[Array, ""]
    finite_steps: Int[Array, ""]
    calls: Int[Array, ""]
    applied: Int[Array, ""]
    skipped: Int[Array, ""]
    consecutive_skips: Int[Array, ""]
    skips_at_floor: Int[Array, ""]
    last_finite: Bool[Array, ""]
    diverged: Bool[Array, ""]
    inner: optax.OptState
    master: PyTree


class _Rule(NamedTuple):
    """How the scale moves; numpy scalars, so that every result is strongly typed."""

    growth_interval: np.int32
    growth_factor: np.float32
    backoff_factor: np.float32
    min_scale: np.float32
    max_scale: np.float32
    max_consecutive_skips: np.int32


def none(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    max_consecutive_skips: int = 10,
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` behind the finite test and with masters, the scale being 1.

    Args:
        inner: The transformation to wrap.
        max_consecutive_skips: Skipped steps in a row that mean divergence.

    Raises:
        ValueError: If `max_consecutive_skips` is not positive.

    >>> tx = none(optax.sgd(1.0))
    >>> state = tx.init(jnp.zeros(2))
    >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), state)
    >>> print(updates, state.skipped, state.scale)
    [-0. -0.] 1 1.0
    """
    return static(inner, 1.0, max_consecutive_skips=max_consecutive_skips)


def static(
    inner: optax.GradientTransformation | optax.MultiSteps,
    scale: Number,
    *,
    max_consecutive_skips: int = 10,
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` behind a scale that stays where it is.

    The scale is data: `state._replace(scale=...)` needs no new compilation, and holds
    from then on.

    Args:
        inner: The transformation to wrap.
        scale: What the loss is multiplied by, from 2**-126 to 2**126. Powers of two
            are undone exactly; others cost up to 1.5 units in the last place.
        max_consecutive_skips: Skipped steps in a row that mean divergence.

    Raises:
        ValueError: If an argument is out of its range.

    >>> tx = static(optax.sgd(1.0), scale=1024)
    >>> state = tx.init(jnp.zeros(2))
    >>> updates, state = tx.update(jnp.array([1024.0, 2048.0]), state)
    >>> print(updates, state.applied, state.scale)
    [-1. -2.] 1 1024.0
    """
    if not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:
        raise ValueError(f"Expected a scale from 2**-126 to 2**126, got {scale=}.")
    never = np.iinfo(np.int32).max
    # The widest bounds: they hold a scale put in the place of this one as well.
    bounds = (_SMALLEST_SCALE, _LARGEST_SCALE)
    rule = _rule(never, (1.0, 1.0), bounds, max_consecutive_skips)
    return _loss_scaling(inner, scale, rule)


def dynamic(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    init_scale: Number = 2.0**15,
    growth_interval: int = 2000,
    growth_factor: Number = 2.0,
    backoff_factor: Number = 0.5,
    min_scale: Number = 1.0,
    max_scale: Number = 2.0**24,
    max_consecutive_skips: int = 10,
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` behind a scale that grows until the gradients overflow.

    A skipped step multiplies the scale by `backoff_factor`; the `growth_interval`-th
    finite step in a row multiplies it by `growth_factor` and starts a new count:
    the trajectory of `torch.amp.GradScaler`, held between `min_scale` and
    `max_scale`. Factors and scales are float32.

    Args:
        inner: The transformation to wrap.
        init_scale: The first scale. 2**15 is the largest power of two in float16:
            the cotangent of a float16 loss is the scale itself, and 2**16 would
            overflow there before anything was computed.
        growth_interval: Finite steps in a row after which the scale grows.
        growth_factor: What it is multiplied by then, above 1.
        backoff_factor: What it is multiplied by after a skip, between 0 and 1.
        min_scale: The floor, at least 2**-126. Below 1, the default, the scale would
            shield gradients that overflow without it, which is divergence.
        max_scale: The ceiling, at most 2**126. The default, 2**24, lifts the
            smallest float16 number to 1; gradients that are wide enough never to
            overflow end there.
        max_consecutive_skips: Skipped steps in a row, all at the floor, after which
            `diverged` is set. The step is still skipped: it is never applied.

    Raises:
        ValueError: If an argument is out of its range.

    >>> tx = dynamic(optax.sgd(1.0), init_scale=16, growth_interval=2)
    >>> state = tx.init(jnp.zeros(()))
    >>> for gradient in (16.0, 16.0, jnp.inf, 16.0):
    ...     _, state = tx.update(jnp.asarray(gradient), state)
    ...     print(state.scale, state.applied)
    16.0 1
    32.0 2
    16.0 2
    16.0 3
    """
    if not _SMALLEST_SCALE <= min_scale <= init_scale <= max_scale <= _LARGEST_SCALE:
        raise ValueError(
            "Expected 2**-126 <= min_scale <= init_scale <= max_scale <= 2**126, got "
            f"{min_scale=}, {init_scale=}, {max_scale=}."
        )
    if not 0.0 < backoff_factor < 1.0 < growth_factor < np.inf:
        raise ValueError(
            "Expected 0 < backoff_factor < 1 < growth_factor, both finite, got "
            f"{backoff_factor=}, {growth_factor=}."
        )
    factors, bounds = (growth_factor, backoff_factor), (min_scale, max_scale)
    rule = _rule(growth_interval, factors, bounds, max_consecutive_skips)
    return _loss_scaling(inner, init_scale, rule)


def scale_loss(loss: Float[Array, ""], state: LossScalingState) -> Float[Array, ""]:
    """Returns the loss to differentiate: `loss` times the scale, at least float32.

    >>> state = static(optax.sgd(1.0), 2.0**16).init(jnp.zeros(2))
    >>> print(scale_loss(jnp.float16(2.0), state))
    131072.0
    """
    loss = _widen(loss)
    return loss * state.scale.astype(loss.dtype)


def unscale(grads: PyTree, state: LossScalingState) -> PyTree:
    """Returns the gradients of the loss itself, at least float32.

    Multiplies by the reciprocal of the scale, which is a normal number for every
    admitted one: exact for powers of two.

    >>> state = static(optax.sgd(1.0), 4.0).init(jnp.zeros(2))
    >>> print(unscale(jnp.array([8.0, 2.0]), state))
    [2.  0.5]
    """

    def one(grad: Array) -> Array:
        if not jnp.issubdtype(grad.dtype, jnp.inexact):
            return grad
        wide = _widen(grad)
        return wide * (1.0 / state.scale).astype(wide.dtype)

    return jax.tree.map(one, grads)


def masters(params: PyTree, state: LossScalingState) -> PyTree:
    """Returns the master of each parameter that has one, else the parameter.

    >>> state = static(optax.sgd(1.0), 4.0).init(jnp.zeros(2))
    >>> print(masters(jnp.zeros(2), state))
    [0. 0.]
    """
    return jax.tree.map(_wide_param, params, state.master)


def apply(params: PyTree, updates: PyTree, state: LossScalingState) -> PyTree:
    """Returns the new parameters, each in its dtype.

    A parameter with a master is the cast master, equal to the bit; any other one is
    the sum of parameter and update, as `optax.apply_updates` has it. After a skipped
    step both are the old parameter, to the bit.

    Args:
        params: The parameters that `update` was called with.
        updates: The updates that it returned.
        state: The state that it returned.

    >>> params = jnp.ones(1, jnp.bfloat16)
    >>> tx = none(optax.sgd(1.0))
    >>> state = tx.init(params)
    >>> for _ in range(4):  # alone, each of them would be lost to rounding
    ...     grads = jnp.full(1, 2.0**-9, jnp.bfloat16)
    ...     updates, state = tx.update(grads, state, params)
    ...     params = apply(params, updates, state)
    >>> print(params)
    [0.992188]
    """

    def new_param(param: Array, update: Array, master: Master) -> Array:
        if not isinstance(master, tuple):
            return master.astype(param.dtype)
        with jax.numpy_dtype_promotion("standard"):  # as optax.apply_updates adds
            new = (param + update).astype(param.dtype)
        # XLA on CPU flushes subnormals in a sum, even in one with -0.
        return jnp.where(state.last_finite, new, param)

    return jax.tree.map(new_param, params, updates, state.master)


def all_finite(
    tree: PyTree, axis_name: str | tuple[str, ...] | None = None
) -> Bool[Array, ""]:
    """Returns whether no element of any leaf is infinite or NaN, as a scalar bool.

    Under `jit` the answer covers sharded arrays whole. Inside `shard_map` or `pmap`
    each device sees its own shard only: unless the gradients are already reduced
    over the mesh, give the axes and hand the answer to `update` as `finite`.

    Args:
        tree: Arrays of any dtype.
        axis_name: Mesh axes over which the answer is shared.

    >>> print(all_finite({"a": jnp.ones(2), "b": jnp.array([1.0, jnp.inf])}))
    False
    """
    # Not by a maximum or a sum of zeros: XLA:CPU loses a NaN in the one and folds
    # constants into the other.
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    finite = functools.reduce(operator.and_, leaves, jnp.asarray(True))
    if axis_name is None:
        return finite
    return jax.lax.pmin(finite.astype(jnp.int32), axis_name).astype(jnp.bool_)


def _rule(
    growth_interval: int,
    factors: tuple[Number, Number],
    bounds: tuple[Number, Number],
    max_consecutive_skips: int,
) -> _Rule:
    """Returns the checked counts with the factors and bounds, strongly typed."""
    counts = (growth_interval, max_consecutive_skips)
    if not all(1 <= count <= np.iinfo(np.int32).max for count in counts):
        raise ValueError(
            "Expected growth_interval and max_consecutive_skips from 1 to 2**31 - 1, "
            f"got {growth_interval=}, {max_consecutive_skips=}."
        )
    return _Rule(
        growth_interval=np.int32(growth_interval),
        growth_factor=np.float32(factors[0]),
        backoff_factor=np.float32(factors[1]),
        min_scale=np.float32(bounds[0]),
        max_scale=np.float32(bounds[1]),
        max_consecutive_skips=np.int32(max_consecutive_skips),
    )


def _loss_scaling(
    inner: optax.GradientTransformation | optax.MultiSteps,
    init_scale: Number,
    rule: _Rule,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that all three factories share."""
    if isinstance(inner, optax.MultiSteps):
        inner = optax.GradientTransformationExtraArgs(*inner.gradient_transformation())
    transformation = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> LossScalingState:
        # An array each: the same buffer cannot be donated twice.
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return LossScalingState(
            scale=jnp.asarray(init_scale, jnp.float32),
            finite_steps=zero(),
            calls=zero(),
            applied=zero(),
            skipped=zero(),
            consecutive_skips=zero(),
            skips_at_floor=zero(),
            last_finite=jnp.asarray(True),
            diverged=jnp.asarray(False),
            inner=transformation.init(jax.tree.map(_widen, params)),
            master=jax.tree.map(_master, params),
        )

    def update(
        updates: PyTree,
        state: LossScalingState,
        params: PyTree | None = None,
        *,
        finite: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, LossScalingState]:
        """Returns the inner updates, or -0 after a skip, and the next state.

        Args:
            updates: The gradients of the scaled loss.
            state: The last state.
            params: The parameters; may be None if the inner transformation does
                without and none of them has a master.
            finite: Whether to apply this step, where the caller already knows (from
                `all_finite` of what `unscale` gives, say); by default the gradients
                are tested here.
            **extra_args: Handed to the inner transformation as they are.

        Raises:
            ValueError: `params` is None, and a parameter has a master.
        """
        if params is None and jax.tree.leaves(state.master):
            raise ValueError(
                "Parameters narrower than float32 have masters: update needs params."
            )
        if finite is None:
            finite = all_finite(unscale(updates, state))

        def step() -> tuple[PyTree, optax.OptState, PyTree]:
            grads = unscale(updates, state)
            wide = None
            if params is not None:
                wide = masters(params, state)
            # Adam and others mix dtypes (int32 counts with float32 moments), which
            # strict promotion, where a user has set it, forbids.
            with jax.numpy_dtype_promotion("standard"):
                deltas, new_inner = transformation.update(
                    grads, state.inner, wide, **extra_args
                )
            deltas = jax.tree.map(lambda d, g: d.astype(g.dtype), deltas, grads)
            return deltas, new_inner, jax.tree.map(_add, deltas, state.master)

        def skip() -> tuple[PyTree, optax.OptState, PyTree]:
            # The gradients pass through, so that XLA gives the updates of `step`
            # their buffers: a constant here would cost a copy of the parameters.
            return jax.tree.map(_widen, updates), state.inner, state.master

        finite = jnp.asarray(finite)
        deltas, new_inner, master = jax.lax.cond(finite, step, skip)
        # x + 0 turns -0 into 0; x + (-0) is x.
        deltas = jax.tree.map(
            lambda d: jnp.where(finite, d, -jnp.zeros_like(d)), deltas
        )
        state = _advance(rule, state, finite)
        return deltas, state._replace(inner=new_inner, master=master)

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )


def _advance(
    rule: _Rule, state: LossScalingState, finite: Bool[Array, ""]
) -> LossScalingState:
    """Returns `state` with the next scale and counters."""
    reduced = jnp.maximum(state.scale * rule.backoff_factor, rule.min_scale)
    grown = jnp.minimum(state.scale * rule.growth_factor, rule.max_scale)
    one = finite.astype(jnp.int32)
    finite_steps = state.finite_steps + 1
    grows = finite_steps >= rule.growth_interval
    at_floor = reduced == state.scale
    skips_at_floor = jnp.where(finite | ~at_floor, 0, state.skips_at_floor + 1)
    return state._replace(
        scale=jnp.where(finite, jnp.where(grows, grown, state.scale), reduced),
        finite_steps=jnp.where(finite & ~grows, finite_steps, 0),
        calls=state.calls + 1,
        applied=state.applied + one,
        skipped=state.skipped + 1 - one,
        consecutive_skips=jnp.where(finite, 0, state.consecutive_skips + 1),
        skips_at_floor=skips_at_floor,
        last_finite=finite,
        diverged=state.diverged | (skips_at_floor >= rule.max_consecutive_skips),
    )


def _is_narrow(x: Array) -> bool:
    """Returns whether `x` is floating point of fewer than 32 bits."""
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32


def _widen(x: Array) -> Array:
    """Returns `x`, cast to float32 if it is narrow."""
    return x.astype(jnp.float32) if _is_narrow(x) else x


def _master(param: Array) -> Master:
    """Returns the first master of a parameter, or `()` if it needs none."""
    return param.astype(jnp.float32) if _is_narrow(param) else ()


def _wide_param(param: Array, master: Master) -> Array:
    """Returns what the inner transformation sees of a parameter."""
    return param if isinstance(master, tuple) else master


def _add(update: Array, master: Master) -> Master:
    """Returns the next master."""
    return () if isinstance(master, tuple) else master + update
