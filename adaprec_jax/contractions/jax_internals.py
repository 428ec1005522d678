"""Every private or moving part of JAX that the project touches, in one file.

Seen in jax 0.10.2. What may move: the module of the jaxpr types and of the source
information, the names and parameters of the control-flow primitives, `get_bind_params`
(which returns keyword arguments alone), and the boundary marker of `jax.jit`.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import config, core, source_info_util, xla_bridge
from jax._src.ad_checkpoint import remat_p
from jax._src.custom_derivatives import custom_jvp_call_p, custom_vjp_call_p
from jax._src.lax.control_flow.conditionals import cond_p
from jax._src.lax.control_flow.loops import scan_p, while_p
from jax._src.lax.convolution import conv_general_dilated_p
from jax._src.lax.lax import dot_general_p, ragged_dot_general_p
from jax._src.named_sharding import UnspecifiedValue
from jax._src.pjit import jit_p
from jax._src.shard_map import shard_map_p
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import partial_eval

ClosedJaxpr = core.ClosedJaxpr
Eqn = core.JaxprEqn
Jaxpr = core.Jaxpr
Literal = core.Literal
eval_jaxpr = core.eval_jaxpr
last_used = core.last_used
pvary_p = core.pvary_p


def aval(atom: Any) -> core.ShapedArray:
    """Returns shape and dtype of a variable or literal of a jaxpr."""
    return atom.aval


__all__ = [
    "ClosedJaxpr",
    "Eqn",
    "Jaxpr",
    "Literal",
    "aval",
    "bind",
    "cond_p",
    "conv_general_dilated_p",
    "copied_over",
    "custom_jvp_call_p",
    "custom_vjp_call_p",
    "dead_code_removed",
    "dot_general_p",
    "eval_jaxpr",
    "fold_in_place",
    "instantiate",
    "is_spread",
    "jit_p",
    "keep_sharding",
    "last_used",
    "name_stack",
    "only_first",
    "pvary_p",
    "ragged_dot_general_p",
    "remat_p",
    "scan_p",
    "shard_axes",
    "shard_count",
    "shard_map",
    "shard_map_p",
    "source_of",
    "sub_jaxprs",
    "trace",
    "vary_over",
    "vary_together",
    "varying_axes",
    "while_p",
]


def bind(eqn: Eqn, *args: Any) -> list[Any]:
    """Returns the results of evaluating one equation as it stands."""
    parameters = eqn.primitive.get_bind_params(eqn.params)
    if isinstance(parameters, tuple):  # jax < 0.10 returns functions beside them
        functions, parameters = parameters
        args = (*functions, *args)
    out = eqn.primitive.bind(*args, **parameters)
    return list(out) if eqn.primitive.multiple_results else [out]


@contextlib.contextmanager
def source_of(eqn: Eqn) -> Iterator[None]:
    """Keeps the equation's name scope, line and mesh context on what replaces it."""
    stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
    with (
        source_info_util.user_context(eqn.source_info.traceback, name_stack=stack),
        eqn.ctx.manager,
    ):
        yield


def sub_jaxprs(eqn: Eqn) -> Sequence[Jaxpr]:
    """Returns the jaxprs among the parameters of an equation."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def name_stack(eqn: Eqn) -> str:
    """Returns the name scopes around an equation, separated by slashes."""
    return str(eqn.source_info.name_stack)


def shard_axes(eqn: Eqn) -> tuple[str, ...]:
    """Returns the mesh axes that a shard_map maps over, in the order of the mesh."""
    manual = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes"))
    return tuple(axis for axis in eqn.params["mesh"].axis_names if axis in manual)


def shard_count(eqn: Eqn) -> int:
    """Returns over how many shards a shard_map spreads its inputs."""
    return math.prod(eqn.params["mesh"].shape[axis] for axis in shard_axes(eqn))


def shard_map(eqn: Eqn, fn: Any, in_specs: Any, out_specs: Any) -> Any:
    """Returns `fn` under the mesh and the checks of a shard_map equation."""
    return jax.shard_map(
        fn,
        mesh=eqn.params["mesh"],
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=frozenset(shard_axes(eqn)),
        check_vma=eqn.params["check_vma"],
    )


def varying_axes(x: jax.typing.ArrayLike) -> frozenset[str]:
    """Returns the manual mesh axes that `x` is marked as varying over."""
    aval = jax.typeof(x)
    if hasattr(aval, "mat"):  # jax >= 0.10
        return frozenset(aval.mat.varying)
    return frozenset(aval.vma)


def vary_over(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Returns `x` marked as varying over the mesh axes as well.

    Nothing is marked where the surrounding shard_map does not check it.
    """
    missing = tuple(sorted(frozenset(axes) - varying_axes(x)))
    if not missing or not config._check_vma.value:  # pyright: ignore[reportPrivateUsage]
        return x
    return jax.lax.pcast(x, missing, to="varying")


def instantiate(cotangent: Any) -> jax.Array:
    """Returns a cotangent as an array, zeros if it is a symbolic zero."""
    if isinstance(cotangent, SymbolicZero):
        zero = aval(cotangent)
        return jnp.zeros(zero.shape, zero.dtype)
    return cotangent


def is_spread(x: jax.Array) -> bool:
    """Returns whether the type of `x` says that an explicit mesh axis spreads it."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def copied_over(spread: Iterable[str], axes: Iterable[str]) -> tuple[str, ...]:
    """Returns the mesh axes along which a tensor spread over some of them is the same.

    Nothing is known where the surrounding shard_map does not check it.
    """
    if not config._check_vma.value:  # pyright: ignore[reportPrivateUsage]
        return ()
    return tuple(axis for axis in axes if axis not in spread)


def only_first(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Returns `x` on the first device along the mesh axes, zeros on the others."""
    for axis in axes:
        x = jnp.where(jax.lax.axis_index(axis) == 0, x, jnp.zeros_like(x))
    return x


def fold_in_place(key: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Returns a key of its own for each place along the mesh axes."""
    for axis in sorted(axes):
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return key


def vary_together(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both marked as varying over the mesh axes that either varies over."""
    return vary_over(x, varying_axes(y)), vary_over(y, varying_axes(x))


def keep_sharding(eqn: Eqn, outs: Sequence[Any]) -> list[Any]:
    """Returns the results of an inlined `jit` under the shardings that it declares."""
    return [
        out
        if isinstance(sharding, UnspecifiedValue)
        else jax.lax.with_sharding_constraint(out, sharding)
        for out, sharding in zip(outs, eqn.params["out_shardings"], strict=True)
    ]


def dead_code_removed(jaxpr: Jaxpr) -> Jaxpr:
    """Returns a jaxpr with those equations alone that its results depend on."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def trace(fn: Any, *args: Any) -> tuple[ClosedJaxpr, Any]:
    """Returns the jaxpr of `fn` and the shapes of its result."""
    return jax.make_jaxpr(fn, return_shape=True)(*args)


def discover_plugins() -> None:
    """Makes JAX know the compilers that are installed, of devices here or not."""
    xla_bridge.discover_pjrt_plugins()
