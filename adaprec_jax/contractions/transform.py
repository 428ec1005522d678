"""The function transforms: a table, a rounded function, and its gradients."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key

from adaprec_jax.contractions import jax_internals as internals, names
from adaprec_jax.contractions.compute_dtype import Compute
from adaprec_jax.contractions.fitting import fit
from adaprec_jax.contractions.kernels import Kernels
from adaprec_jax.contractions.observe import Asked, Observed, Probe, Watching
from adaprec_jax.contractions.products import States, Stored
from adaprec_jax.contractions.statistics import (
    ROLES,
    Stats,
    Tensors,
    Watch,
    fields_of,
    unpack,
)
from adaprec_jax.contractions.survey import Source, Survey, survey
from adaprec_jax.contractions.table import Contraction, NotReached, Site, Table
from adaprec_jax.contractions.walk import (
    Live,
    Seen,
    Settings,
    Spot,
    Value,
    evaluate,
    merge_observed,
)
from adaprec_jax.precision import Plan
from adaprec_jax.scaling import Recipes, current

RecipeStates: TypeAlias = dict[str, States]
"""States of the scaling recipes by the name of the contraction, then by role."""
RecipesFor: TypeAlias = Recipes | Callable[[Contraction], Recipes]


class Options(NamedTuple):
    """What is static about a transformed function.

    Attributes:
        recipes: Scaling recipes, for all contractions or by contraction.
        compute_dtype: The dtype of what lies between contractions; None leaves it.
        open_custom: Whether contractions inside a user's custom_vjp or custom_jvp are
            rounded and differentiated, instead of keeping their own rule.
        axis_names: Mesh axes that are manual where the function is called, because
            the caller is itself inside a shard_map: scales take amax over them.
        untouched: Which contractions are left as they are. A float32 entry gives the
            same numbers, but pays for rounding; the table lists what is left.
        stored: In which format the activations that a contraction needs in the backward
            pass are kept for it; what else a function keeps (the argument of a
            nonlinearity) is not reached. None keeps them as they are. It is emulated:
            the numbers are those of the narrow format, the memory is not.
        kernels: In which dtypes products are formed, by contraction. They must hold
            what the plan rounds to; `adaprec_jax.native` finds them.
    """

    recipes: RecipesFor = Recipes(current(), current(), current())
    compute_dtype: Compute | None = None
    open_custom: bool = False
    axis_names: tuple[str, ...] = ()
    untouched: Callable[[Contraction], bool] = lambda contraction: False
    stored: Stored | None = None
    kernels: Mapping[str, Kernels] = {}


def contraction_table(
    fn: Callable[..., Any], *args: Any, options: Options = Options()
) -> Table:
    """Returns every contraction of `fn(*args)`, and what a plan does not reach.

    Args:
        fn: Any function; its first argument holds the parameters.
        *args: Arrays, or `jax.ShapeDtypeStruct` in their place.
        options: `open_custom` and `untouched` decide what is reached.

    >>> table = contraction_table(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 4))},
    ...                           jnp.ones((2, 3)))
    >>> table.names, table.contractions[0].macs
    (('w',), 24)
    """
    closed, _ = internals.trace(fn, *args)
    return _table(_survey(closed, args, options))


def _survey(
    closed: internals.ClosedJaxpr, args: tuple[Any, ...], options: Options
) -> Survey:
    sources: list[Source] = list(names.parameter_paths(args[0])) if args else []
    sources += [None] * (len(closed.jaxpr.invars) - len(sources))
    found = survey(closed, sources, open_custom=options.open_custom)
    for position, site in list(found.sites.items()):
        c = site.contraction
        if options.untouched(c):
            del found.sites[position]
            what = f"{c.primitive} {c.einsum}"
            found.not_reached.append(NotReached(c.name, what, "left untouched"))
    return found


def _table(found: Survey) -> Table:
    contractions = tuple(site.contraction for site in found.sites.values())
    return Table(contractions, tuple(found.not_reached))


def with_precision(
    fn: Callable[..., Any], options: Options = Options()
) -> Callable[..., Any]:
    """Returns `fn` with the operands of every contraction rounded as a plan says.

    The result is called `rounded(plan, *args, key=None, states=None)`: `plan` maps the
    names of `contraction_table(fn, *args)` to entries, `key` is needed by stochastic
    rounding, `states` by stateful scaling recipes (`init_recipes`). It composes with
    jit, grad, vmap, remat, scan and shard_map; it has no forward-mode derivative.

    Raises:
        ValueError: (when called) The plan misses a contraction, names one that is not
            there, or has leaves that are not finite or do not broadcast to its axes;
            a recipe asks for `key` or `states` and gets none; `compute_dtype` does
            not know a primitive or a class.

    >>> from adaprec_jax import formats
    >>> from adaprec_jax.precision import SharedPrecision
    >>> int4 = formats.get("int4")
    >>> plan = {"w": SharedPrecision(int4, formats.get("float32"), int4)}
    >>> fn = with_precision(lambda p, x: x @ p["w"])
    >>> fn(plan, {"w": jnp.eye(2)}, jnp.array([[7.0, 0.4]]))
    Array([[7., 0.]], dtype=float32)
    """

    def rounded(
        plan: Plan,
        *args: Any,
        key: Key[Array, ""] | None = None,
        states: RecipeStates | None = None,
    ) -> Any:
        traced = _trace(fn, args, options, Watch())
        extras = _Extras(key, states, Asked(None, {}))
        out, _ = _run(traced, options, plan, args, extras, None)
        return out

    return rounded


def init_recipes(table: Table, recipes: RecipesFor) -> RecipeStates:
    """Returns the first states of the scaling recipes of every contraction."""
    states = {}
    for c in table.contractions:
        chosen = recipes_for(recipes, c)
        states[c.name] = States(*(recipe.init(c.axes) for recipe in chosen))
    return states


def update_recipes(
    recipes: RecipesFor, table: Table, states: RecipeStates, stats: Stats
) -> RecipeStates:
    """Returns the states of the scaling recipes after one step.

    A pure function of the largest magnitudes seen (`stats.amax`), so the old states
    can be kept where a step is skipped, and micro-batches merge by maximum before.
    """
    new = {}
    for c in table.contractions:
        seen = stats.amax.get(c.name, {})
        new[c.name] = States(
            *(
                recipe.update(state, seen[role]) if role in seen else state
                for role, recipe, state in zip(
                    ROLES, recipes_for(recipes, c), states[c.name], strict=True
                )
            )
        )
    return new


def value_and_grad(
    loss_fn: Callable[..., tuple[Array, Any]],
    options: Options = Options(),
    watch: Watch = Watch(),
) -> Callable[..., tuple[tuple[Array, Any], Any, Stats]]:
    """Returns a function for loss, gradients and statistics under a plan.

    Args:
        loss_fn: `loss_fn(params, *args) -> (loss, aux)`.
        options: What is static.
        watch: Which statistics are gathered.

    Returns:
        `f(params, *args, plan, key=None, states=None, collect=None)`, which returns
        `((loss, aux), gradients, stats)`. Gradients are with respect to `params` and
        not rounded. `collect` (a traced boolean) says whether statistics are gathered
        this time; without it they always are.

    Raises:
        ValueError: (when called) As in `with_precision`; a quantity or role of `watch`
            is unknown; a contraction is in the body of a `while` loop, which has no
            gradient.

    >>> from adaprec_jax import formats
    >>> from adaprec_jax.precision import SharedPrecision
    >>> int4 = formats.get("int4")
    >>> loss = lambda p, x: (jnp.sum(x @ p["w"]), None)
    >>> step = value_and_grad(loss, watch=Watch(("amax",)))
    >>> _, grads, stats = step({"w": jnp.eye(2)}, jnp.array([[7.0, 0.4]]),
    ...                        plan={"w": SharedPrecision(int4, int4, int4)})
    >>> grads["w"]
    Array([[7., 7.],
           [0., 0.]], dtype=float32)
    >>> stats.tensors["w"]["activation"].amax
    Array(7., dtype=float32)
    """

    def evaluate_loss(
        params: Any,
        *args: Any,
        plan: Plan,
        key: Key[Array, ""] | None = None,
        states: RecipeStates | None = None,
        collect: Bool[Array, ""] | None = None,
    ) -> tuple[tuple[Array, Any], Any, Stats]:
        traced = _trace(loss_fn, (params, *args), options, watch)
        _check_loss(traced.out_shape)
        extras = _Extras(key, states, Asked(collect, dict(watch.what_if)))

        def loss_of(params: Any, probes: dict[str, Probe]) -> Any:
            out, seen = _run(traced, options, plan, (params, *args), extras, probes)
            loss, aux = out
            return loss, (aux, seen)

        (loss, (aux, seen)), (gradients, cotangents) = jax.value_and_grad(
            loss_of, argnums=(0, 1), has_aux=True
        )(params, _zero_probes(traced, watch))
        stats = _stats(traced, watch, loss, gradients, seen, cotangents)
        return (loss, aux), gradients, stats

    return evaluate_loss


def _check_loss(returned: Any) -> None:
    """Refuses a loss function that does not return a number and something beside it."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{x.shape}", returned)
        raise TypeError(
            "loss_fn must return (loss, aux), such as (loss, None); it returned "
            f"{shapes}."
        )
    loss = returned[0]
    if not hasattr(loss, "shape") or loss.shape != ():
        raise TypeError(
            "The loss that loss_fn returns must be one number, got shape "
            f"{getattr(loss, 'shape', None)}."
        )


class _Traced(NamedTuple):
    closed: internals.ClosedJaxpr
    out_shape: Any
    found: Survey
    sites: dict[str, Site]
    recipes: dict[str, Recipes]
    watching: dict[str, Watching]


class _Extras(NamedTuple):
    key: Array | None
    states: RecipeStates | None
    asked: Asked


def _trace(
    fn: Callable[..., Any], args: tuple[Any, ...], options: Options, watch: Watch
) -> _Traced:
    closed, out_shape = internals.trace(fn, *args)
    found = _survey(closed, args, options)
    sites = {site.contraction.name: site for site in found.sites.values()}
    recipes = {n: recipes_for(options.recipes, s.contraction) for n, s in sites.items()}
    if options.compute_dtype is not None and not isinstance(
        options.compute_dtype, Compute
    ):
        raise TypeError(
            "Options.compute_dtype must be a Compute, such as "
            f"Compute(jnp.dtype('bfloat16')), got {options.compute_dtype!r}."
        )
    fields = fields_of(watch.quantities)
    if unknown := [role for role in watch.roles if role not in ROLES]:
        raise ValueError(f"Unknown roles {unknown}; known are {list(ROLES)}.")
    watching = {
        name: Watching(
            fields, watch.roles,
            stateful_roles(options.recipes, sites[name].contraction),
            (),
        )
        for name in sites
    }  # fmt: skip
    return _Traced(closed, out_shape, found, sites, recipes, watching)


def stateful_roles(recipes: RecipesFor, contraction: Contraction) -> tuple[str, ...]:
    """Returns the roles whose scaling recipe has a state, and so needs the amax."""
    chosen = zip(ROLES, recipes_for(recipes, contraction), strict=True)
    return tuple(role for role, recipe in chosen if recipe.init(()) != ())


def recipes_for(recipes: RecipesFor, contraction: Contraction) -> Recipes:
    """Returns the scaling recipes of a contraction.

    Raises:
        TypeError: They are no `Recipes`.
    """
    chosen = recipes(contraction) if callable(recipes) else recipes
    if not isinstance(chosen, Recipes):
        raise TypeError(
            "Options.recipes must be Recipes(activation, weight, gradient), or a "
            f"function from a contraction to them, got {chosen!r:.80}."
        )
    return chosen


def _run(
    traced: _Traced,
    options: Options,
    plan: Plan,
    args: tuple[Any, ...],
    extras: _Extras,
    probes: dict[str, Probe] | None,
) -> tuple[Any, Seen]:
    """Evaluates the traced function under a plan."""
    contractions = [site.contraction for site in traced.sites.values()]
    plan = jax.tree.map(jnp.asarray, fit(plan, contractions))
    states = _fitted_states(extras.states, traced)
    settings = Settings(
        traced.found,
        traced.recipes,
        traced.watching,
        options.compute_dtype,
        options.stored,
        options.kernels,
    )
    if probes is None:
        probes = _zero_probes(traced, Watch())
    live = Live(plan, states, probes, extras.key, extras.asked)
    leaves = jax.tree.leaves(args)
    parameters = len(jax.tree.leaves(args[0])) if args else 0
    values = [Value(jnp.asarray(x), i < parameters) for i, x in enumerate(leaves)]
    outs, seen = evaluate(
        settings, traced.closed.jaxpr, traced.closed.consts, values, live,
        Spot((), options.axis_names),
    )  # fmt: skip
    shapes, tree = jax.tree.flatten(traced.out_shape)
    arrays = [
        jnp.asarray(v.array).astype(s.dtype) for v, s in zip(outs, shapes, strict=True)
    ]
    return jax.tree.unflatten(tree, arrays), seen


def _fitted_states(states: RecipeStates | None, traced: _Traced) -> RecipeStates:
    if states is not None and set(states) == set(traced.sites):
        return states
    stateful = [name for name, w in traced.watching.items() if w.amax_roles]
    if stateful or states:
        raise ValueError(
            f"The scaling recipes of {stateful} have a state; pass "
            "states=init_recipes(table, recipes), with an entry for each of "
            f"{list(traced.sites)}."
        )
    return {name: States((), (), ()) for name in traced.sites}


def _zero_probes(traced: _Traced, watch: Watch) -> dict[str, Probe]:
    """Returns the zeros whose gradients carry the statistics of the cotangents."""
    formats = 1 + len(watch.what_if)
    probes = {}
    for name, site in traced.sites.items():
        watching = traced.watching[name]
        watched = bool(watching.fields) and "gradient" in watching.roles
        shape = (*site.probe_shape, formats, len(watching.fields))
        probes[name] = Probe(
            jnp.zeros(shape, jnp.float32) if watched else None,
            jnp.zeros(site.probe_shape, jnp.float32)
            if "gradient" in watching.amax_roles
            else None,
        )
    return probes


def _stats(
    traced: _Traced,
    watch: Watch,
    loss: Array,
    gradients: Any,
    seen: Seen,
    cotangents: dict[str, Probe],
) -> Stats:
    """Returns the statistics of one evaluation by contraction and role."""
    merged = {
        name: {**roles, "gradient": _merge_slots(traced, name, cotangents[name])}
        for name, roles in seen.items()
    }
    tensors = [_tensors(merged, traced, i) for i in range(1 + len(watch.what_if))]
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
    loss = loss.astype(jnp.float32)
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((loss, gradients))]
    return Stats(
        loss=loss,
        gradient_norm=optax.tree.norm(wide).astype(jnp.float32),
        finite=jnp.all(jnp.stack(finite)),
        tensors=tensors[0],
        what_if=dict(zip(watch.what_if, tensors[1:], strict=True)),
        amax={
            name: {r: o.amax for r, o in roles.items() if o.amax is not None}
            for name, roles in merged.items()
        },
    )


def _merge_slots(traced: _Traced, name: str, probe: Probe) -> Observed:
    """Returns what was seen of a cotangent, merged over time and shards."""
    observed = Observed(*probe)
    axis = 0
    for slot in traced.sites[name].slots:
        if slot.kind == "layer":
            axis += 1
            continue
        observed = Observed(
            *(None if x is None else jnp.moveaxis(x, axis, 0) for x in observed)
        )
        observed = merge_observed(observed, traced.watching[name].fields)
    return observed


def _tensors(
    merged: dict[str, dict[str, Observed]], traced: _Traced, index: int
) -> Tensors:
    """Returns the statistics for one of the formats: in force, or asked about."""
    return {
        name: {
            role: unpack(observed.stats[..., index, :], traced.watching[name].fields)
            for role, observed in roles.items()
            if observed.stats is not None
        }
        for name, roles in merged.items()
    }
