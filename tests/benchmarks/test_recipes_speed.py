"""What scales for blocks add to a train step that scales each tensor as a whole.

Each timed step runs right after one with `current`, and the ratio is taken pairwise.

    pytest tests/benchmarks/test_recipes_speed.py -m speed -s
"""

import functools

import jax
import numpy as np
import pytest

from adaprec_jax.scaling import (
    Recipes,
    deepseek_recipes,
    mxfp8_recipes,
    nvfp4,
    per_channel,
)
from tests.benchmarks import workloads
from tests.benchmarks.test_train_step_speed import Compiled

PAIRS = 40
LIMIT = 1.6
RECIPES = {
    "per channel": Recipes(*[per_channel()] * 3),
    "deepseek": deepseek_recipes(power_of_two=True),
    "mxfp8": mxfp8_recipes(),
    "nvfp4, not rotated": Recipes(nvfp4(), nvfp4(square=True), nvfp4()),
}


@pytest.mark.parametrize("name", RECIPES)
def test_block_scales_cost_little_more_than_one_for_the_tensor(benchmark, name: str):
    batch = workloads.batch_of("block")
    make = functools.partial(workloads.emulated, "block", shared=True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        whole = Compiled(make(), batch)
        blocks = Compiled(make(recipes=RECIPES[name]), batch)
    ratios = []
    for pair in range(PAIRS + 3):
        base = whole()
        ratio = blocks() / base
        if pair >= 3:
            ratios.append(ratio)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    print(f"\n{name:20} {median:.2f} ({low:.2f}-{high:.2f}) of current")
    benchmark.extra_info |= {"ratio": median, "quartiles": (low, high)}
    benchmark.pedantic(lambda: None, rounds=1)
    assert median <= LIMIT
