import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import plan as plans, stats
from adaprec_jax.runs import config, overrides
from adaprec_jax.runs.build import (
    build,
    make_learning_rate,
    make_optimizer,
    make_schedule,
    make_watch,
)
from adaprec_jax.runs.build_task import blank_data, load_data
from adaprec_jax.runs.load import load
from adaprec_jax.runs.validation import validate

CPT = load("digits-cpt")
TEACHER = ["task.kind=teacher", "task.size=64", "model.hidden=[4]", "batch_size=8"]
INT4 = config.SharedFormats(activation="int4", weight="int4", gradient="int8")
INT8 = config.SharedFormats(activation="int8", weight="int8", gradient="int8")
FORWARD = config.SeparateFormats(forward=config.ForwardFormats(weight="int4"))


def tiny(*settings: str) -> config.Experiment:
    return overrides.apply(CPT, [*TEACHER, *settings])


@pytest.mark.parametrize(
    ("settings", "by_step"),
    [
        (config.ConstantRate(peak=0.5), {0: 0.5, 7: 0.5}),
        (config.Cosine(peak=1.0, final=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
        (
            config.WarmupCosine(peak=1.0, final=0.2, warmup_steps=20),
            {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.6, 100: 0.2},
        ),
        (
            config.WarmupStableDecay(
                peak=1.0, final=0.2, warmup_steps=20, decay_steps=40
            ),
            {0: 0.0, 10: 0.5, 20: 1.0, 60: 1.0, 70: 0.8, 100: 0.2},
        ),
        # The last 40 of the 100 steps are a run of 40 steps with a cosine.
        (
            config.WarmupStableDecay(peak=1.0, decay_steps=40, fall="cosine"),
            {0: 1.0, 59: 1.0, 60: 1.0, 70: (2 + 2**0.5) / 4, 80: 0.5, 100: 0.0},
        ),
    ],
)
def test_learning_rates_rise_and_fall_as_their_settings_say(settings, by_step):
    rate = make_learning_rate(settings, 100)
    for step, value in by_step.items():
        found = rate(jnp.int32(step)) if callable(rate) else rate
        assert float(found) == pytest.approx(value, abs=1e-6)


# One update of the parameter 4 by the gradient 2 at the learning rate 0.1.
RATE = config.ConstantRate(peak=0.1)


@pytest.mark.parametrize(
    ("settings", "update"),
    [
        (config.SGD(learning_rate=RATE), -0.1 * 2),
        (config.SGD(learning_rate=RATE, weight_decay=0.5), -0.1 * (2 + 0.5 * 4)),
        (config.SGD(learning_rate=RATE, clip_norm=1.0), -0.1 * 1),
        (config.Momentum(learning_rate=RATE, decay=0.9), -0.1 * 2),
        (
            config.Momentum(learning_rate=RATE, decay=0.9, nesterov=True),
            -0.1 * (2 + 0.9 * 2),
        ),
        (config.Adam(learning_rate=RATE, eps=2.0), -0.1 * 2 / (2 + 2)),
        (config.AdamW(learning_rate=RATE, weight_decay=0.5), -0.1 * (1 + 0.5 * 4)),
        # From 4 to the bound of the grid.
        (config.WAGE(learning_rate=RATE, bits=3), 0.75 - 4),
    ],
)
def test_optimizers_do_what_their_settings_say(settings, update):
    transformation = make_optimizer(settings, 10)
    params = jnp.float32(4)
    state = transformation.init(params)
    with jax.numpy_dtype_promotion("standard"):  # as optax counts
        found, state = transformation.update(jnp.float32(2), state, params)
    assert float(found) == pytest.approx(update, rel=1e-5)
    assert float(optax.tree_utils.tree_get(state, "learning_rate")) == np.float32(0.1)


@pytest.mark.parametrize(
    ("settings", "first", "last"),
    [
        (config.Float32(), [32] * 6, [32] * 6),
        (config.Constant(precision=INT4), [4, 4, 8, 4, 8, 4], [4, 4, 8, 4, 8, 4]),
        (config.Constant(precision=FORWARD), [32, 4, 32, 32, 32, 32], None),
        (
            config.Piecewise(boundaries=(5,), precisions=(INT4, INT8)),
            [4, 4, 8, 4, 8, 4],
            [8] * 6,
        ),
        (config.Warmup(warmup_steps=5, low=INT4), [16] * 6, [4, 4, 8, 4, 8, 4]),
        (config.LateSwitch(low=INT4), [4, 4, 8, 4, 8, 4], [16] * 6),
        (
            config.LateSwitch(low=INT4, products="forward"),
            [4, 4, 8, 4, 8, 4],
            [16, 16, 8, 4, 8, 4],
        ),
        (config.LateSwitch(low=INT4, at="decay"), [4, 4, 8, 4, 8, 4], [16] * 6),
        (config.Deficit(length=5), [3, 3, 8, 3, 8, 3], [8] * 6),
        (config.Deficit(start=18, length=2), [8] * 6, [3, 3, 8, 3, 8, 3]),
        (config.Deficit(length=0), [8] * 6, [8] * 6),
        (config.CPT(cycles=1), [3, 3, 8, 3, 8, 3], [8] * 6),
        (config.TwoThreshold(start_bits=6), [6, 6, 8, 6, 8, 6], None),
        (
            config.PerLayer(
                rules=(config.Rule(pattern="first", schedule=config.Float32()),),
                default=config.Constant(precision=INT8),
            ),
            [32] * 6,
            None,
        ),
    ],
)
def test_schedules_plan_what_their_settings_say(settings, first, last):
    table = build(tiny()).program.table
    schedule = make_schedule(settings, 20, decay=15)
    state = schedule.init(table)
    for step, expected in ((0, first), (19, last)):
        plan, _ = schedule.update(jnp.int32(step), stats.empty(table), state)
        bits = [int(b) for b in jax.tree.leaves(plans.bits(plan)["Dense_0"])]
        if len(bits) == 3:  # Shared: activation, weight, gradient.
            a, w, g = bits
            bits = [a, w, g, w, g, a]
        assert expected is None or bits == expected


def test_a_shuffled_cycle_uses_the_same_bits_in_the_order_of_its_seed():
    table = build(tiny()).program.table
    cpt, one, other = (
        np.asarray(make_schedule(settings, 50).init(table).lookup)
        for settings in (
            config.CPT(cycles=2),
            config.ShuffledCPT(cycles=2),
            config.ShuffledCPT(cycles=2, shuffle_seed=1),
        )
    )
    assert sorted(cpt) == sorted(one) == sorted(other)
    assert not np.array_equal(one, other)


TWO = {"kind": "two_threshold", "every": 20, "roles": ["weight"]}
OTHER = {"kind": "two_threshold", "every": 30, "signal": "saturation_fraction"}


@pytest.mark.parametrize(
    ("settings", "quantities", "roles", "every"),
    [
        ({}, {"saturation_fraction"}, {"activation", "weight", "gradient"}, 20),
        (
            {"statistics": ["rms"], "log_every": 6},
            {"rms", "saturation_fraction"},
            {"activation", "weight", "gradient"},
            6,
        ),
        (
            {"schedule": TWO},
            {"underflow_fraction", "saturation_fraction"},
            {"weight"},
            20,
        ),
        (
            {
                "schedule": {
                    "kind": "per_layer",
                    "rules": [{"pattern": "first", "schedule": TWO}],
                    "default": OTHER,
                }
            },
            {"underflow_fraction", "saturation_fraction"},
            {"activation", "weight"},
            10,
        ),
    ],
)
def test_what_is_gathered_is_what_somebody_reads(settings, quantities, roles, every):
    tree = tiny().model_dump(mode="json") | settings
    experiment = validate(tree)
    schedule = make_schedule(experiment.schedule, experiment.steps)
    watch, gather_every = make_watch(experiment, schedule)
    assert set(watch.quantities) == quantities
    assert set(watch.roles) == roles
    assert gather_every == every


def test_narrow_parameters_have_a_float32_master():
    experiment = tiny("parameter_dtype=bfloat16", "compute_dtype=bfloat16")
    with jax.numpy_dtype_promotion("standard"):  # as Flax widens to the inputs
        built = build(experiment)
        state = jax.jit(built.init)(built.key)
    for params, dtype in (
        (state.params, "bfloat16"),
        (state.opt_state.master, "float32"),
    ):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    assert built.program.options.compute_dtype is not None


@pytest.mark.parametrize(
    "task",
    [
        config.Digits(),
        config.Denoising(),
        config.Function(size=8),
        config.Teacher(size=8),
        pytest.param(config.FashionMNIST(), marks=pytest.mark.slow),
        pytest.param(config.Shakespeare(), marks=pytest.mark.slow),
    ],
)
def test_blank_data_has_the_shape_of_the_real_data(task):
    real, blank = load_data(task), blank_data(task)
    row = np.zeros(1, np.int32)
    shapes = [
        jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), data.gather(data.arrays, row)
        )
        for data in (real, blank)
    ]
    assert shapes[0] == shapes[1]
