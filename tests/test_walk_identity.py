"""With float32 everywhere a rounded function is the function itself."""

import pytest

from tests.walk_identity import SEPARATE, assert_same
from tests.walk_models import CONVOLUTIONS, MODELS

GROUPS = {
    "layers": ["mlp", "cnn", "dense general", "einsum", "twice", "low rank"],
    "convolutions": [f"conv {name}" for name in CONVOLUTIONS],
    "recurrent cells": ["LSTMCell", "GRUCell", "SimpleCell"],
    "scanned stacks": ["scanned transformer", "remat with policy"],
    "loops": ["layers in time", "time in layers", "conditional", "list"],
    "members": ["ensemble", "experts", "ragged", "bfloat16"],
}

SLOW = ("convolutions", "recurrent cells", "scanned stacks")


# What takes longest to compile is slow.
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, id=group, marks=[pytest.mark.slow] * (group in SLOW))
        for group, names in GROUPS.items()
    ],
)
def test_float32_entries_change_nothing(names: list[str]):
    assert_same(names)


def test_six_separate_float32_formats_change_nothing():
    assert_same(["mlp", "ensemble", "conv same", "time in layers"], SEPARATE)


def test_every_linen_and_plain_model_is_in_a_group():
    others = {name for name in MODELS if name.startswith(("nnx", "equinox"))}
    assert set(MODELS) - others == {name for group in GROUPS.values() for name in group}
