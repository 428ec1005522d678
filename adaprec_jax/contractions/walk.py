"""The evaluating half of the walk: a jaxpr with every contraction rounded."""

import functools
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from adaprec_jax.contractions import jax_internals as internals, scopes
from adaprec_jax.contractions.block_scaled import block_scaled_dot
from adaprec_jax.contractions.compute_dtype import (
    Compute,
    Value,
    cast,
    prepare,
    widest,
)
from adaprec_jax.contractions.jax_internals import Eqn, Jaxpr, aval
from adaprec_jax.contractions.kernels import (
    Blocked,
    Kernel,
    Kernels,
    Operand,
    accumulator,
    operand,
)
from adaprec_jax.contractions.observe import Asked, Observed, Probe, Watching
from adaprec_jax.contractions.products import (
    Data,
    Layout,
    States,
    Stored,
    rounded_contraction,
)
from adaprec_jax.contractions.statistics import merge_axis, pack, unpack
from adaprec_jax.contractions.summed import sliced_axes, summed_axes
from adaprec_jax.contractions.survey import Position, Survey
from adaprec_jax.contractions.table import Site
from adaprec_jax.precision import Plan
from adaprec_jax.scaling import Recipes

# Per contraction and role, what was seen of the tensor.
Seen: TypeAlias = dict[str, dict[str, Observed]]


class Settings(NamedTuple):
    """What is static for one evaluation.

    Attributes:
        survey: Sites and scans by position.
        recipes: Scaling recipes by contraction name.
        watching: Statistics by contraction name.
        compute: The dtype of what lies between contractions; None leaves it alone.
        stored: How activations are kept for the backward pass; None: as they are.
        kernels: In which dtypes products are formed, by contraction name.
    """

    survey: Survey
    recipes: Mapping[str, Recipes]
    watching: Mapping[str, Watching]
    compute: Compute | None
    stored: Stored | None
    kernels: Mapping[str, Kernels]


class Live(NamedTuple):
    """What is traced: entered loops have sliced away their axis.

    Attributes:
        plan: Entry by contraction name.
        states: Scaling recipe states by name.
        probes: Zeros for the cotangent statistics by name.
        key: Key of this step and of the iterations of the enclosing loops, or None.
        asked: Which statistics are gathered this time.
    """

    plan: Plan
    states: dict[str, States]
    probes: dict[str, Probe]
    key: Array | None
    asked: Asked


class Spot(NamedTuple):
    """Where in the jaxpr the evaluation stands, and which mesh axes are manual."""

    position: Position
    axis_names: tuple[str, ...]


def evaluate(
    settings: Settings,
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Value],
    live: Live,
    spot: Spot,
) -> tuple[list[Value], Seen]:
    """Returns the results of a jaxpr with rounded contractions, and what was seen."""
    env: dict[Any, Value] = {}
    seen: Seen = {}
    env |= zip(jaxpr.constvars, (Value(c, True) for c in consts), strict=True)
    env |= zip(jaxpr.invars, args, strict=True)
    expires = internals.last_used(jaxpr)

    def read(atom: Any) -> Value:
        if isinstance(atom, internals.Literal):
            return Value(atom.val, True)
        return env[atom]

    for i, eqn in enumerate(jaxpr.eqns):
        inner = spot._replace(position=(*spot.position, i))
        ins = [read(atom) for atom in eqn.invars]
        with internals.source_of(eqn):
            outs, found = _evaluate_eqn(settings, eqn, ins, live, inner)
        seen |= found
        env |= zip(eqn.outvars, outs, strict=True)
        for var in {
            atom for atom in eqn.invars if not isinstance(atom, internals.Literal)
        }:
            if expires.get(var) is eqn:
                env.pop(var, None)
    return [read(atom) for atom in jaxpr.outvars], seen


_Result: TypeAlias = tuple[list[Value], Seen]


def _evaluate_eqn(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    if spot.position in settings.survey.sites:
        return _contraction(settings, eqn, ins, live, spot)
    handler = _HANDLERS.get(eqn.primitive)
    if handler and (settings.compute or _inside(settings, spot.position)):
        return handler(settings, eqn, ins, live, spot)
    arrays, adopts = prepare(settings.compute, eqn.primitive.name, ins)
    outs = internals.bind(eqn, *arrays)
    if eqn.primitive is internals.pvary_p:
        copied = [value.copied | frozenset(eqn.params["axes"]) for value in ins]
        return [Value(*out) for out in zip(outs, [adopts], copied, strict=True)], {}
    return [Value(out, adopts) for out in outs], {}


def _inside(settings: Settings, position: Position) -> list[Site]:
    """Returns the contractions below a position, in program order."""
    depth = len(position)
    return [s for p, s in settings.survey.sites.items() if p[:depth] == position]


def _names(settings: Settings, position: Position) -> list[str]:
    return [site.contraction.name for site in _inside(settings, position)]


def _contraction(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates one rounded contraction."""
    site = settings.survey.sites[spot.position]
    name = site.contraction.name
    left, right, *rest = (jnp.asarray(value.array) for value in ins)
    activation, weight = (right, left) if site.weight_side == 0 else (left, right)
    operands = internals.vary_together(activation, weight)
    spread = _spread_over(ins, site.weight_side)
    watching = settings.watching[name]._replace(
        axis_names=spot.axis_names,
        copies={
            role: internals.copied_over(axes, spot.axis_names)
            for role, axes in spread.items()
        },
    )
    keys = None
    if live.key is not None:
        key = jax.random.fold_in(live.key, zlib.crc32(name.encode()))
        keys = {
            role: internals.fold_in_place(key, axes) for role, axes in spread.items()
        }
    data = Data(live.plan[name], live.states[name], keys, live.asked)
    layout = _layout(eqn, site, rest, settings.kernels.get(name, Kernels()))
    with scopes.contraction(name, site.weight_side):
        out, seen = rounded_contraction(
            layout, settings.recipes[name], watching,
            operands, data, live.probes[name], _stored(settings, site),
        )  # fmt: skip
    low = settings.compute.dtype if settings.compute else aval(eqn.outvars[0]).dtype
    return [Value(cast(out, low), False)], {name: seen}


def _stored(settings: Settings, site: Site) -> tuple[Stored | None, Stored | None]:
    """Returns how each operand is kept; a parameter is there anyway."""
    left, right = (
        settings.stored if role == "activation" else None
        for role in site.contraction.roles
    )
    return left, right


def _spread_over(ins: list[Value], weight_side: int) -> dict[str, frozenset[str]]:
    """Returns by role the mesh axes over which the tensor is known to be spread."""
    left, right = (internals.varying_axes(v.array) - v.copied for v in ins[:2])
    activation, weight = (right, left) if weight_side == 0 else (left, right)
    return {"activation": activation, "weight": weight, "gradient": left | right}


def _layout(eqn: Eqn, site: Site, rest: Sequence[Array], kernels: Kernels) -> Layout:
    """Returns how the product is formed and where its members lie."""
    swapped = site.weight_side == 0

    def product(
        activation: Operand, weight: Operand, kernel: Kernel = Kernel()
    ) -> Array:
        activation = operand(activation, kernel.left, kernel.scales)
        weight = operand(weight, kernel.right, kernel.scales)
        pair = (weight, activation) if swapped else (activation, weight)
        # Without HIGHEST, "float32" is TF32 on recent GPUs and bfloat16 on TPUs, and
        # the sums of float8 products are formed in fewer bits than float32's.
        exact = {
            "precision": (lax.Precision.HIGHEST,) * 2,
            "preferred_element_type": accumulator(kernel),
        }
        left, right = pair
        if kernel.scales and isinstance(left, Blocked) and isinstance(right, Blocked):
            return block_scaled_dot(left, right, kernel.scales.size, eqn.params | exact)
        return eqn.primitive.bind(*pair, *rest, **eqn.params | exact)

    name = site.contraction.name
    in_time = bool(site.slots) and site.slots[-1].kind == "time"
    summed = summed_axes(eqn, site.weight_side)
    sliced = sliced_axes(eqn, site.weight_side, members=bool(site.members))
    if not site.members:
        return Layout(product, (), (), (), (), summed, sliced, in_time, kernels, name)
    left, right = eqn.params["dimension_numbers"][1]
    activation, weight = (right, left) if swapped else (left, right)
    out = tuple(range(len(left)))
    sides = tuple(activation), tuple(weight)
    return Layout(
        product, site.members, *sides, out, summed, sliced, in_time, kernels, name
    )


def _scan(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates a scan; over layers the plan is scanned as well, over time shared."""
    names = _names(settings, spot.position)
    constants, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    closed, length = eqn.params["jaxpr"], eqn.params["length"]
    fixed, init = ins[:constants], ins[constants : constants + carried]
    xs = ins[constants + carried :]
    over_layers = settings.survey.loops[spot.position].kind == "layer"
    inner = _only(live, names)
    sliced = {"probes": inner.probes}
    if over_layers:
        sliced |= {"plan": inner.plan, "states": inner.states}
    adopts: list[bool] = []

    def turn(carry: list[Array], x: Any) -> tuple[list[Array], Any]:
        arrays, mapped, i = x
        here = inner._replace(**mapped, key=_fold(live.key, i))
        values = [
            *fixed,
            *(Value(c, False) for c in carry),
            *(v._replace(array=a) for v, a in zip(xs, arrays, strict=True)),
        ]
        outs, seen = evaluate(settings, closed.jaxpr, closed.consts, values, here, spot)
        adopts[:] = [v.adopts for v in outs]
        outs = [v.array for v in outs]
        return outs[:carried], (outs[carried:], seen)

    iterations = jnp.arange(length, dtype=jnp.int32)
    turns = ([x.array for x in xs], sliced, iterations)
    start = _widened(
        settings,
        lambda carry: turn(carry, jax.tree.map(lambda leaf: leaf[0], turns))[0],
        [jnp.asarray(value.array) for value in init],
    )
    carry, (ys, seen) = lax.scan(
        _keeping_dtypes(turn), start, turns,
        length=length, reverse=eqn.params["reverse"], unroll=eqn.params["unroll"],
    )  # fmt: skip
    if not over_layers:
        seen = merge_seen(seen, settings)
    return [Value(a, w) for a, w in zip([*carry, *ys], adopts, strict=True)], seen


_Turn: TypeAlias = Callable[[list[Array], Any], tuple[list[Array], Any]]


def _widened(
    settings: Settings,
    turn: Callable[[list[Array]], list[Array]],
    carry: list[Array],
) -> list[Array]:
    """Returns the carry in the dtypes that one turn of its loop does not widen."""
    if settings.compute is None:
        return carry
    dtypes = _joined(carry, jax.eval_shape(turn, carry))
    wide = [cast(c, dtype) for c, dtype in zip(carry, dtypes, strict=True)]
    same = all(w.dtype == c.dtype for w, c in zip(wide, carry, strict=True))
    return carry if same else _widened(settings, turn, wide)


def _joined(*alternatives: list[Any]) -> list[jnp.dtype]:
    """Returns for each position the widest float dtype of the alternatives."""
    return [
        widest([Value(x, False) for x in xs]) for xs in zip(*alternatives, strict=True)
    ]


def _keeping_dtypes(turn: _Turn) -> _Turn:
    """Returns one turn of a loop whose carry leaves as it came."""

    def keeping(carry: list[Array], x: Any) -> tuple[list[Array], Any]:
        outs, seen = turn(carry, x)
        return [cast(o, c.dtype) for o, c in zip(outs, carry, strict=True)], seen

    return keeping


def _while(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates a while loop; what is seen in its body is merged over iterations.

    Its test is evaluated as it stands: what is seen there could not be handed out.
    """
    tests, bodies = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    of_test = [value.array for value in ins[:tests]]
    of_body, init = ins[tests : tests + bodies], ins[tests + bodies :]

    def turn(carry: list[Array], i: Array) -> tuple[list[Array], Seen]:
        here = live._replace(key=_fold(live.key, i))
        values = [*of_body, *(Value(c, False) for c in carry)]
        outs, seen = evaluate(settings, body.jaxpr, body.consts, values, here, spot)
        return [v.array for v in outs], seen

    def goes_on(state: tuple[Array, list[Array], Seen]) -> Array:
        dtypes = (aval(var).dtype for var in test.jaxpr.invars)
        arrays = map(cast, [*of_test, *state[1]], dtypes)
        (out,) = internals.eval_jaxpr(test.jaxpr, test.consts, *arrays)
        return out

    def advance(state: tuple[Array, list[Array], Seen]) -> Any:
        i, carry, seen = state
        carry, found = _keeping_dtypes(turn)(carry, i)
        stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), seen, found)
        return i + 1, carry, merge_seen(stacked, settings)

    first = jnp.int32(0)
    start = [jnp.asarray(value.array) for value in init]
    start = _widened(settings, lambda carry: turn(carry, first)[0], start)
    seen = _nothing_of(jax.eval_shape(turn, start, first)[1])
    _, carry, seen = lax.while_loop(goes_on, advance, (first, start, seen))
    return [Value(c, False) for c in carry], seen


def _cond(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates a conditional; a branch that is not taken has seen nothing."""
    index, operands = ins[0], ins[1:]
    arrays = [value.array for value in operands]

    def branch(i: int, arrays: list[Array]) -> tuple[list[Array], Seen]:
        closed = eqn.params["branches"][i]
        values = [v._replace(array=a) for v, a in zip(operands, arrays, strict=True)]
        here = spot._replace(position=(*spot.position, i))
        outs, seen = evaluate(settings, closed.jaxpr, closed.consts, values, live, here)
        return [v.array for v in outs], seen

    indices = range(len(eqn.params["branches"]))
    ahead = [jax.eval_shape(functools.partial(branch, i), arrays) for i in indices]
    dtypes = _joined(*(outs for outs, _ in ahead))
    nothing = _nothing_of(functools.reduce(operator.or_, (seen for _, seen in ahead)))

    def full(i: int, arrays: list[Array]) -> tuple[list[Array], Seen]:
        outs, seen = branch(i, arrays)
        outs = [cast(out, dtype) for out, dtype in zip(outs, dtypes, strict=True)]
        return outs, nothing | seen

    branches = [functools.partial(full, i) for i in indices]
    outs, seen = lax.switch(index.array, branches, arrays)
    return [Value(out, False) for out in outs], seen


def _remat(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates a rematerialised block; the recomputation rounds alike."""
    adopts: list[bool] = []

    @functools.partial(
        jax.checkpoint,
        prevent_cse=eqn.params["prevent_cse"],
        policy=eqn.params["policy"],
    )
    def block(arrays: list[Array], live: Live) -> tuple[list[Array], Seen]:
        values = [v._replace(array=a) for v, a in zip(ins, arrays, strict=True)]
        outs, seen = evaluate(settings, eqn.params["jaxpr"], (), values, live, spot)
        adopts[:] = [v.adopts for v in outs]
        return [v.array for v in outs], seen

    inner = _only(live, _names(settings, spot.position))
    outs, seen = block([value.array for value in ins], inner)
    return [Value(a, w) for a, w in zip(outs, adopts, strict=True)], seen


def _jit(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates a jitted call in place, under the shardings that it declares."""
    closed = eqn.params["jaxpr"]
    outs, seen = evaluate(settings, closed.jaxpr, closed.consts, ins, live, spot)
    arrays = internals.keep_sharding(eqn, [v.array for v in outs])
    return [v._replace(array=a) for v, a in zip(outs, arrays, strict=True)], seen


def _custom(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates a function with its own derivative as it stands, unless opened."""
    if settings.survey.open_custom and _inside(settings, spot.position):
        (closed,) = (p for p in eqn.params.values()
                     if isinstance(p, internals.ClosedJaxpr))  # fmt: skip
        return evaluate(settings, closed.jaxpr, closed.consts, ins, live, spot)
    dtypes = [aval(atom).dtype for atom in eqn.invars]
    arrays = [cast(v.array, dtype) for v, dtype in zip(ins, dtypes, strict=True)]
    outs = internals.bind(eqn, *arrays)
    if settings.compute:
        outs = [cast(out, widest(ins)) for out in outs]
    return [Value(out, all(v.adopts for v in ins)) for out in outs], {}


def _shard_map(
    settings: Settings, eqn: Eqn, ins: list[Value], live: Live, spot: Spot
) -> _Result:
    """Evaluates a shard_map; scales take amax over its mesh axes, statistics merge."""
    axes = internals.shard_axes(eqn)
    names = _names(settings, spot.position)
    inner = _only(live, names)
    here = spot._replace(axis_names=(*spot.axis_names, *axes))
    shards, everywhere = PartitionSpec(axes), PartitionSpec()

    def body(arrays: list[Array], probes: Any, rest: Live) -> tuple[list[Array], Seen]:
        values = [v._replace(array=a) for v, a in zip(ins, arrays, strict=True)]
        own = jax.tree.map(lambda p: p[0], probes)
        outs, seen = evaluate(
            settings, eqn.params["jaxpr"], (), values, rest._replace(probes=own), here
        )
        seen = jax.tree.map(lambda s: internals.vary_over(s[None], axes), seen)
        return [v.array for v in outs], seen

    mapped = internals.shard_map(
        eqn,
        body,
        (list(eqn.params["in_specs"]), shards, everywhere),
        (list(eqn.params["out_specs"]), shards),
    )
    outs, seen = mapped(
        [value.array for value in ins], inner.probes, inner._replace(probes={})
    )
    return [Value(out, False) for out in outs], merge_seen(seen, settings)


def merge_seen(seen: Seen, settings: Settings) -> Seen:
    """Returns what was seen, merged over the leading axis."""
    return {
        name: {
            role: merge_observed(observed, settings.watching[name].fields)
            for role, observed in roles.items()
        }
        for name, roles in seen.items()
    }


def merge_observed(observed: Observed, fields: tuple[str, ...]) -> Observed:
    """Returns one observation merged over its leading axis."""
    stats, amax = observed
    if stats is not None:
        stats = pack(merge_axis(unpack(stats, fields), 0), fields)
    return Observed(stats, None if amax is None else amax.max(0))


def _nothing_of(seen: Seen) -> Seen:
    """Returns zeros, which is what is seen of no elements, in the given shapes."""
    return jax.tree.map(jnp.zeros_like, seen)


def _only(live: Live, names: Sequence[str]) -> Live:
    """Returns what concerns the named contractions."""

    def pick(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tree[name] for name in names}

    return live._replace(
        plan=pick(live.plan), states=pick(live.states), probes=pick(live.probes)
    )


def _fold(key: Array | None, i: Array) -> Array | None:
    return None if key is None else jax.random.fold_in(key, i)


_Handler: TypeAlias = Callable[[Settings, Eqn, list[Value], Live, Spot], _Result]
_HANDLERS: dict[Any, _Handler] = {
    internals.scan_p: _scan,
    internals.while_p: _while,
    internals.cond_p: _cond,
    internals.remat_p: _remat,
    internals.jit_p: _jit,
    internals.custom_jvp_call_p: _custom,
    internals.custom_vjp_call_p: _custom,
    internals.shard_map_p: _shard_map,
}
