"""Train steps compiled for several GPUs and for a TPU slice that are not there.

They need the extras aot-gpu and aot-tpu; see `test_ahead`.
"""

import pytest

from adaprec_jax.runs import overrides
from adaprec_jax.runs.ahead import ahead
from adaprec_jax.runs.config import Constant, SharedFormats
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from experiments.tpu import row

pytestmark = pytest.mark.aot
SPREAD = ("devices=8", "mesh.tensor=2", "mesh.spread_parameters=true")


@pytest.mark.parametrize(("target", "topology"), [("h100", ""), ("tpu-v5e", "2x4")])
def test_eight_devices_multiply_the_dtypes_of_one(target: str, topology: str):
    experiment = load("digits-int8")
    one = ahead(experiment, target)
    eight = ahead(overrides.apply(experiment, SPREAD), target, 0, topology)
    assert not eight.other
    assert not one.ahead.found.collectives
    for alone, shared in zip(one.lines, eight.lines, strict=True):
        kinds = [{found.split(" ", 1)[1] for found in line.found}
                 for line in (alone, shared)]  # fmt: skip
        assert kinds[0] == kinds[1], shared
    spoken = eight.ahead.found.collectives
    # The batch is summed in integers, and scales are those of whole tensors.
    assert any(r.startswith("s32") for each in spoken for r in each.results)
    assert {"all-reduce", "all-gather"} <= {each.operation for each in spoken}
    assert eight.ahead.arguments < one.ahead.arguments


def test_parameters_that_are_spread_travel_in_8_bits():
    eight = ahead(overrides.apply(load("digits-int8"), SPREAD), "h100")
    gathered = [
        result
        for each in eight.ahead.found.collectives
        if each.operation == "all-gather"
        for result in each.results
        if "," in result  # A matrix.
    ]
    assert gathered
    assert all(result.startswith("s8") for result in gathered)


@pytest.mark.parametrize(
    ("topology", "sentence"),
    [("", "8 devices are asked for, and there are 4 of TPU v5e"),
     ("3x7", "TPU v5e has no topology 3x7")],
)  # fmt: skip
def test_a_slice_that_is_too_small_or_unknown_is_refused(topology, sentence):
    eight = overrides.apply(load("digits-int8"), ["devices=8"])
    with pytest.raises(InputError, match=sentence):
        ahead(eight, "tpu-v5e", 0, topology)


def test_a_gpu_has_no_topology():
    with pytest.raises(InputError, match="is no TPU, and has no topology 2x4"):
        ahead(load("digits-int8"), "h100", 0, "2x4")


FP8 = SharedFormats(
    activation="float8_e4m3fn", weight="float8_e4m3fn", gradient="float8_e4m3fn"
)


# Of each kind of product one; `python -m experiments.tpu` asks every config.
@pytest.mark.parametrize(
    ("config", "settings", "target", "operands"),
    [
        ("digits-bf16", {}, "tpu-v5e", {"bf16 x bf16"}),
        ("digits-cpt", {}, "tpu-v5e", {"s4 x s4", "s8 x s8"}),
        ("digits-int8", {"schedule": Constant(precision=FP8)}, "tpu7x",
         {"f8e4m3fn x f8e4m3fn"}),
    ],
)  # fmt: skip
def test_a_tpu_multiplies_what_was_planned_and_nothing_else(
    config, settings, target, operands
):
    experiment = overrides.apply(load(config), overrides.assignments(settings))
    found = row(experiment, target)
    assert found.planned == found.products > 0
    assert found.other == 0
    assert {*found.operands} == operands
