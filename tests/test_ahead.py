"""Train steps compiled for GPUs and TPUs that are not there: what is in their HLO.

They need the extras aot-gpu and aot-tpu, whose compilers are large, so they are no part
of the default suite: `JAX_PLATFORMS=cpu pytest -m aot`. They are held against Flax's
float8 layer.
"""

import os

import jax
import jax.numpy as jnp
import optax
import pytest

from adaprec_jax import targets
from adaprec_jax.contractions import (
    Options,
    contraction_table,
    init_recipes,
    update_recipes,
    value_and_grad,
)
from adaprec_jax.contractions.kernels import Kernel, Kernels
from adaprec_jax.native.ahead import compile_for
from adaprec_jax.runs.ahead import ahead
from adaprec_jax.runs.load import load
from adaprec_jax.scaling import Recipes, delayed
from tests.benchmarks import workloads

pytestmark = pytest.mark.aot
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
FP8 = Kernels(Kernel(E4M3, E4M3), Kernel(E5M2, E4M3), Kernel(E5M2, E4M3))
F8 = "__cublas$lt$matmul$f8"
# What HLO calls the dtypes.
HLO = {
    "int4": "s4", "int8": "s8", E4M3: "f8e4m3fn", E5M2: "f8e5m2",
    "bfloat16": "bf16", "float16": "f16", "float32": "f32",
}  # fmt: skip


def test_jax_is_told_not_to_look_for_a_device():
    assert os.environ.get("JAX_PLATFORMS") == "cpu", "run with JAX_PLATFORMS=cpu"


def delayed_fp8(workload: str) -> workloads.Step:
    """This project's step with the scaling recipe of Flax's layer."""
    recipes = Recipes(*[delayed(1024)] * 3)
    model, batch = workloads.WORKLOADS[workload][0]({}), workloads.batch_of(workload)
    options = Options(recipes, untouched=lambda c: "weight" not in c.roles)
    params = model.init(jax.random.key(0), batch[0])

    def loss(params, batch):
        return jnp.mean((model.apply(params, batch[0]) - batch[1]) ** 2), None

    table = contraction_table(loss, params, batch, options=options)
    plan = jax.tree.map(
        jnp.asarray, dict.fromkeys(table.names, workloads.fp8(shared=True))
    )
    options = options._replace(kernels=dict.fromkeys(table.names, FP8))
    rounded = value_and_grad(loss, options)

    def step(carried, batch):
        params, state, plan, states = carried
        _, gradients, stats = rounded(params, batch, plan=plan, states=states)
        updates, state = workloads.TX.update(gradients, state, params)
        states = update_recipes(recipes, table, states, stats)
        return optax.apply_updates(params, updates), state, plan, states

    carried = params, workloads.TX.init(params), plan, init_recipes(table, recipes)
    return workloads.Step(step, carried)


@pytest.mark.parametrize(("workload", "products"), [("mlp", 5), ("block", 18)])
def test_every_dense_product_is_a_float8_kernel_of_an_h100(workload, products):
    ours = delayed_fp8(workload)
    flax = workloads.flax_fp8(workload)
    batch = workloads.batch_of(workload)
    h100 = targets.get("h100")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found, peer = (
            compile_for(h100, step.fn, step.carried, batch) for step in (ours, flax)
        )
    kernels = [product.kernel for product in found.found.products]
    assert kernels.count(F8) == products
    assert [p.kernel for p in peer.found.products].count(F8) == products
    assert found.found.casts <= peer.found.casts
    assert found.found.transposes <= peer.found.transposes
    assert found.temporary <= peer.temporary


def test_attention_in_a_scan_over_layers_is_float8_as_well():
    report = ahead(load("shakespeare-fp8"), "h100")
    assert not report.other
    assert {found.split()[0] for line in report.lines for found in line.found} == {F8}
    assert all(line.found and not line.reason for line in report.lines)


@pytest.mark.parametrize(
    ("config", "dtypes"),
    [
        ("shakespeare-mxfp8", "f8e4m3fn x f8e4m3fn"),
        ("shakespeare-nvfp4", "f4e2m1fn x f4e2m1fn"),
    ],
)
def test_every_product_of_blocks_is_one_of_a_b200(config: str, dtypes: str):
    report = ahead(load(config), "b200")
    # Beside them only what rotates the operands before they are rounded.
    assert all("part rounding" in product.op_name for product in report.other)
    assert all(line.found and not line.reason for line in report.lines)
    found = {each for line in report.lines for each in line.found}
    assert found == {f"__cudnn$blockScaledDot {dtypes}"}


@pytest.mark.parametrize("target", ["tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu7x"])
@pytest.mark.parametrize("config", ["digits-int8", "digits-cpt", "experts-int8"])
def test_a_tpu_multiplies_the_dtypes_of_the_plan(config: str, target: str):
    report = ahead(load(config), target)
    assert not report.other
    for line in report.lines:
        expected = sorted(HLO[dtype] for dtype in line.chosen.dtypes)
        for found in line.found:
            kernel, left, _, right = found.split()
            assert kernel in ("dot", "convolution")
            assert sorted((left, right)) == expected, line


def test_the_number_of_executables_is_known_before():
    assert ahead(load("digits-cpt"), "h100").executables == 1  # int8 carries them all
    assert ahead(load("digits-cpt"), "tpu-v5e").executables == 2  # int4 has its unit
    assert ahead(load("digits-two-threshold"), "h100").executables is None
