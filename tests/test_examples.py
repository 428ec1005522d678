"""Each example runs as it stands, learns, and is short."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import contraction_table, formats, stats
from adaprec_jax.testing import table

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

EXAMPLES = Path(__file__).parents[1] / "experiments" / "examples"
LEARNS = (
    "closed_loop",
    "equinox_mlp",
    "flax_linen",
    "flax_nnx",
    "loss_scaling_alone",
    "multi_device",
    "plain_jax",
)
QUICK = ("closed_loop", "plain_jax")


def run(name: str) -> dict:
    # Users' programs have JAX's defaults.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_is_tested_and_at_most_forty_lines():
    paths = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert set(paths) == {
        *LEARNS,
        "custom_schedule",
        "quantize_alone",
        "underflow_schedule",
    }
    for path in paths.values():
        lines = path.read_text().splitlines()
        assert sum(bool(line.strip()) for line in lines) <= 40, path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in LEARNS
    ],
)
def test_a_training_loop_learns_in_one_compilation(name: str):
    names = run(name)
    losses = names["losses"]
    assert np.mean(losses[-10:]) < 0.25 * losses[0]
    step = names["step"]
    compiled = getattr(step, "_cached", step)  # Equinox wraps what jax.jit returns.
    assert compiled._cache_size() == 1


def test_the_scaling_example_backs_off_and_goes_on():
    names = run("loss_scaling_alone")
    assert 0 < names["state"].skipped < 20
    assert names["params"]["up"].dtype == jnp.float16


def test_rounding_keeps_what_theory_says():
    names = run("quantize_alone")
    ratios = names["signal_to_noise_db"]
    # Uniform rounding errs by step^2 / 12, of a step of the largest |x| over 127.
    largest = float(jnp.max(jnp.abs(names["x"])))
    assert ratios["int8"] == pytest.approx(
        10 * np.log10(12 * (127 / largest) ** 2), abs=0.2
    )
    # 3 bits of mantissa: an error uniform in +-2^-4 of the binade below.
    assert 30 < ratios["float8_e4m3fn"] < 33
    assert ratios["float8_e5m2"] < ratios["float8_e4m3fn"] - 5
    assert names["mean"] == pytest.approx(1.3, abs=4 * 0.46 / 100_000**0.5)


def test_a_schedule_of_ones_own_raises_bits_with_the_gradient_norm():
    schedule = run("custom_schedule")["by_gradient_norm"](low=4, high=8)
    table = contraction_table(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, jnp.eye(2))
    state, seen = schedule.init(table), stats.empty(table)
    bits = []
    for i, norm in enumerate([1.0, 1.0, 0.1, 5.0]):
        known = seen._replace(finite=jnp.bool_(True), gradient_norm=jnp.float32(norm))
        plan, state = schedule.update(jnp.int32(i), known, state)
        bits.append(int(formats.bits(plan["w"].weight)))
    # Averages after each step: 0.1, 0.19, 0.181, 0.6629.
    assert bits == [8, 8, 4, 8]
    assert float(state.average) == pytest.approx(0.6629)


def test_the_layer_whose_weights_underflow_gets_bits():
    schedule = run("underflow_schedule")["by_underflow"](low=4, high=6)
    made = table()

    def seen(name: str, axes: tuple[int, ...]) -> stats.TensorStats:
        lost = jnp.full(axes, 2.0 * (name == "Dense_0"))
        return stats.TensorStats(
            elements=jnp.full(axes, 8.0), zeros=jnp.zeros(axes), underflows=lost
        )

    tensors = {c.name: {"weight": seen(c.name, c.axes)} for c in made.contractions}
    known = stats.empty(made)._replace(tensors=tensors, finite=jnp.bool_(True))
    state, bits = schedule.init(made), []
    for step in range(4):
        plan, state = schedule.update(jnp.int32(step), known, state)
        widths = {name: formats.bits(entry.weight) for name, entry in plan.items()}
        bits.append({name: int(np.max(width)) for name, width in widths.items()})
    assert [each["Dense_0"] for each in bits] == [5, 6, 6, 6]
    assert {each["Attention"] for each in bits} == {4}
