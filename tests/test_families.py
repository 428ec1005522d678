"""Each model family, as bundled: its contractions, its size, rounded and not, learning.

Float32 plans must change nothing, whatever a model is made of: normalisation by the
batch, recurrence, attention, experts, graphs, both kinds of Flax modules.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.contractions import Table, value_and_grad, with_precision
from adaprec_jax.plan import uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.runs import overrides, run as running
from adaprec_jax.runs.build import build, make_table
from adaprec_jax.runs.build_task import blank_data, make_task
from adaprec_jax.runs.expected import mean_cost
from adaprec_jax.runs.load import load
from adaprec_jax.tasks.task import Task
from experiments import families

F32 = SharedPrecision(*[formats.get("float32")] * 3)
INT4 = SharedPrecision(*[formats.get(name) for name in ("int4", "int4", "int8")])


def attention(block: str) -> list[str]:
    return [
        f"{block}/attention/{name}"
        for name in (
            "query", "key", "value", "BTNH,BSNH->BNTS", "BNTS,BSNH->BTNH", "out",
        )
    ]  # fmt: skip


def residual(name: str, *inside: str) -> list[str]:
    return [f"{name}/{part}" for part in inside]


# In the order of the program; `i` reads the input of a cell and `h` its state.
NAMES = {
    "resnet": [
        "stem",
        *residual("stage_0_block_0", "conv_1", "conv_2"),
        *residual("stage_1_block_0", "conv_1", "conv_2", "shortcut"),
        "head",
    ],
    "vit": [
        "embed",
        *attention("blocks/0"), "blocks/0/up", "blocks/0/down",
        *attention("blocks/1"), "blocks/1/up", "blocks/1/down",
        "head",
    ],
    "lstm": [*(f"cell/{kind}{gate}" for gate in "ifgo" for kind in "ih"), "head"],
    "gru": [*(f"cell/{kind}{gate}" for gate in "rzn" for kind in "ih"), "head"],
    "experts": ["stem", "gate", "experts/Dense_0", "experts/Dense_1", "head"],
    "graph": [
        "embed",
        "layers/0/dense", "layers/0/nm,bmf->bnf",
        "layers/1/dense", "layers/1/nm,bmf->bnf",
        "head",
    ],
    "denoiser": [
        "time", "stem",
        *residual("fine", "conv_1", "time", "conv_2"),
        "shrink",
        *residual("coarse", "conv_1", "time", "conv_2"),
        "grow", "join", "noise",
    ],
    "function": ["layers/0", "layers/1", "head"],
}  # fmt: skip

# Parameters, counted by hand; the layers as in NAMES.
SIZES = {
    "resnet": (
        9 * 16 + 2 * 16  # the stem, then scale and offset of its normalisation
        + 2 * (9 * 16 * 16 + 2 * 16)
        + (9 * 16 * 32 + 2 * 32) + (9 * 32 * 32 + 2 * 32) + (16 * 32 + 2 * 32)
        + (32 * 10 + 10)
    ),
    "vit": (
        (4 * 32 + 32) + 32 + 17 * 32  # patches, class token, positions
        + 2 * (2 * 2 * 32 + 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32))
        + 2 * 32 + (32 * 10 + 10)
    ),
    # Four gates; a bias where the state is read.
    "lstm": 4 * (8 * 64 + 64 * 64 + 64) + (64 * 10 + 10),
    # Three gates; biases where the input is read, and of the state in the new one.
    "gru": 3 * (8 * 64 + 64) + 3 * 64 * 64 + 64 + (64 * 10 + 10),
    "experts": (
        (64 * 32 + 32) + (32 * 4 + 4) + 4 * 2 * (32 * 32 + 32) + (32 * 10 + 10)
    ),
    "graph": (1 * 64 + 64) + 64 * 64 + 2 * (64 * 64 + 64) + (64 * 10 + 10),
    "denoiser": (
        (32 * 64 + 64) + (9 * 16 + 16)
        + 2 * 32 + 2 * (9 * 16 * 16 + 16) + (64 * 16 + 16)
        + (9 * 16 * 32 + 32)
        + 2 * 64 + 2 * (9 * 32 * 32 + 32) + (64 * 32 + 32)
        + (9 * 32 * 16 + 16) + 64 + (9 * 32 * 16 + 16) + (9 * 16 + 1)
    ),
    "function": (2 * 64 + 64) + (64 * 64 + 64) + (64 + 1),
}  # fmt: skip

EACH = pytest.mark.parametrize("name", NAMES)
# What takes longest to compile is slow.
COMPILED = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if slow else name
        for name in NAMES
        for slow in [name != "function"]
    ],
)


class Family(NamedTuple):
    """A family on a small batch of its real data.

    Attributes:
        task: What is trained.
        table: Its contractions.
        args: Of the task's loss.
        rounded: `(plan, *args)` to loss, gradients and statistics, compiled once.
    """

    task: Task
    table: Table
    args: tuple[Any, ...]
    rounded: Any


@functools.cache
def family(name: str) -> Family:
    built = build(overrides.apply(load(f"{name}-int4"), ["batch_size=8"]))
    task, key = built.task, jax.random.key(1)
    params, model_state = jax.jit(task.init)(key)
    # Not as they begin: where a last layer is 0, no gradient passes it.
    params = jax.tree.map(
        lambda p: p + 0.01 * np.cos(np.arange(p.size, dtype=p.dtype)).reshape(p.shape),
        params,
    )
    batch = task.data.gather(task.data.arrays, built.split.train[:8])
    rounded = jax.jit(
        lambda plan, *args: value_and_grad(task.loss)(*args, plan=plan, key=key)
    )
    args = (params, model_state, batch, key)
    return Family(task, built.program.table, args, rounded)


def table(name: str) -> Table:
    experiment = load(f"{name}-int4")
    return make_table(experiment, make_task(experiment, blank_data(experiment.task)))


@EACH
def test_every_contraction_is_reached_and_has_its_name(name):
    found = table(name)
    assert found.not_reached == ()
    assert list(found.names) == NAMES[name]


@EACH
def test_where_all_products_have_a_weight_the_cost_is_known_in_advance(name):
    uneven = 'schedule.precision.weight="int3"'
    found = mean_cost(overrides.apply(load(f"{name}-int4"), [uneven]))
    weighted = all("weight" in c.roles for c in table(name).contractions)
    assert (found is not None) <= weighted
    assert (found is None) == (name in ("vit", "experts", "graph", "denoiser"))


@EACH
def test_every_weight_is_multiplied_under_the_path_of_its_module(name):
    experiment = load(f"{name}-int4")
    task = make_task(experiment, blank_data(experiment.task))
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    paths = [
        "/".join(str(key.key) for key in path)
        for path, _ in jax.tree.leaves_with_path(params)
    ]
    weights = {p.removesuffix("/kernel") for p in paths if p.endswith("/kernel")}
    multiplied = [c.name for c in table(name).contractions if "weight" in c.roles]
    assert sorted(multiplied) == sorted(weights)


@EACH
def test_the_size_is_the_one_counted_by_hand(name):
    experiment = load(f"{name}-int4")
    task = make_task(experiment, blank_data(experiment.task))
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == SIZES[name]


def test_experts_are_members_of_one_contraction_and_time_is_not_an_axis():
    axes = {c.name: c.axes for c in table("experts").contractions}
    assert axes["experts/Dense_0"] == axes["experts/Dense_1"] == (4,)
    assert axes["stem"] == axes["gate"] == axes["head"] == ()
    for name in ("lstm", "gru"):
        *cell, head = table(name).contractions
        assert {(c.axes, c.executions) for c in cell} == {((), 8)}
        assert head.executions == 1


def assert_nearly_equal(a, b) -> None:
    """Asserts equality but for what XLA's fusing the two programs differently does."""
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6 * float(np.max(np.abs(a))))


@COMPILED
def test_a_float32_plan_changes_nothing(name):
    task, table, args, rounded = family(name)
    plain = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(*args)
    value, gradients, _ = rounded(uniform(table, F32), *args)
    jax.tree.map(assert_nearly_equal, plain[0], value)
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(plain[1]))
    for (path, a), b in zip(
        jax.tree.leaves_with_path(plain[1]), jax.tree.leaves(gradients), strict=True
    ):
        # A softmax cancels the bias of the keys: its gradient is rounding alone.
        cancelled = "'key'" in str(path) and "'bias'" in str(path)
        scale = largest if cancelled else np.max(np.abs(a))
        assert np.max(np.abs(a - b)) <= 5e-6 * scale, path
    scores = with_precision(task.scores)
    again = jax.jit(lambda *args: scores(uniform(table, F32), *args))(*args[:3])
    jax.tree.map(assert_nearly_equal, jax.jit(task.scores)(*args[:3]), again)


@COMPILED
def test_a_step_in_four_bits_is_finite_and_another_one(name):
    _, table, args, rounded = family(name)
    (loss, aux), gradients, stats = rounded(uniform(table, INT4), *args)
    for leaf in jax.tree.leaves((loss, aux, gradients)):
        assert np.isfinite(leaf).all()
    assert stats.finite
    (exact, _), _, _ = rounded(uniform(table, F32), *args)
    assert loss != exact


@COMPILED
def test_every_parameter_learns(name):
    _, table, args, rounded = family(name)
    _, gradients, _ = rounded(uniform(table, F32), *args)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.any(leaf != 0), path


# Steps, fewer than in the bundled runs, and a bound of the test score; beside it what
# was found.
LEARNED = {
    "resnet": (100, 0.93),  # 0.958
    "vit": (200, 0.91),  # 0.947
    "lstm": (200, 0.91),  # 0.942
    "gru": (200, 0.91),  # 0.942
    "experts": (200, 0.90),  # 0.930
    "graph": (200, 0.83),  # 0.875
    # Squared errors: the variance of the noise is 1, that of the function 0.08.
    "denoiser": (200, 0.2),  # 0.141
    "function": (1000, 5e-5),  # 9e-6
}


@pytest.mark.slow
@EACH
def test_it_learns_in_float32(name, tmp_path):
    steps, bound = LEARNED[name]
    experiment = overrides.apply(
        load(f"{name}-float32"), [f"steps={steps}", f"evaluate_every={steps}"]
    )
    results = running.run(experiment, out=tmp_path).results
    if name in ("denoiser", "function"):
        assert results["test/float32/loss"] < bound
    else:
        assert results["test/float32/accuracy"] > bound


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric"), [("experts", "accuracy"), ("function", "loss")]
)
def test_the_table_over_seeds_is_of_runs_as_the_command_has_them(
    name, metric, tmp_path
):
    short = ["steps=40", "evaluate_every=40", "checkpoint_every=40"]
    arms = families.trained(name, 2, short)
    assert list(arms) == ["float32", "int8", "int4", "cpt"]
    for arm in ("float32", "int8"):
        alone = overrides.apply(load(f"{name}-{arm}"), [*short, "seed=1"])
        results = running.run(alone, out=tmp_path).results
        found = results[f"test/highest/{metric}"]
        assert arms[arm].metric[1] == pytest.approx(found, rel=0.03)
    shown = families.row(name, arms).split(" | ")
    mean = arms["int4"].metric.mean()
    difference = mean - arms["float32"].metric.mean()
    assert shown[0] == name
    assert shown[3].startswith(f"{mean:.3g} ± ")
    assert f"({difference:+.2g} ± " in shown[3]
