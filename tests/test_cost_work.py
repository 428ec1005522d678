"""Counted work against closed forms, XLA's own count and the compiled step's memory."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from adaprec_jax.contractions import Watch, contraction_table, value_and_grad
from adaprec_jax.contractions.table import Table
from adaprec_jax.cost import count, kept_bytes
from adaprec_jax.plan import integers, uniform
from adaprec_jax.runs import build, overrides
from adaprec_jax.runs.build_task import blank_data, make_task
from adaprec_jax.runs.counted import counted
from adaprec_jax.runs.load import load
from adaprec_jax.train import data_mesh

shape = jax.ShapeDtypeStruct
NOTHING = Watch()


def floats(*sizes):
    return shape(sizes, jnp.float32)


def work_of(model, params, x, watch=NOTHING, **options):
    """The work of loss and gradients under 8 bits, the loss being a mean square."""

    def loss(params, x):
        return jnp.mean(model(params, x) ** 2), None

    table = contraction_table(loss, params, x)
    plan = uniform(table, integers(8, 8))

    def step(params, x):
        return value_and_grad(loss, watch=watch)(params, x, plan=plan)

    return count(jax.make_jaxpr(step)(params, x), table, **options)


def by_product(work):
    found = {"forward": 0.0, "dgrad": 0.0, "wgrad": 0.0}
    for each in work.products:
        found[each.product] += each.macs
    return tuple(found.values())


def mlp(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


@pytest.mark.parametrize("widths", [(128, 256, 256, 10), (7, 3)])
@pytest.mark.parametrize("rows", [1, 64])
def test_an_mlp_does_not_form_the_gradient_of_its_input(widths, rows):
    params = [floats(a, b) for a, b in itertools.pairwise(widths)]
    found = work_of(mlp, params, floats(rows, widths[0]))
    forward = rows * sum(a * b for a, b in itertools.pairwise(widths))
    without_first = forward - rows * widths[0] * widths[1]
    assert by_product(found) == (forward, without_first, forward)
    assert found.unplanned == {}
    if (widths, rows) == ((128, 256, 256, 10), 64):
        assert found.macs == 17_268_736


def test_a_convolution_counts_its_window_at_every_place():
    def cnn(params, x):
        for w in params:
            x = lax.conv_general_dilated(
                x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x

    params = [floats(3, 3, 1, 8), floats(5, 5, 8, 16)]
    found = work_of(cnn, params, floats(4, 16, 16, 1))
    first, second = 4 * 8 * 8 * (9 * 1 * 8), 4 * 4 * 4 * (25 * 8 * 16)
    assert by_product(found) == (first + second, second, first + second)
    (conv, *_) = found.products
    assert conv.operands == (4 * 16 * 16, 9 * 8)
    assert conv.result == 4 * 8 * 8 * 8


def test_an_lstm_multiplies_once_for_each_time_and_gate():
    batch, time, inputs, hidden = 5, 11, 3, 4

    def lstm(params, xs):
        def turn(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(x @ params["x"] + h @ params["h"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), None

        zeros = jnp.zeros((batch, hidden))
        return lax.scan(turn, (zeros, zeros), xs)[0][0]

    params = {"x": floats(inputs, 4 * hidden), "h": floats(hidden, 4 * hidden)}
    found = work_of(lstm, params, floats(time, batch, inputs))
    of_x, of_h = (time * batch * n * 4 * hidden for n in (inputs, hidden))
    assert by_product(found) == (of_x + of_h, of_h, of_x + of_h)


def transformer(*, scanned, remat):
    def block(x, p):
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        a = jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k))
        x = x + jnp.einsum("bts,bsd->btd", a, v)
        return x + jnp.tanh(x @ p["up"]) @ p["down"]

    block = jax.checkpoint(block) if remat else block

    def model(params, x):
        x = x * params["scale"][None, None]
        if scanned:
            return lax.scan(lambda x, p: (block(x, p), None), x, params["blocks"])[0]
        for i in range(params["blocks"]["up"].shape[0]):
            x = block(x, jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]))
        return x

    return model


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scanned", [False, True])
def test_a_transformer_is_quadratic_in_its_length_and_remat_adds_a_forward(
    scanned, remat
):
    depth, batch, width = 3, 2, 8
    blocks = {"qkv": floats(depth, width, 3 * width),
              "up": floats(depth, width, 4 * width),
              "down": floats(depth, 4 * width, width)}  # fmt: skip
    params = {"blocks": blocks, "scale": floats(width)}
    for length in (6, 12):
        x = floats(batch, length, width)
        found = work_of(transformer(scanned=scanned, remat=remat), params, x)
        dense = batch * length * width * (3 + 4 + 4) * width
        attention = 2 * batch * length**2 * width
        forward = depth * (dense + attention)
        # The last product of a checkpointed block is not needed again.
        again = depth * (dense - batch * length * 4 * width**2 + attention)
        again = again if remat else 0
        assert sum(each.recomputed for each in found.products) == again
        assert by_product(found) == (forward + again, forward, forward)


def test_a_conditional_counts_its_dearest_branch_and_a_while_loop_says_so():
    def model(params, x):
        y = lax.cond(x[0, 0] > 0, lambda x: x @ params["a"], lambda x: x @ params["a"]
                     @ params["b"], x)  # fmt: skip
        return lax.stop_gradient(
            lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ params["b"], y)
        )

    params = {"a": floats(4, 4), "b": floats(4, 4)}
    closed = jax.make_jaxpr(model)(params, floats(2, 4))
    found = count(closed, Table((), ()))
    assert found.unplanned == {("", "float32 x float32"): (2 + 1) * 2 * 4 * 4}
    assert len(found.unknown) == 1
    assert "how often it runs is not known" in found.unknown[0]


def test_a_shard_map_counts_the_work_of_all_devices():
    mesh = data_mesh(jax.devices())
    spec = jax.sharding.PartitionSpec

    def model(w, x):
        return jax.shard_map(
            lambda w, x: x @ w, mesh=mesh, in_specs=(spec(), spec("data")),
            out_specs=spec("data"),
        )(w, x)  # fmt: skip

    found = count(jax.make_jaxpr(model)(floats(3, 5), floats(8, 3)), Table((), ()))
    assert sum(found.unplanned.values()) == 8 * 3 * 5


def test_without_loops_xla_counts_the_same():
    def loss(params, x):
        return jnp.sum(mlp(params, x))

    params = [floats(16, 32), floats(32, 8)]
    step = jax.grad(loss)
    found = count(jax.make_jaxpr(step)(params, floats(10, 16)), Table((), ()))
    xla = jax.jit(step).lower(params, floats(10, 16)).cost_analysis()
    assert isinstance(xla, dict)
    counted = 2 * sum(found.unplanned.values()) + found.operations[""]
    theirs = xla["flops"] + xla["transcendentals"]
    assert found.transcendentals[""] == xla["transcendentals"] == 10 * (32 + 8)
    assert counted == pytest.approx(theirs, rel=0.01)


def test_statistics_count_as_often_as_they_are_gathered():
    params, x = [floats(16, 32)], floats(10, 16)
    plain = work_of(mlp, params, x)
    always = work_of(mlp, params, x, watch=Watch(("underflow_fraction",)))
    assert "statistics" not in plain.operations
    assert always.operations["statistics"] > 10 * 16 + 16 * 32
    assert always.macs == plain.macs
    arm = load("digits-two-threshold")
    often, seldom = (
        counted(overrides.apply(arm, [f"schedule.every={n}"])).work.operations
        for n in (1, 50)
    )
    assert often["statistics"] > 20 * seldom["statistics"]
    assert often["optimizer"] == seldom["optimizer"]


def test_what_is_kept_for_the_backward_pass_is_what_a_compiled_step_allocates():
    widths = [256] * 9
    params = [floats(a, b) for a, b in itertools.pairwise(widths)]
    x = floats(2048, 256)

    def loss(params, x):
        return jnp.sum(mlp(params, x) ** 2)

    kept = kept_bytes(loss, params, x)
    # Of each layer its result, and the slope of tanh that JAX forms in the forward
    # pass; the compiler keeps one of them, and computes the other from it.
    assert kept == pytest.approx(2 * 8 * 2048 * 256 * 4, rel=0.07)
    compiled = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
    assert 0.5 < compiled.temp_size_in_bytes / kept < 0.6


@pytest.mark.parametrize(
    "name",
    [
        "digits-float32",
        "fashion-mnist-float32",
        pytest.param("resnet-float32", marks=pytest.mark.slow),
        pytest.param("vit-float32", marks=pytest.mark.slow),
        pytest.param("lstm-float32", marks=pytest.mark.slow),
        pytest.param("shakespeare-fp8", marks=pytest.mark.slow),
    ],
)
def test_memory_by_class_is_what_a_compiled_gradient_takes(name):
    experiment = load(name)
    found = counted(experiment)
    task = make_task(experiment, blank_data(experiment.task))
    program, key = found.program, jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(
        functools.partial(build.first_state, experiment, task, program), key
    )
    size = experiment.batch_size // experiment.micro_batches
    batch = jax.eval_shape(
        task.data.gather, task.data.arrays, shape((size,), jnp.int32)
    )

    def loss(*args):
        return program.loss(*args)[0]

    args = (state.params, state.model_state, batch, key)
    compiled = jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis()
    memory = found.memory
    # What nothing reads is left out: the key, or running means of a normalisation.
    inputs = memory.weights + memory.batch // experiment.micro_batches
    assert compiled.argument_size_in_bytes == pytest.approx(inputs, rel=0.02, abs=64)
    outputs = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    # Of many results each has an address of 8 bytes.
    assert compiled.output_size_in_bytes == pytest.approx(outputs, rel=0.15, abs=64)
    # Together, as a temporary value may lie in the place of a result.
    taken = compiled.temp_size_in_bytes + compiled.output_size_in_bytes
    assert 0.5 < taken / (memory.activations + outputs) < 1.25


def test_the_memory_of_a_step_is_that_of_its_arrays():
    found = counted(load("digits-int8"))
    # 64-64-10 with biases; Adam keeps two moments and its count, the rate its value.
    parameters = 64 * 64 + 64 + 64 * 10 + 10
    assert found.parameters == parameters
    assert found.memory.weights == found.memory.gradients == 4 * parameters
    assert 0 <= found.memory.optimizer - 8 * parameters <= 64
    assert found.memory.master == 0
    narrow = overrides.apply(load("digits-int8"), ["parameter_dtype=bfloat16"])
    with jax.numpy_dtype_promotion("standard"):
        memory = counted(narrow).memory
    assert (memory.weights, memory.master) == (2 * parameters, 4 * parameters)


def test_micro_batches_do_the_same_work_and_keep_less():
    whole = counted(load("digits-int8"))
    parts = counted(overrides.apply(load("digits-int8"), ["micro_batches=4"]))
    assert parts.work.macs == whole.work.macs
    assert math.isclose(
        parts.memory.activations, whole.memory.activations / 4, rel_tol=0.1
    )
