"""The work of a train step, counted on its jaxpr.

XLA's own count has no formats, enters a loop once, and takes the arithmetic of an
emulation for that of the model. Here the jaxpr of the step is walked after what nothing
depends on was removed, and every equation is told from the others by the marks that
`adaprec_jax.contractions.scopes` left in its name.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from adaprec_jax.contractions import jax_internals as internals, scopes
from adaprec_jax.contractions.jax_internals import ClosedJaxpr, Eqn, Jaxpr, aval
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.cost.tally import Product, Work

# They move or rename numbers; no arithmetic.
_FREE = frozenset({
    "broadcast_in_dim", "bitcast_convert_type", "concatenate", "convert_element_type",
    "copy", "copy_p", "device_put", "dynamic_slice", "dynamic_update_slice", "empty",
    "expand_dims", "gather", "iota", "layout_constraint", "name",
    "optimization_barrier", "pad", "platform_index", "pvary", "random_clone",
    "random_unwrap", "random_wrap", "reshape", "reshard", "rev", "scatter",
    "sharding_constraint", "slice", "split", "squeeze", "stop_gradient", "transpose",
    "unstack",
})  # fmt: skip
_TRANSCENDENTAL = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh",
    "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "lgamma", "log",
    "log1p", "logistic", "pow", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh",
})  # fmt: skip
_BY_INPUT = ("reduce_", "arg", "cum", "scatter", "psum", "pmax", "pmin", "sort", "top_")
_CALLS = frozenset({
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "custom_lin", "checkpoint", "remat", "remat2", "shard_map", "run_state",
})  # fmt: skip


def count(closed: ClosedJaxpr, table: Table, *, gather_every: int = 1) -> Work:
    """Returns the work of a traced train step.

    Loops count as often as they run, a conditional with its most expensive branch,
    the gathering of statistics with the share of steps in which it happens. A
    `shard_map` counts the work of all devices.

    Args:
        closed: The jaxpr of the step; the loss in it is rounded by a plan.
        table: The contractions of the step.
        gather_every: Steps between two gatherings of statistics.

    Raises:
        ValueError: `gather_every` is not positive.

    >>> import jax.numpy as jnp
    >>> from adaprec_jax.contractions import contraction_table, value_and_grad
    >>> from adaprec_jax.plan import integers, uniform
    >>> loss = lambda p, x: (jnp.sum((x @ p["w"]) ** 2), None)
    >>> args = {"w": jnp.ones((3, 4))}, jnp.ones((2, 3))
    >>> table = contraction_table(loss, *args)
    >>> plan = uniform(table, integers(8, 8))
    >>> step = lambda p, x: value_and_grad(loss)(p, x, plan=plan)[:2]
    >>> work = count(jax.make_jaxpr(step)(*args), table)
    >>> [(p.product, p.macs) for p in work.products]  # no gradient of the input
    [('forward', 24.0), ('wgrad', 24.0)]
    """
    if gather_every < 1:
        raise ValueError(f"gather_every must be at least 1, got {gather_every}.")
    contractions = {c.name: c for c in table.contractions}
    log = _Log(contractions, gather_every)
    _visit(internals.dead_code_removed(closed.jaxpr), _Context("", 1.0, False), log)
    return Work(
        products=tuple(_products(contractions, log)),
        unplanned=dict(log.unplanned),
        operations=dict(log.operations),
        transcendentals=dict(log.transcendentals),
        unknown=tuple(dict.fromkeys(log.unknown)),
    )


class _Context(NamedTuple):
    """What surrounds an equation: names, how often it runs, whether once more."""

    stack: str
    times: float
    recomputes: bool


@dataclasses.dataclass
class _Log:
    """What was counted so far."""

    contractions: Mapping[str, Contraction]
    gather_every: int
    products: dict[tuple[str, str], np.ndarray] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(lambda: np.zeros(3))
    )
    sides: dict[str, int] = dataclasses.field(default_factory=dict)
    unplanned: collections.defaultdict[tuple[str, str], float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    operations: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    transcendentals: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    unknown: list[str] = dataclasses.field(default_factory=list)

    def rehearsal(self) -> "_Log":
        """Returns an empty log of the same step, for one branch of several."""
        return _Log(self.contractions, self.gather_every)

    def add(self, other: "_Log") -> None:
        """Adds what another log counted."""
        for key, counted in other.products.items():
            self.products[key] = self.products[key] + counted
        self.sides |= other.sides
        for key, value in other.unplanned.items():
            self.unplanned[key] += value
        for key, value in other.operations.items():
            self.operations[key] += value
        for key, value in other.transcendentals.items():
            self.transcendentals[key] += value
        self.unknown += other.unknown

    def size(self) -> tuple[float, float]:
        """Returns by what branches are compared."""
        macs = sum((float(each[0]) for each in self.products.values()), 0.0)
        others = sum(self.unplanned.values())
        return macs + others, sum(self.operations.values(), 0.0)


def _visit(jaxpr: Jaxpr, context: _Context, log: _Log) -> None:
    for eqn in jaxpr.eqns:
        stack = f"{context.stack}/{internals.name_stack(eqn)}"
        _visit_eqn(eqn, context._replace(stack=stack), log)


def _visit_eqn(eqn: Eqn, context: _Context, log: _Log) -> None:
    if eqn.primitive in _CONTRACTIONS:
        _contraction(eqn, context, log)
    elif eqn.primitive is internals.scan_p:
        inner = context._replace(times=context.times * eqn.params["length"])
        _visit(eqn.params["jaxpr"].jaxpr, inner, log)
    elif eqn.primitive is internals.while_p:
        _while(eqn, context, log)
    elif eqn.primitive is internals.cond_p:
        _cond(eqn, context, log)
    elif eqn.primitive.name in _CALLS:
        _call(eqn, context, log)
    else:
        _elements(eqn, context, log)


def _contraction(eqn: Eqn, context: _Context, log: _Log) -> None:
    place = scopes.place(context.stack)
    contraction = log.contractions.get(place.contraction)
    if contraction is None or place.part not in scopes.PRODUCTS:
        dtypes = " x ".join(str(aval(atom).dtype) for atom in eqn.invars[:2])
        part = "" if place.part in scopes.PRODUCTS else place.part
        log.unplanned[part, dtypes] += context.times * _macs(eqn)
        return
    # All three products of a contraction multiply alike; the transposed convolutions
    # of the backward pass would count what they insert between the elements.
    macs = context.times * contraction.macs
    again = macs if context.recomputes and place.part == "forward" else 0.0
    log.products[place.contraction, place.part] += (macs, context.times, again)
    log.sides[place.contraction] = place.weight_side


def _macs(eqn: Eqn) -> int:
    """Returns the multiply-accumulates of one equation."""
    right, out = aval(eqn.invars[1]).shape, aval(eqn.outvars[0]).shape
    if eqn.primitive is internals.conv_general_dilated_p:
        features = eqn.params["dimension_numbers"].out_spec[1]
        return math.prod(out) * (math.prod(right) // out[features])
    numbers = eqn.params.get("dimension_numbers")
    if numbers is None:
        numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    left = aval(eqn.invars[0]).shape
    return math.prod(out) * math.prod(left[axis] for axis in numbers[0][0])


def _while(eqn: Eqn, context: _Context, log: _Log) -> None:
    """Counts one turn of a loop, and says so if it multiplies."""
    ahead = log.rehearsal()
    _visit(eqn.params["body_jaxpr"].jaxpr, context, ahead)
    if ahead.size()[0]:
        where = scopes.place(context.stack).contraction or context.stack.strip("/")
        log.unknown.append(
            f"a while loop at {where or 'the top level'} multiplies; how often it runs "
            "is not known, and one turn is counted"
        )
    log.add(ahead)


def _cond(eqn: Eqn, context: _Context, log: _Log) -> None:
    """Counts the most expensive branch; statistics as often as they are gathered."""
    if scopes.place(context.stack).part == "statistics":
        context = context._replace(times=context.times / log.gather_every)
    found = []
    for branch in eqn.params["branches"]:
        ahead = log.rehearsal()
        _visit(branch.jaxpr, context, ahead)
        found.append(ahead)
    log.add(max(found, key=_Log.size))


def _call(eqn: Eqn, context: _Context, log: _Log) -> None:
    if eqn.primitive is internals.shard_map_p:
        shards = internals.shard_count(eqn)
        context = context._replace(times=context.times * shards)
    if eqn.params.get("differentiated"):
        context = context._replace(recomputes=True)
    for jaxpr in internals.sub_jaxprs(eqn)[:1]:  # not a rule for its derivative
        _visit(jaxpr, context, log)


def _elements(eqn: Eqn, context: _Context, log: _Log) -> None:
    name = eqn.primitive.name
    if name in _FREE or not eqn.outvars:
        return
    if name == "pallas_call" or "custom_call" in name or "ffi" in name:
        log.unknown.append(f"{name} cannot be looked into; it counts as nothing")
        return
    sized = eqn.invars[-1:] if name.startswith("scatter") else eqn.invars[:1]
    if not name.startswith(_BY_INPUT) or not sized:
        sized = eqn.outvars[:1]
    shape = getattr(aval(sized[0]), "shape", ())
    operations = context.times * math.prod(shape) * _each(eqn)
    part = scopes.place(context.stack).part
    part = "" if part in scopes.PRODUCTS else part
    log.operations[part] += operations
    if name in _TRANSCENDENTAL:
        log.transcendentals[part] += operations


def _each(eqn: Eqn) -> float:
    """Returns the operations for one element."""
    if "window_dimensions" in eqn.params:
        return math.prod(eqn.params["window_dimensions"])
    if eqn.primitive.name == "sort":
        length = aval(eqn.invars[0]).shape[eqn.params["dimension"]]
        return max(math.log2(max(length, 1)), 1.0)
    return 1.0


def _products(contractions: Mapping[str, Contraction], log: _Log) -> Any:
    """Yields the products with the elements that they read and write."""
    for name, c in contractions.items():
        left, right, out = map(math.prod, c.shapes)
        activation, weight = (left, right) if log.sides.get(name, 1) else (right, left)
        moved = {
            "forward": ((activation, weight), out),
            "dgrad": ((out, weight), activation),
            "wgrad": ((out, activation), weight),
        }
        for product in scopes.PRODUCTS:
            if (name, product) not in log.products:
                continue
            macs, times, again = log.products[name, product].tolist()
            (first, second), result = moved[product]
            yield Product(
                contraction=name,
                product=product,
                macs=macs,
                recomputed=again,
                operands=(times * first, times * second),
                result=times * result,
                weights=c.roles[1] == "weight",
            )


def kept_bytes(loss: Any, *args: PyTree) -> int:
    """Returns the bytes that a loss function keeps for its backward pass.

    They are what JAX saves of its intermediate results, in the dtypes that they have;
    parameters and data are there anyway. A compiler may keep less, and compute again,
    or more, in copies; `docs/limits.md` says by how much.

    Args:
        loss: Returns a number, or a number and something beside it.
        *args: Arrays or their shapes; the first holds the parameters.

    >>> import jax.numpy as jnp
    >>> kept_bytes(lambda p, x: jnp.sum(jnp.sin(p * x)), jnp.ones(5), jnp.ones(5))
    20
    """

    def pullback(params: PyTree, *rest: PyTree) -> Any:
        def number(params: PyTree) -> jax.Array:
            out = loss(params, *rest)
            return out[0] if isinstance(out, tuple) else out

        return jax.vjp(number, params)[1]

    jaxpr = jax.make_jaxpr(pullback)(*args).jaxpr
    given = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)}
    kept = {
        id(atom): aval(atom)
        for atom in jaxpr.outvars
        if not isinstance(atom, internals.Literal) and id(atom) not in given
    }
    return sum(math.prod(each.shape) * each.dtype.itemsize for each in kept.values())


_CONTRACTIONS = (
    internals.dot_general_p,
    internals.conv_general_dilated_p,
    internals.ragged_dot_general_p,
)
