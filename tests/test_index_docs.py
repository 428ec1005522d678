"""The configs on the page of first steps run as printed."""

import re
from pathlib import Path

import numpy as np
import pytest

from adaprec_jax import experiment, run

PAGE = Path(__file__).parents[1] / "docs" / "index.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
CONFIGS = [block for block in BLOCKS if "def config()" in block]


def ran(block: str, folder: Path):
    path = folder / "mine.py"
    path.write_text(block)
    shorter = {"steps": 8, "schedule.cycles": 2} if "CPT" in block else {"steps": 8}
    return run(experiment(str(path), shorter), out=folder / "runs")


@pytest.mark.slow
def test_the_config_with_a_cycle_trains(tmp_path):
    (block,) = (block for block in CONFIGS if "CPT" in block)
    ended = ran(block, tmp_path)
    assert ended.state == "done"
    assert np.isfinite(ended.metrics["loss"]).all()


@pytest.mark.slow
def test_the_config_with_rules_trains_its_middle_layer_in_four_bits(tmp_path):
    (block,) = (block for block in CONFIGS if "PerLayer" in block)
    ended = ran(block, tmp_path)
    assert ended.state == "done"
    assert np.isfinite(ended.metrics["loss"]).all()
    bits = [
        ended.metrics[f"bits/Dense_{layer}/{operand}"][0]
        for layer in range(3)
        for operand in ("forward.activation", "forward.weight", "dgrad.gradient")
    ]
    assert bits == [16] * 3 + [4] * 3 + [16] * 3
