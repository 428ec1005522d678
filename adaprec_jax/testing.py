"""Contract tests for schedules, quantisers and scaling recipes of one's own.

Each `check_...` raises an AssertionError with a sentence that says which promise is
broken; in a test of your own package one line is enough:

    def test_contract():
        check_schedule(my_schedule(low=4, high=8))
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adaprec_jax import formats, plan as plans, stats as statistics
from adaprec_jax.contractions.statistics import QUANTITIES, Stats, Watch
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.contractions.weights import Weight, Weights
from adaprec_jax.precision import Plan
from adaprec_jax.scaling import Recipe, Use
from adaprec_jax.schedules import Schedule, observed

_STEPS = 12
_FAR = (1e-9, 1e9)  # beyond whatever a schedule compares a loss with
_EXTREMES = (0.0, 1.0, 3e38)


def table() -> Table:
    """Returns what a schedule is tried on: a layer, a product, a stack of layers."""

    def contraction(name: str, axes: tuple[int, ...], right: str) -> Contraction:
        return Contraction(
            name=name,
            primitive="dot_general",
            einsum="ab,bc->ac",
            shapes=((2, 3), (3, 4), (2, 4)),
            roles=("activation", right),
            axes=axes,
            macs=24,
            executions=1,
            differentiated=True,
            parameter=f"{name}/kernel" if right == "weight" else "",
            parameter_shape=(*axes, 3, 4) if right == "weight" else (),
        )

    return Table(
        (
            contraction("Dense_0", (), "weight"),
            contraction("Attention", (), "activation"),
            contraction("Block/Dense_0", (3,), "weight"),
        ),
        (),
    )


def check_schedule(schedule: Schedule, tried_on: Table | None = None) -> None:
    """Checks what every schedule promises, with made-up statistics and weights.

    Every plan covers the table and is finite, also with statistics of zeros, ones and
    huge numbers; plan and state keep their structure, shapes and dtypes; the jitted,
    scanned and mapped updates equal the eager one to the bit; statistics that are NaN,
    or of a step that was not finite, change no decision.

    Args:
        schedule: The schedule.
        tried_on: The contractions it decides about; `table()` if None.

    Raises:
        AssertionError: A promise is broken; says which.

    >>> from adaprec_jax import schedules
    >>> check_schedule(schedules.constant(plans.integers(4, 8)))
    """
    contractions = table() if tried_on is None else tried_on
    first = schedule.init(contractions)
    run = [_made_up(schedule, contractions, seed) for seed in range(_STEPS)]
    weights = [_made_up_weights(contractions, seed) for seed in range(_STEPS)]

    def turn(step: Array, seen: Stats, weights: Weights, state: Any) -> Any:
        plan, state = schedule.update(step, seen, state)
        state = observed(schedule, step, weights, state)
        return plan, state, schedule.signals(state)

    jitted = jax.jit(turn)
    decided, state = [], first
    for step, (seen, weight) in enumerate(zip(run, weights, strict=True)):
        plan, after, signals = jitted(jnp.int32(step), seen, weight, state)
        _usable(plan, contractions, f"At step {step}")
        _alike(f"the state after step {step}", state, after)
        _alike(f"the plan of step {step}", decided[0] if decided else plan, plan)
        for name, by_path in signals.items():
            _fits(name, by_path, contractions)
        decided.append(plan)
        state = after
    eager, *_ = turn(jnp.int32(0), run[0], weights[0], first)
    _equal("The eager update differs from the jitted one", eager, decided[0])
    steps = jnp.arange(_STEPS, dtype=jnp.int32)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *run)
    stacked_weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)

    def scan_turn(state: Any, x: tuple[Array, Stats, Weights]) -> tuple[Any, Any]:
        plan, state, _ = turn(*x, state)
        return state, plan

    _, scanned = jax.lax.scan(scan_turn, first, (steps, stacked, stacked_weights))
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *decided)
    _equal("The scanned updates differ from those step by step", scanned, together)
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), first)
    mapped, *_ = jax.vmap(turn, in_axes=(None, None, None, 0), axis_size=2)(
        jnp.int32(0), run[0], weights[0], pair
    )
    mapped = jax.tree.map(lambda leaf: leaf[0], mapped)
    _equal("The mapped update differs from one alone", mapped, decided[0])
    _check_unknown(schedule, run, state)
    for value in _EXTREMES:
        _check_extreme(schedule, contractions, value)


def check_quantizer(
    quantize: Callable[[Array], Array], *, idempotent: bool = True
) -> None:
    """Checks what rounding promises, on normal numbers of many magnitudes.

    Shape and dtype stay; NaN stays NaN and nothing else becomes one; the result is
    monotone, and rounding it again changes nothing; eager, jitted and mapped calls
    agree to the bit; the gradient is finite.

    Args:
        quantize: `x -> rounded`, float32, without a scale that depends on `x`.
        idempotent: False for rounding with noise.

    Raises:
        AssertionError: A promise is broken; says which.

    >>> from adaprec_jax import quantize
    >>> check_quantizer(lambda x: quantize(x, formats.get("int4")))
    """
    noise = np.random.default_rng(0).standard_normal(512)
    x = jnp.asarray(np.sort(noise * 2.0 ** np.arange(512).clip(0, 8)), jnp.float32)
    rounded = quantize(x)
    _alike("the rounded array", x, rounded)
    _hold("a number became NaN or infinite", bool(jnp.isfinite(rounded).all()))
    nan = quantize(jnp.full(3, jnp.nan, jnp.float32))
    _hold("NaN did not stay NaN", bool(jnp.isnan(nan).all()))
    _equal("The jitted call differs from the eager one", jax.jit(quantize)(x), rounded)
    if idempotent:
        _hold("rounding is not monotone", bool((jnp.diff(rounded) >= 0).all()))
        _equal("Rounding again changes the result", quantize(rounded), rounded)
        mapped = jax.vmap(quantize)(x.reshape(2, -1)).reshape(-1)
        _equal("The mapped call differs from the whole one", mapped, rounded)
    gradient = jax.grad(lambda x: jnp.sum(quantize(x)))(x)
    _hold("the gradient is not finite", bool(jnp.isfinite(gradient).all()))


def check_recipe(recipe: Recipe, key: Array | None = None) -> None:
    """Checks what every scaling recipe promises, in integer and float formats.

    Zeros stay zeros; neither they nor tiny numbers give NaN; a NaN or an infinity
    leaves the result not finite; float32 is left as it is; values and scale have the
    shapes and dtypes that `Recipe` says; the jitted call equals the eager one; the
    update keeps the state's structure. A recipe that rounds for each product is tried
    on some of them, with one or more summed axes.

    Args:
        recipe: The recipe.
        key: For stochastic rounding.

    Raises:
        AssertionError: A promise is broken; says which.

    >>> from adaprec_jax import scaling
    >>> check_recipe(scaling.current())
    >>> check_recipe(scaling.blockwise(16))
    """
    state = recipe.init(())
    x = jax.random.normal(jax.random.key(0), (64, 8))
    uses = [(x, None)]
    if recipe.per_product:
        parts = x.reshape(4, 16, 4, 2)[:, :5]  # an odd number along a summed axis
        uses = [
            (x, Use("forward", (1,))),
            (x[0], Use("dgrad", (0,))),
            (parts, Use("wgrad", (0, 1, 3))),
        ]
    fmt = formats.integer(8)
    for tensor, use in uses:
        _check_rounding(_rounding(recipe, tensor.ndim, key, use), tensor, state, use)
    once = _rounding(recipe, x.ndim, key, uses[0][1])
    _equal(
        "The jitted call differs from the eager one",
        jax.jit(once)(x, fmt, state),
        once(x, fmt, state),
    )
    _alike("the state", state, recipe.update(state, jnp.float32(3)))


def _rounding(
    recipe: Recipe, rank: int, key: Array | None, use: Use | None
) -> Callable[..., tuple[Array, Array]]:
    """Returns the rounding of tensors of a rank, for a product if it asks for it."""
    settings = {} if use is None else {"use": use}

    def rounding(x: Array, fmt: formats.Format, state: Any) -> tuple[Array, Array]:
        axes = tuple(range(rank))
        return recipe.round(x, fmt, state, axes=axes, key=key, **settings)

    return rounding


def _check_rounding(
    rounding: Callable[..., tuple[Array, Array]], x: Array, state: Any, use: Use | None
) -> None:
    """Checks what a recipe promises of the tensors that it rounds."""
    jitted = jax.jit(rounding)
    what_for = f" for {use}" if use else ""
    place = tuple(size // 2 for size in x.shape)
    for name, fmt in (
        ("int8", formats.integer(8)),
        ("float8_e5m2", formats.floating(5, 2)),
    ):

        def restored(x: Array, fmt: formats.Format = fmt) -> Array:
            values, scale = jitted(x, fmt, state)
            return values * scale

        where = f"in {name}{what_for}"
        values, scale = jitted(x, fmt, state)
        _alike(f"the rounded tensor {where}", x, values)
        _check_scale(scale, x, where, within=use is not None)
        for what, factor in (("zeros", 0.0), ("tiny numbers", 1e-30)):
            nan = bool(jnp.isnan(restored(factor * x)).any())
            _hold(f"{what} gave NaN {where}", not nan)
        still = not bool(restored(0 * x).any())
        _hold(f"zeros did not stay zeros {where}", still)
        # An integer format that is not scaled saturates infinities, as the dtype does.
        for bad in (jnp.nan, jnp.inf) if name != "int8" else (jnp.nan,):
            found = restored(x.at[place].set(bad))
            _hold(f"{bad} was hidden {where}", not bool(jnp.isfinite(found).all()))
    for y in (x, 1e30 * x, x.at[place].set(jnp.inf)):
        values, scale = jitted(y, formats.get("float32"), state)
        _equal(f"float32 is changed{what_for}", values, y)
        _hold(f"float32 is scaled{what_for}", bool((scale == 1).all()))


def _check_scale(scale: Array, x: Array, where: str, *, within: bool) -> None:
    """Checks the dtype and shape of a scale, which may differ `within` the tensor."""
    sizes = [(1, size) if within else (1,) for size in x.shape]
    fits = scale.ndim == x.ndim and all(
        size in allowed for size, allowed in zip(scale.shape, sizes, strict=True)
    )
    _hold(
        f"the scale {where} must be float32 of "
        f"{'a shape that broadcasts to' if within else 'size 1 along'} {x.shape}, got "
        f"{scale.dtype}{scale.shape}",
        fits and scale.dtype == "float32",
    )


def _check_unknown(schedule: Schedule, run: Sequence[Stats], state: Any) -> None:
    """Checks that what is not known, or not finite, changes no decision."""
    update, last = jax.jit(schedule.update), jnp.int32(_STEPS)
    unknown = _filled(run[0], jnp.nan)
    far = [
        seen._replace(loss=jnp.float32(x), gradient_norm=jnp.float32(x))
        for seen, x in zip(run, _FAR, strict=False)
    ]
    kept, *others = (
        update(last, seen._replace(finite=jnp.bool_(False)), state)
        for seen in (unknown, *far)
    )
    for other in others:
        _equal(
            "Statistics of a step that was not finite change a decision", kept, other
        )
    _equal("NaN changes a decision", kept[0], update(last, unknown, state)[0])


def _check_extreme(schedule: Schedule, table: Table, value: float) -> None:
    """Checks that statistics and weights of one number everywhere give plans."""
    update, state = jax.jit(schedule.update), schedule.init(table)
    look = jax.jit(functools.partial(observed, schedule))
    fill = functools.partial(jnp.full_like, fill_value=value)
    weights = jax.tree.map(fill, _made_up_weights(table, 0))
    for step in range(_STEPS):
        seen = _filled(_made_up(schedule, table, 0), value)
        plan, state = update(jnp.int32(step), seen, state)
        state = look(jnp.int32(step), weights, state)
        _usable(plan, table, f"With statistics that are all {value}")


def _usable(plan: Plan, table: Table, when: str) -> None:
    """Checks that a plan covers the table and is finite."""
    try:
        plans.check(plan, table)
    except ValueError as error:
        raise AssertionError(f"{when}: {error}") from error


def _made_up(schedule: Schedule, table: Table, seed: int) -> Stats:
    """Returns random statistics of one step, of the formats asked about as well."""
    random = np.random.default_rng(seed)
    watch = Watch(tuple(QUANTITIES), what_if=schedule.reads.what_if)
    known = jax.tree.map(
        lambda leaf: jnp.asarray(random.uniform(0, 1, leaf.shape), leaf.dtype),
        statistics.empty(table, watch),
    )
    # Over many decades, so that whatever the schedule compares them with is passed.
    loss, norm = jnp.asarray(10.0 ** random.uniform(-6, 6, 2), jnp.float32)
    return known._replace(loss=loss, gradient_norm=norm, finite=jnp.bool_(True))


def _made_up_weights(table: Table, seed: int) -> Weights:
    """Returns random weights of the contractions that have one, with their changes."""
    random = np.random.default_rng(seed)

    def draw(c: Contraction) -> Array:
        return jnp.asarray(random.normal(size=(*c.axes, *c.shapes[1])), jnp.float32)

    return {
        c.name: Weight(draw(c), draw(c), draw(c))
        for c in table.contractions
        if c.parameter
    }


def _filled(stats: Stats, value: float) -> Stats:
    """Returns statistics whose every number is `value`, of a step that was finite."""
    filled = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, value if leaf.dtype == "float32" else 0), stats
    )
    return filled._replace(finite=jnp.bool_(True))


def _fits(signal: str, by_path: Mapping[str, Array], table: Table) -> None:
    """Checks that a signal is about contractions of the table, over their axes."""
    axes = {c.name: c.axes for c in table.contractions}
    for path, value in by_path.items():
        _hold(f"the signal {signal!r} is about {path!r}, which is no contraction",
              path in axes)  # fmt: skip
        _hold(f"the signal {signal!r} of {path!r} must be float32{axes[path]}, got "
              f"{value.dtype}{value.shape}",
              (value.dtype, value.shape) == ("float32", axes[path]))  # fmt: skip


def _alike(what: str, before: Any, after: Any) -> None:
    """Checks that two trees have the same structure, shapes and dtypes."""
    structures = jax.tree.structure(before), jax.tree.structure(after)
    _hold(f"{what} has another structure than before", structures[0] == structures[1])
    for (path, a), b in zip(
        jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        a, b = jnp.asarray(a), jnp.asarray(b)
        _hold(
            f"{what} has {b.dtype}{b.shape} at {jax.tree_util.keystr(path)!r}, "
            f"{a.dtype}{a.shape} before",
            (a.shape, a.dtype) == (b.shape, b.dtype),
        )


def _equal(what: str, one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        for place in np.argwhere((a != b) & ((a == a) | (b == b)))[:1]:
            values = f"{a[tuple(place)]} and {b[tuple(place)]}"
            _hold(f"{what}: {values} at {place.tolist()}", condition=None)


def _hold(what: str, condition: object) -> None:
    if not condition:
        raise AssertionError(f"{what[0].upper()}{what[1:]}.")
