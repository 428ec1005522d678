"""Contract tests for schedules, quantisers and scaling recipes of one's own.

Each `check_...` raises an AssertionError with a sentence that says which promise is
broken; in a test of your own package one line is enough:

    def test_contract():
        check_schedule(my_schedule(low=4, high=8))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adaprec_jax import formats, plan as plans, stats as statistics
from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.scaling import Recipe
from adaprec_jax.schedules import Schedule

_STEPS = 12
_FAR = (1e-9, 1e9)  # beyond whatever a schedule compares a loss with


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
    """Checks what every schedule promises, with made-up statistics.

    Every plan covers the table and is finite; plan and state keep their structure,
    shapes and dtypes; the jitted, scanned and mapped updates equal the eager one to
    the bit; statistics of a step that was not finite change no decision.

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
    run = [_made_up(contractions, seed) for seed in range(_STEPS)]
    update = jax.jit(schedule.update)
    decided, state = [], first
    for step, seen in enumerate(run):
        plan, after = update(jnp.int32(step), seen, state)
        try:
            plans.check(plan, contractions)
        except ValueError as error:
            raise AssertionError(f"At step {step}: {error}") from error
        _alike(f"the state after step {step}", state, after)
        _alike(f"the plan of step {step}", decided[0] if decided else plan, plan)
        decided.append(plan)
        state = after
    eager, _ = schedule.update(jnp.int32(0), run[0], first)
    _equal("The eager update differs from the jitted one", eager, decided[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *run)

    def turn(state: Any, x: tuple[Array, Stats]) -> tuple[Any, Any]:
        plan, state = schedule.update(*x, state)
        return state, plan

    _, scanned = jax.lax.scan(
        turn,
        first,
        (jnp.arange(_STEPS, dtype=jnp.int32), stacked),
    )
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *decided)
    _equal("The scanned updates differ from those step by step", scanned, together)
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), first)
    mapped, _ = jax.vmap(schedule.update, in_axes=(None, None, 0), axis_size=2)(
        jnp.int32(0), run[0], pair
    )
    mapped = jax.tree.map(lambda leaf: leaf[0], mapped)
    _equal("The mapped update differs from one alone", mapped, decided[0])
    unknown = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, jnp.nan if leaf.dtype == "float32" else 0),
        run[0],
    )
    far = [
        seen._replace(loss=jnp.float32(x), gradient_norm=jnp.float32(x))
        for seen, x in zip(run, _FAR, strict=False)
    ]
    kept, *others = (
        update(jnp.int32(_STEPS), seen._replace(finite=jnp.bool_(False)), state)
        for seen in (unknown, *far)
    )
    for other in others:
        _equal(
            "Statistics of a step that was not finite change a decision", kept, other
        )


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
    leaves the result not finite; the jitted call equals the eager one; the update keeps
    the state's structure.

    Args:
        recipe: The recipe.
        key: For stochastic rounding.

    Raises:
        AssertionError: A promise is broken; says which.

    >>> from adaprec_jax import scaling
    >>> check_recipe(scaling.current())
    """
    x = jax.random.normal(jax.random.key(0), (64, 8))
    state = recipe.init(())
    for name, fmt in (
        ("int8", formats.integer(8)),
        ("float8_e5m2", formats.floating(5, 2)),
    ):

        def restored(x: Array, state: Any, fmt: formats.Format = fmt) -> Array:
            values, scale = recipe.round(x, fmt, state, axes=(0, 1), key=key)
            return values * scale

        _equal(
            f"In {name} the jitted call differs from the eager one",
            jax.jit(restored)(x, state),
            restored(x, state),
        )
        for what, factor in (("zeros", 0.0), ("tiny numbers", 1e-30)):
            found = restored(factor * x, state)
            _hold(f"{what} gave NaN in {name}", not bool(jnp.isnan(found).any()))
        _hold("zeros did not stay zeros", not bool(restored(0 * x, state).any()))
        # An integer format that is not scaled saturates infinities, as the dtype does.
        for bad in (jnp.nan, jnp.inf) if name != "int8" else (jnp.nan,):
            found = restored(x.at[3, 3].set(bad), state)
            _hold(f"{bad} was hidden in {name}", not bool(jnp.isfinite(found).all()))
    _alike("the state", state, recipe.update(state, jnp.float32(3)))


def _made_up(table: Table, seed: int) -> Stats:
    """Returns random statistics of one step."""
    random = np.random.default_rng(seed)
    known = jax.tree.map(
        lambda leaf: jnp.asarray(random.uniform(0, 1, leaf.shape), leaf.dtype),
        statistics.empty(table),
    )
    # Over many decades, so that whatever the schedule compares them with is passed.
    loss, norm = jnp.asarray(10.0 ** random.uniform(-6, 6, 2), jnp.float32)
    return known._replace(loss=loss, gradient_norm=norm, finite=jnp.bool_(True))


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
