"""Statistics are those of the tensors themselves, captured from unrolled loops."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from adaprec_jax import formats
from adaprec_jax.contractions import (
    Options,
    Stats,
    Watch,
    contraction_table,
    value_and_grad,
    with_precision,
)
from adaprec_jax.contractions.statistics import QUANTITIES, merge_axis
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.scaling import Recipes, none
from tests.walk_models import TOKENS, normal
from tests.walk_stats import assert_stats

F32, E5M2 = formats.get("float32"), formats.get("float8_e5m2")
FULL, LOW = (SharedPrecision(fmt, fmt, fmt) for fmt in (F32, E5M2))
EVERYTHING = tuple(QUANTITIES)
Dot = Callable[[str, Any, Any], Any]

# Each model is written once, over a product `dot` and a `loop`: as it stands for the
# walk; with Python's loops and recorded products for the reference.


def rnn(p: Any, x: Any, dot: Dot, loop: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = jnp.tanh(dot("wi", x, p["wi"]) + dot("wh", h, p["wh"]))
        return h, h

    return loop(step, jnp.zeros((2, 4)), x)[1]


def twice(p: Any, x: Any, dot: Dot, loop: Any) -> Any:
    del loop
    return dot("w#1", jax.nn.relu(dot("w", x[0], p["w"])), p["w"])


def tied(p: Any, x: Any, dot: Dot, loop: Any) -> Any:
    del x, loop
    return dot("embed", jnp.tanh(p["embed"][TOKENS[0]]), p["embed"].T)


def stack(p: Any, x: Any, dot: Dot, loop: Any) -> Any:
    def layer(h: Any, w: Any) -> Any:
        return jax.nn.relu(dot("layers", h, w)), None

    return loop(jax.checkpoint(layer) if loop is lax.scan else layer, x[0], p["layers"])


def layers_in_time(p: Any, x: Any, dot: Dot, loop: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h, _ = loop(lambda h, w: (jnp.tanh(dot("layers", h, w)), None), h, p["layers"])
        return h + x, h

    return loop(step, jnp.zeros((2, 4)), x)[1]


def ensemble(p: Any, x: Any, dot: Dot, loop: Any) -> Any:
    def member(w: Any, x: Any) -> Any:
        return jax.nn.relu(dot("layers", x, w))

    if loop is lax.scan:
        return jax.vmap(member)(p["layers"], x[:3])
    return [member(w, a) for w, a in zip(p["layers"], x, strict=False)]


def branches(p: Any, x: Any, dot: Dot, loop: Any) -> Any:
    left = lambda x: dot("wi", x, p["wi"])
    if loop is lax.scan:
        return lax.cond(x[0, 0, 0] > 9, lambda x: dot("wh", x, p["wh"]), left, x[0])
    return left(x[0])


P = {"wi": normal(1, 4, 4), "wh": normal(2, 4, 4)}
X = normal(0, 5, 2, 4)
CASES = {
    "rnn": (rnn, P),
    "twice": (twice, {"w": normal(1, 4, 4)}),
    "tied": (tied, {"embed": normal(1, 7, 4)}),
    "stack": (stack, {"layers": normal(1, 3, 4, 4)}),
    "layers in time": (layers_in_time, {"layers": normal(1, 3, 4, 4)}),
    "ensemble": (ensemble, {"layers": normal(1, 3, 4, 4)}),
    "branch not taken": (branches, P),
}


def unrolled(body: Any, carry: Any, xs: Any) -> Any:
    outs = []
    for i in range(len(xs)):
        carry, out = body(carry, xs[i])
        outs.append(out)
    return carry, outs


def mean(outs: Any) -> Any:
    return sum(jnp.sum(jnp.sin(out)) for out in jax.tree.leaves(outs)) / 30


def recorded(model: Any, p: Any, x: Any) -> dict[str, dict[str, list[Any]]]:
    """Returns every operand, and the cotangent as the gradient of zeros added."""
    shapes: list[tuple[int, ...]] = []

    def measure(name: str, a: Any, w: Any) -> Any:
        shapes.append((a @ w).shape)
        return a @ w

    jax.eval_shape(lambda p, x: mean(model(p, x, measure, unrolled)), p, x)
    names: list[str] = []

    def loss(zeros: Any) -> Any:
        operands: list[Any] = []
        names.clear()

        def dot(name: str, a: Any, w: Any) -> Any:
            names.append(name)
            operands.append((a, w))
            return a @ w + zeros[len(operands) - 1]

        return mean(model(p, x, dot, unrolled)), operands

    zeros = [jnp.zeros(shape) for shape in shapes]
    cotangents, operands = jax.jit(jax.grad(loss, has_aux=True))(zeros)
    found: dict[str, dict[str, list[Any]]] = {}
    for name, (a, w), g in zip(names, operands, cotangents, strict=True):
        roles = found.setdefault(name, {})
        for role, tensor in (("activation", a), ("weight", w), ("gradient", g)):
            roles.setdefault(role, []).append(np.asarray(tensor))
    return found


def loss_of(model: Any) -> Any:
    return lambda p, x: (mean(model(p, x, lambda _, a, w: a @ w, lax.scan)), None)


WATCHES = {
    "nothing": Watch(),
    "everything": Watch(EVERYTHING, what_if={"e5m2": E5M2}),
    "gradients": Watch(("amax",), roles=("gradient",)),
}


@functools.cache
def compiled(model: Any, watch: str) -> Any:
    return jax.jit(value_and_grad(loss_of(model), watch=WATCHES[watch]))


def run(model: Any, p: Any, entry: Any, watch: str, **extra: Any) -> Any:
    plan = uniform(contraction_table(loss_of(model), p, X), entry)
    return compiled(model, watch)(p, X, plan=plan, **extra)


@pytest.mark.parametrize(("model", "p"), CASES.values(), ids=CASES)
def test_every_field_equals_numpy_on_captured_tensors(model: Any, p: Any):
    stats = run(model, p, FULL, "everything")[2]
    expected = recorded(model, p, X)
    for name, roles in expected.items():
        for role, tensors in roles.items():
            for seen, dtype in (
                (stats.tensors[name][role], np.float32),
                (stats.what_if["e5m2"][name][role], ml_dtypes.float8_e5m2),
            ):
                if seen.elements.ndim == 0:
                    assert_stats(seen, tensors, dtype)
                for i in range(seen.elements.size if seen.elements.ndim else 0):
                    part = jax.tree.map(lambda leaf, i=i: leaf[i], seen)
                    assert_stats(part, tensors[i :: seen.elements.size], dtype)
    for name in set(stats.tensors) - set(expected):  # a branch that is not taken
        assert all(s.elements == 0 for s in stats.tensors[name].values())


def test_the_format_in_force_is_measured_with_its_own_saturation():
    loss = lambda p, x: (jnp.sum(x @ p["w"]), None)
    int4 = formats.get("int4")
    options = Options(Recipes(none(), none(), none()))
    plan = {"w": SharedPrecision(int4, F32, F32)}
    x = jnp.array([[100.0, 0.3, 0.0, -9.0, 2.5]])
    fn = value_and_grad(loss, options, Watch(EVERYTHING))
    stats = jax.jit(fn)({"w": jnp.eye(5)}, x, plan=plan)[2].tensors["w"]["activation"]
    assert stats.saturations == 2
    assert stats.underflows == 1
    assert stats.zeros == 1
    np.testing.assert_allclose(stats.noise_squares, 93**2 + 0.3**2 + 1 + 0.5**2)


def test_collect_false_gives_nothing_and_true_everything():
    args = (stack, CASES["stack"][1], LOW, "everything")
    always = run(*args)[2]
    for share in (0.0, 1.0):
        seen = run(*args, collect=jnp.bool_(share))[2]
        assert seen.loss == always.loss
        for a, b in ((seen.tensors, always.tensors), (seen.what_if, always.what_if)):
            jax.tree.map(
                lambda a, b, share=share: np.testing.assert_allclose(
                    a, b * share, rtol=1e-6
                ),
                a, b,
            )  # fmt: skip


@pytest.mark.parametrize("name", ["rnn", "stack", "ensemble"])
def test_statistics_change_neither_loss_nor_gradients(name: str):
    model, p = CASES[name]
    (loss, _), gradients, _ = run(model, p, LOW, "nothing")
    (watched, _), watched_gradients, _ = run(model, p, LOW, "everything")
    assert loss == watched
    jax.tree.map(np.testing.assert_array_equal, gradients, watched_gradients)


def test_only_what_is_asked_for_is_there():
    stats = run(rnn, P, LOW, "gradients")[2]
    assert stats.tensors.keys() == {"wi", "wh"}
    (only,) = stats.tensors["wi"].items()
    assert only[0] == "gradient"
    assert [f for f, v in only[1]._asdict().items() if v is not None] == ["amax"]


def test_without_statistics_there_is_no_extra_work():
    loss = loss_of(stack)
    p = CASES["stack"][1]
    plan = uniform(contraction_table(loss, p, X), LOW)

    def operations(fn: Any) -> float:
        return jax.jit(fn).lower(plan, p).compile().cost_analysis()["flops"]

    def by_hand(plan: Any, p: Any) -> Any:
        rounded = lambda p: with_precision(loss)(plan, p, X)
        return jax.value_and_grad(rounded, has_aux=True)(p)

    fn = value_and_grad(loss)
    unwatched = operations(lambda plan, p: fn(p, X, plan=plan)[:2])
    assert unwatched == operations(by_hand)
    watched = value_and_grad(loss, watch=Watch(("amax",)))
    assert operations(lambda plan, p: watched(p, X, plan=plan)) > unwatched


def test_micro_batches_merge_to_the_whole_batch():
    def loss(p: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(jnp.tanh(x @ p["wi"]) @ p["wh"])), None

    fn = jax.jit(value_and_grad(loss, watch=Watch(EVERYTHING)))
    plan = uniform(contraction_table(loss, P, X[0]), FULL)

    def tensors(x: Any) -> Any:
        stats: Stats = fn(P, x, plan=plan)[2]
        return stats.tensors

    parts = jax.tree.map(lambda *s: jnp.stack(s), *[tensors(x) for x in X[:2]])
    whole = tensors(jnp.concatenate(list(X[:2])))
    for name in P:
        for role in ("activation", "gradient"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
                merge_axis(parts[name][role], 0), whole[name][role],
            )  # fmt: skip
