"""A Flax model as two pure functions, whether it is written in linen or in nnx.

Both kinds may have batch statistics. They are the model's state: of the batch in
training, where their running averages are kept, and those averages in evaluation.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn, nnx
from jaxtyping import Array, Float, Key, PyTree

Params: TypeAlias = PyTree[Float[Array, "..."]]
Variables: TypeAlias = tuple[Any, Any]  # parameters and model state
# A linen module, or what makes an nnx module, called as `make(rngs=rngs)`.
Model: TypeAlias = nn.Module | Callable[..., nnx.Module]

# Collections of linen, called as Flax's own layers and examples call them.
_STATISTICS = "batch_stats"
_LOSSES = "losses"


class Result(NamedTuple):
    """What a model returns.

    Attributes:
        outputs: Of the model.
        model_state: The next one in training; in evaluation as it was.
        penalty: What the model adds to the loss in training, 0 if nothing.
    """

    outputs: Any
    model_state: Any
    penalty: Float[Array, ""]


class Network(NamedTuple):
    """The functions of a model.

    Attributes:
        init: `(key, *inputs) -> (params, model_state)`, nested dicts of arrays.
        apply: `(params, model_state, *inputs, train) -> Result`.
    """

    init: Callable[..., Variables]
    apply: Callable[..., Result]


def of(model: Model) -> Network:
    """Returns the functions of a model of either kind."""
    return of_linen(model) if isinstance(model, nn.Module) else of_nnx(model)


def of_linen(module: nn.Module) -> Network:
    """Returns the functions of a linen module.

    It is called as `module(*inputs)`, with `train=True` or `train=False` if it has an
    argument of that name; a module with batch statistics must have it. What it sows
    into the collection `losses` in training is its penalty.
    """
    told = "train" in inspect.signature(module.__call__).parameters

    def mode(*, train: bool) -> dict[str, Any]:
        return {"train": train} if told else {}

    def init(key: Key[Array, ""], *inputs: Any) -> Variables:
        state = dict(module.init(key, *inputs, **mode(train=False)))
        params = state.pop("params")
        state.pop(_LOSSES, None)
        if set(state) - ({_STATISTICS} if told else set()):
            raise ValueError(
                f"{type(module).__name__} has the collections {sorted(state)} beside "
                "its parameters. Allowed are batch statistics, in a module that is "
                "called with train=True or train=False; for others write its Task out."
            )
        return params, state

    def apply(params: Params, state: Any, *inputs: Any, train: bool) -> Result:
        variables = {"params": params, **state}
        if not train:
            outputs = module.apply(variables, *inputs, **mode(train=False))
            return Result(outputs, state, jnp.float32(0))
        outputs, changed = module.apply(
            variables, *inputs, **mode(train=True), mutable=[_STATISTICS, _LOSSES]
        )
        state = dict(changed)
        losses = jax.tree.leaves(state.pop(_LOSSES, {}))
        return Result(outputs, state, jnp.asarray(sum(losses), jnp.float32))

    return Network(init, apply)


def of_nnx(make: Callable[..., nnx.Module]) -> Network:
    """Returns the functions of an nnx module; it has no penalty.

    Args:
        make: Called as `make(rngs=rngs)`, such as a module's class with its other
            arguments bound by `functools.partial`.
    """

    def init(key: Key[Array, ""], *inputs: Any) -> Variables:
        del inputs  # The module knows their shapes.
        _, params, state = _split(make(rngs=nnx.Rngs(key)))
        return params, state

    def apply(params: Params, state: Any, *inputs: Any, train: bool) -> Result:
        graph, _, _ = _split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
        module = nnx.merge(graph, params, state)
        module.set_attributes(use_running_average=not train, raise_if_not_found=False)
        outputs = module(*inputs)
        if train:
            _, _, state = _split(module)
        return Result(outputs, state, jnp.float32(0))

    return Network(init, apply)


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """Returns a module's graph, its parameters and its batch statistics."""
    graph, params, state, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    others = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]
    if others:
        raise ValueError(
            f"{type(module).__name__} has the variables {others} beside its parameters "
            "and batch statistics; write its Task out instead."
        )
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(state)
