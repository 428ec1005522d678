"""Ratios of what a step measured, and their merging over micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats, scaling, stats
from adaprec_jax.contractions import (
    Options,
    contraction_table,
    init_recipes,
    value_and_grad,
)
from adaprec_jax.contractions.statistics import QUANTITIES, TensorStats, Watch
from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.plan import integers, uniform
from adaprec_jax.scaling import Recipes

X = np.array([0.0, 0.0, 0.25, -0.25, 3.0, -40.0], np.float32)
ROUNDED = np.array([0.0, 0.0, 0.0, 0.0, 3.0, -32.0], np.float32)  # saturates at 32


def sums(x, rounded) -> TensorStats:
    """The sums over a tensor, in float64 NumPy."""
    x, rounded = np.float64(x), np.float64(rounded)
    fields = TensorStats(
        elements=x.size,
        amax=np.abs(x).max(),
        sum_abs=np.abs(x).sum(),
        sum_squares=(x**2).sum(),
        zeros=(x == 0).sum(),
        underflows=((x != 0) & (rounded == 0)).sum(),
        saturations=(np.abs(x) > 32).sum(),
        noise_squares=((x - rounded) ** 2).sum(),
        sum_abs_rounded=np.abs(rounded).sum(),
    )
    return TensorStats(*(jnp.float32(field) for field in fields))


EXPECTED = {
    "mean_abs": np.abs(X).mean(),
    "rms": np.sqrt((X**2).mean()),
    "zero_fraction": 2 / 6,
    "underflow_fraction": 2 / 4,
    "saturation_fraction": 1 / 6,
    "sqnr_db": 10 * np.log10((X**2).sum() / (0.125 + 64)),
    "mean_abs_rounded": 35 / 6,
}
each_ratio = pytest.mark.parametrize("name", EXPECTED)


@each_ratio
def test_a_ratio_is_that_of_the_tensor(name):
    np.testing.assert_allclose(
        getattr(stats, name)(sums(X, ROUNDED)), EXPECTED[name], rtol=1e-6
    )


@each_ratio
def test_a_ratio_needs_what_the_watched_quantity_gathers_and_says_so(name):
    full = sums(X, ROUNDED)
    gathered = TensorStats(**{f: getattr(full, f) for f in QUANTITIES[name]})
    assert getattr(stats, name)(gathered) == getattr(stats, name)(full)
    with pytest.raises(ValueError, match=f"put '{name}' among the quantities"):
        getattr(stats, name)(TensorStats(amax=full.amax))


@each_ratio
def test_a_ratio_of_nothing_is_not_a_number(name):
    zero = jnp.zeros(3)
    assert jnp.isnan(
        getattr(stats, name)(TensorStats(*([zero] * len(TensorStats._fields))))
    ).all()


TABLE = Table(
    (
        Contraction(
            "Block",
            "dot_general",
            "ab,bc->ac",
            ((2, 3), (3, 4), (2, 4)),
            ("activation", "weight"),
            (2,),
            24,
            2,
            True,
        ),
    ),
    (),
)


def test_before_the_first_step_there_is_the_structure_and_no_decision():
    watch = Watch(("amax", "rms"), ("gradient",), {"fp8": None})
    nothing = stats.empty(TABLE, watch)
    assert not nothing.finite
    assert nothing.tensors.keys() == nothing.what_if["fp8"].keys() == {"Block"}
    gradient = nothing.tensors["Block"]["gradient"]
    assert gradient.amax.tolist() == [0, 0]
    assert gradient.zeros is None


@pytest.mark.parametrize("recipe", [scaling.current(), scaling.delayed(4)])
def test_what_is_known_at_first_has_the_structure_of_what_a_step_returns(recipe):
    """So that a loop of one's own compiles once, and may be a scan."""
    options = Options(recipes=Recipes(recipe, scaling.current(), recipe))
    watch = Watch(("sqnr_db",), what_if={"int4": formats.integer(4)})
    params, x = {"w": jnp.ones((2, 3, 3))}, jnp.ones((4, 3))

    def loss(params, x):
        out, _ = jax.lax.scan(lambda h, w: (h @ w, None), x, params["w"])
        return out.mean(), None

    table = contraction_table(loss, params, x, options=options)
    plan = uniform(table, integers(4, 8))
    states = init_recipes(table, options.recipes)
    step = value_and_grad(loss, options, watch)
    _, _, seen = step(params, x, plan=plan, states=states)
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each)
        for each in (stats.empty(table, watch, options), seen)
    ]
    assert shapes[0] == shapes[1]


def test_merged_micro_batches_have_the_statistics_of_the_whole_batch():
    empty = stats.empty(TABLE)

    def part(x, rounded, loss, finite) -> stats.Stats:
        layers = jax.tree.map(lambda *s: jnp.stack(s), *[sums(x, rounded)] * 2)
        return empty._replace(
            loss=jnp.float32(loss),
            gradient_norm=jnp.float32(2 * loss),
            finite=jnp.bool_(finite),
            tensors={"Block": {"weight": layers}},
            what_if={},
        )

    parts = [part(X[:3], ROUNDED[:3], 1, True), part(X[3:], ROUNDED[3:], 2, False)]
    merged = stats.merge(jax.tree.map(lambda *s: jnp.stack(s), *parts))
    whole = part(X, ROUNDED, 1.5, False)
    jax.tree.map(np.testing.assert_array_equal, merged, whole)
