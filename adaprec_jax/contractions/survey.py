"""The listing half of the walk: finds and names every contraction of a jaxpr."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from adaprec_jax.contractions import jax_internals as internals, names
from adaprec_jax.contractions.compute_dtype import KNOWN
from adaprec_jax.contractions.jax_internals import ClosedJaxpr, Eqn, Jaxpr, aval
from adaprec_jax.contractions.table import (
    Contraction,
    NotReached,
    Site,
    Slot,
    conv_macs,
    dot_einsum,
)

# Where a value comes from: the path of a parameter, a constant, or data (None).
Source: TypeAlias = str | None
CONSTANT = ""
Position: TypeAlias = tuple[int, ...]

_FLOATS = ("float16", "bfloat16", "float32")


class Context(NamedTuple):
    """What surrounds an equation; `executions` is None where it is not known."""

    position: Position
    stack: str
    slots: tuple[Slot, ...]
    executions: int | None
    differentiated: bool

    def inside(self, slot: Slot) -> "Context":
        """Returns what surrounds the equations that the slot repeats."""
        executions = self.executions and self.executions * slot.size
        return self._replace(slots=(*self.slots, slot), executions=executions)


@dataclasses.dataclass
class Survey:
    """What the listing found so far; sites and loops by position in the jaxpr.

    Attributes:
        tops: Top-level names of the parameters.
        open_custom: As in `survey`.
        sites: Contractions in program order; their names come last.
        uses: What the name of each site is made from.
        loops: What each scan repeats.
        not_reached: What the plan has no say over.
    """

    tops: set[str]
    open_custom: bool
    sites: dict[Position, Site] = dataclasses.field(default_factory=dict)
    loops: dict[Position, Slot] = dataclasses.field(default_factory=dict)
    not_reached: list[NotReached] = dataclasses.field(default_factory=list)
    uses: list[names.Use] = dataclasses.field(default_factory=list)

    def rehearsal(self) -> "Survey":
        """Returns an empty survey of the same function, for a look ahead."""
        return Survey(self.tops, self.open_custom)


def survey(
    closed: ClosedJaxpr, sources: Sequence[Source], *, open_custom: bool
) -> Survey:
    """Returns the sites of all contractions of a jaxpr.

    Args:
        closed: The jaxpr.
        sources: For each input the path of the parameter it is, or None.
        open_custom: Whether to enter functions with derivative rules of their own.
    """
    log = Survey({path.split("/")[0] for path in sources if path}, open_custom)
    inputs = zip(sources, closed.jaxpr.invars, strict=True)
    shapes = {path: aval(var).shape for path, var in inputs if path}
    _visit(closed.jaxpr, sources, Context((), "", (), 1, True), log)
    named = names.contraction_names(log.uses)
    for (position, site), name in zip(log.sites.items(), named, strict=True):
        contraction = site.contraction._replace(
            name=name, parameter_shape=shapes.get(site.contraction.parameter, ())
        )
        log.sites[position] = site._replace(contraction=contraction)
    return log


def derived(sources: Sequence[Source]) -> Source:
    """Returns where a result comes from: the first parameter, if nothing is data."""
    if any(source is None for source in sources):
        return None
    return next((source for source in sources if source), CONSTANT)


def _visit(
    jaxpr: Jaxpr, sources: Sequence[Source], context: Context, log: Survey
) -> list[Source]:
    """Lists one jaxpr and returns the sources of its results."""
    env: dict[Any, Source] = dict.fromkeys(jaxpr.constvars, CONSTANT)
    env |= dict(zip(jaxpr.invars, sources, strict=True))

    def read(atom: Any) -> Source:
        return CONSTANT if isinstance(atom, internals.Literal) else env[atom]

    for i, eqn in enumerate(jaxpr.eqns):
        inner = context._replace(
            position=(*context.position, i),
            stack=f"{context.stack}/{internals.name_stack(eqn)}",
        )
        visit = _VISITORS.get(eqn.primitive, _visit_other)
        outs = visit(eqn, [read(atom) for atom in eqn.invars], inner, log)
        env |= dict(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _visit_contraction(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Records one contraction; a product of two parameters is a parameter again."""
    left, right, out = map(aval, (*eqn.invars[:2], eqn.outvars[0]))
    einsum, macs, batch = _shape_of(eqn)
    dtypes = [str(x.dtype) for x in (left, right)]
    if not all(dtype in _FLOATS for dtype in dtypes):
        what = f"{eqn.primitive.name} {einsum}"
        reason = f"its operands are {dtypes[0]} and {dtypes[1]}, not one of {_FLOATS}"
        log.not_reached.append(NotReached(_where(context, log), what, reason))
        return [derived(sources)]
    weight_side = 0 if sources[0] and not sources[1] else 1
    parameter = sources[weight_side] or ""
    weight = (left, right)[weight_side]
    roles = ("weight" if sources[1 - weight_side] else "activation",
             "weight" if parameter else "activation")  # fmt: skip
    members = tuple(weight.shape[axis] for axis in batch[weight_side] if parameter)
    layers = tuple(slot.size for slot in context.slots if slot.kind == "layer")
    module, written = names.scope_path(context.stack, log.tops)
    log.uses.append(names.Use(parameter, module, written or einsum))
    contraction = Contraction(
        name="",
        primitive=eqn.primitive.name,
        einsum=einsum,
        shapes=(left.shape, right.shape, out.shape),
        roles=roles,
        axes=(*layers, *members),
        macs=macs,
        executions=context.executions,
        differentiated=context.differentiated,
        parameter=parameter,
    )
    log.sites[context.position] = Site(contraction, weight_side, context.slots, members)
    return [derived(sources)]


def _shape_of(eqn: Eqn) -> tuple[str, int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns einsum, multiply-accumulates and the batch axes of both operands."""
    left, right = (aval(atom).shape for atom in eqn.invars[:2])
    out = aval(eqn.outvars[0]).shape
    if eqn.primitive is internals.dot_general_p:
        numbers = eqn.params["dimension_numbers"]
        contracted = math.prod(left[axis] for axis in numbers[0][0])
        einsum = dot_einsum(numbers, len(left), len(right))
        return einsum, math.prod(out) * contracted, numbers[1]
    if eqn.primitive is internals.conv_general_dilated_p:
        spec = eqn.params["dimension_numbers"]
        kind = f"conv{len(out) - 2}d"
        return kind, conv_macs(right, out, spec.out_spec[1]), ((), ())
    numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    contracted = math.prod(left[axis] for axis in numbers[0][0])
    return "ragged", math.prod(out) * contracted, ((), ())


def _where(context: Context, log: Survey) -> str:
    return names.scope_path(context.stack, log.tops)[0] or "(top level)"


def _visit_scan(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Enters a scan: over layers if a parameter is among its xs, else over time."""
    constants, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    body, length = eqn.params["jaxpr"].jaxpr, eqn.params["length"]
    xs = sources[constants + carried :]
    slot = Slot("layer" if any(xs) else "time", length)
    log.loops[context.position] = slot
    inner = context.inside(slot)
    sources = _settle(body, sources, (constants, carried), inner, log)
    return _visit(body, sources, inner, log)


def _settle(
    body: Jaxpr,
    sources: list[Source],
    counts: tuple[int, int],
    context: Context,
    log: Survey,
) -> list[Source]:
    """Returns the sources with a carry that the loop changes counted as data."""
    constants, carried = counts
    inside = slice(constants, constants + carried)
    while any(source is not None for source in sources[inside]):
        outs = _visit(body, sources, context, log.rehearsal())[:carried]
        settled = [a if a == b else None
                   for a, b in zip(sources[inside], outs, strict=True)]  # fmt: skip
        if settled == sources[inside]:
            break
        sources = [*sources[:constants], *settled, *sources[constants + carried :]]
    return sources


def _visit_while(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Enters a while loop; how often it runs is not known, and it has no gradient.

    Its test is not entered: JAX lets it return nothing but the decision, so what is
    seen there would be lost.
    """
    tests, bodies = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    inner = context._replace(executions=None, differentiated=False)
    body = eqn.params["body_jaxpr"].jaxpr
    loop = _settle(
        body, sources[tests:], (bodies, len(sources) - tests - bodies), inner, log
    )
    reason = "in the test of a while loop, which the walk does not enter"
    _note(eqn.params["cond_jaxpr"].jaxpr, inner, log, reason)
    return _visit(body, loop, inner, log)


def _visit_cond(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Enters every branch; each counts as executed."""
    outs = [
        _visit(branch.jaxpr, sources[1:],
               context._replace(position=(*context.position, i)), log)
        for i, branch in enumerate(eqn.params["branches"])
    ]  # fmt: skip
    return [
        a if all(a == b for b in rest) else None for a, *rest in zip(*outs, strict=True)
    ]


def _visit_shard_map(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Enters a shard_map: shapes inside are one shard's."""
    slot = Slot("shard", internals.shard_count(eqn))
    return _visit(eqn.params["jaxpr"], sources, context.inside(slot), log)


def _visit_call(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Enters a call whose inputs and results are those of its one jaxpr."""
    (jaxpr,) = internals.sub_jaxprs(eqn)
    return _visit(jaxpr, sources, context, log)


def _visit_custom(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Enters a function with a derivative rule of its own only if asked to."""
    if log.open_custom:
        return _visit_call(eqn, sources, context, log)
    kind = (
        "custom_vjp" if eqn.primitive is internals.custom_vjp_call_p else "custom_jvp"
    )
    reason = f"inside a {kind}, which keeps its own derivative (open_custom enters it)"
    return _pass_by(eqn, sources, context, log, reason)


def _visit_other(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey
) -> list[Source]:
    """Passes an ordinary primitive, noting one that is not known."""
    inside = internals.sub_jaxprs(eqn)
    if not inside and eqn.primitive.name not in KNOWN:
        reason = "the walk does not know what this primitive multiplies"
        what = eqn.primitive.name
        log.not_reached.append(NotReached(_where(context, log), what, reason))
    if eqn.primitive.name == "dynamic_slice":
        return [sources[0]]
    reason = f"inside {eqn.primitive.name}, which the walk does not enter"
    return _pass_by(eqn, sources, context, log, reason)


def _pass_by(
    eqn: Eqn, sources: list[Source], context: Context, log: Survey, reason: str
) -> list[Source]:
    """Passes an equation that is evaluated as it stands."""
    for jaxpr in internals.sub_jaxprs(eqn):
        _note(jaxpr, context, log, reason)
    return [derived(sources)] * len(eqn.outvars)


def _note(jaxpr: Jaxpr, context: Context, log: Survey, reason: str) -> None:
    """Notes the contractions inside a jaxpr that is evaluated as it stands."""
    ahead = log.rehearsal()
    _visit(jaxpr, [None] * len(jaxpr.invars), context, ahead)
    for site in ahead.sites.values():
        what = f"{site.contraction.primitive} {site.contraction.einsum}"
        log.not_reached.append(NotReached(_where(context, log), what, reason))
    log.not_reached.extend(ahead.not_reached)


CONTRACTIONS = (
    internals.dot_general_p,
    internals.conv_general_dilated_p,
    internals.ragged_dot_general_p,
)
_Visitor: TypeAlias = Callable[[Eqn, list[Source], Context, Survey], list[Source]]
_VISITORS: dict[Any, _Visitor] = {
    **dict.fromkeys(CONTRACTIONS, _visit_contraction),
    internals.scan_p: _visit_scan,
    internals.while_p: _visit_while,
    internals.cond_p: _visit_cond,
    internals.shard_map_p: _visit_shard_map,
    internals.jit_p: _visit_call,
    internals.remat_p: _visit_call,
    internals.custom_jvp_call_p: _visit_custom,
    internals.custom_vjp_call_p: _visit_custom,
}
