"""What every transformation must do in any program, and what it does in a run."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from adaprec_jax import formats, loss_scaling, transforms
from adaprec_jax.runs import config, overrides
from adaprec_jax.runs.build import build, make_transformation
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.run import run
from adaprec_jax.train import make_dispatch, make_train_step
from adaprec_jax.train.checkpoint import restore, saving
from tests.small_run import assert_equal

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

E4M3, INT4 = formats.get("float8_e4m3fn"), formats.get("int4")


def reset(inner):
    settings = {"start": 1, "every": 4, "window": 3, "threshold": 2.0}
    return optax.chain(inner, transforms.oscillation_reset(INT4, **settings))


TRANSFORMS = {
    "oscillation_reset": reset,
    "hysteresis": lambda inner: transforms.hysteresis(inner, INT4),
    "in_place": lambda inner: optax.chain(inner, transforms.in_place(E4M3)),
    "averaging": lambda inner: optax.chain(
        inner, transforms.averaging(start=2, every=2)
    ),
    "fp8_lm": lambda inner: transforms.narrow_moments(inner, transforms.fp8_lm()),
    "coat": lambda inner: transforms.narrow_moments(inner, transforms.coat(4)),
    "all_reduce": lambda inner: optax.chain(transforms.narrow_all_reduce(E4M3), inner),
    # An optimizer by itself: it undoes the sign of the one before it.
    "wage": lambda inner: optax.chain(
        inner, optax.scale(-1.0), transforms.wage(2.5, weight_bits=2)
    ),
}
EACH = pytest.mark.parametrize("name", TRANSFORMS)
STEPS = 10


def transformation(name: str):
    return loss_scaling.none(TRANSFORMS[name](optax.adam(0.1)))


def first_params(seed: int = 0):
    key = jax.random.key(seed)
    return {"w": jax.random.normal(key, (5, 3)), "b": jnp.zeros(3)}


def gradients(steps: int = STEPS, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed + 100))
    return {
        "w": jax.random.normal(keys[0], (steps, 5, 3)),
        "b": jax.random.normal(keys[1], (steps, 3)),
    }


def stepper(tx):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (loss_scaling.apply(params, updates, state), state), None

    return step


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def trained(tx, params, grads):
    step = jax.jit(stepper(tx))
    carry = params, jax.jit(tx.init)(params)
    for index in range(len(grads["b"])):
        carry, _ = step(carry, at(grads, index))
    assert step._cache_size() == 1  # strongly typed states trace once
    return carry


@functools.cache
def trained_alone(name: str, seed: int = 0):
    return trained(transformation(name), first_params(seed), gradients(seed=seed))


def assert_close(found, expected):
    """To the digits that XLA fuses differently."""
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@EACH
def test_a_scan_and_a_pack_of_runs_do_what_single_steps_do(name):
    tx = transformation(name)
    each = [trained_alone(name, seed) for seed in (0, 1)]

    def whole(params, grads):
        return lax.scan(stepper(tx), (params, tx.init(params)), grads)[0]

    assert_close(jax.jit(whole)(first_params(), gradients()), each[0])

    stacked = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        for trees in (
            [first_params(s) for s in (0, 1)],
            [gradients(seed=s) for s in (0, 1)],
        )
    ]
    pack = jax.jit(jax.vmap(whole))(*stacked)
    for index in (0, 1):
        assert_close(at(pack, index), each[index])


@EACH
def test_the_state_comes_back_from_a_checkpoint_to_the_bit(name, tmp_path):
    tx = transformation(name)
    carry = trained_alone(name)
    with saving(tmp_path, 0) as save:
        save(STEPS, carry)
    params = first_params()
    restored = restore(tmp_path, (params, jax.jit(tx.init)(params)))
    assert restored is not None
    assert_equal(restored.state, carry)


@EACH
def test_a_skipped_step_changes_no_state_to_the_bit(name):
    tx = transformation(name)
    params, state = trained_alone(name)
    grads = at(gradients(), 0)
    grads["w"] = grads["w"].at[1, 1].set(jnp.nan)
    update = jax.jit(tx.update)
    # Found here, or known to the caller, who may know what gradients do not show.
    for gradient, known in ((grads, {}), (at(gradients(), 0), {"finite": False})):
        updates, after = update(gradient, state, params, **known)
        assert_equal(after.inner, state.inner)
        assert_equal(loss_scaling.apply(params, updates, after), params)
    _, after = update(at(gradients(), 0), state, params)
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (after, state)), strict=True)
    )


@EACH
def test_no_gradient_makes_a_nan(name):
    tx = transformation(name)
    step = jax.jit(stepper(tx))
    params = {"w": jnp.zeros((5, 3)), "b": jnp.full(3, 2.0)}
    carry = params, jax.jit(tx.init)(params)
    for value in (0.0, 0.0, 1.0, 1.0, 1e-42, 1e38, 1e38, np.nan, np.inf, 3.4e38, 1.0):
        grads = {"w": jnp.full((5, 3), value), "b": jnp.zeros(3)}
        carry, _ = step(carry, grads)
        assert not any(
            np.isnan(leaf).any() for leaf in jax.tree.leaves(carry)
        ), value  # fmt: skip
    assert np.isfinite(carry[0]["w"]).all()


@pytest.mark.slow
@EACH
def test_it_works_beside_injected_hyperparameters_and_on_a_part_of_the_weights(name):
    def make(learning_rate):
        return TRANSFORMS[name](optax.adam(learning_rate))

    injected = optax.inject_hyperparams(make)(learning_rate=0.1)
    plain = trained_alone(name)
    params, state = trained(loss_scaling.none(injected), first_params(), gradients())
    assert_close(params, plain[0])
    rates = optax.tree_utils.tree_get(state, "learning_rate")
    assert rates == np.float32(0.1)
    parts = optax.multi_transform(
        {"w": TRANSFORMS[name](optax.adam(0.1)), "b": optax.adam(0.1)},
        {"w": "w", "b": "b"},
    )
    params, _ = trained(loss_scaling.none(parts), first_params(), gradients())
    adam, _ = trained(loss_scaling.none(optax.adam(0.1)), first_params(), gradients())
    assert_close(params, {"w": plain[0]["w"], "b": adam["b"]})


def test_hyperparameters_of_its_own_may_be_injected():
    inject = optax.inject_hyperparams
    make = (
        inject(transforms.oscillation_reset)(INT4, start=1, every=4, window=3),
        inject(transforms.averaging)(start=2),
        inject(transforms.narrow_all_reduce)(E4M3, threshold=0.1),
    )
    tx = loss_scaling.none(optax.chain(make[2], optax.adam(0.1), *make[:2]))
    params, state = trained(tx, first_params(), gradients())
    assert optax.tree_utils.tree_get(state, "averaged") == STEPS - 2
    assert np.isfinite(params["w"]).all()


@pytest.mark.parametrize("name", ["oscillation_reset", "hysteresis", "all_reduce"])
def test_the_format_is_data(name):
    tx = TRANSFORMS[name](optax.sgd(0.1))
    params, grads = first_params(), at(gradients(), 0)
    state = tx.init(params)
    traces = itertools.count()

    @jax.jit
    def update(state):
        next(traces)
        return tx.update(grads, state, params)[0]

    state = optax.tree_utils.tree_set(state, None, fmt=jax.tree.map(jnp.asarray, E4M3))
    first = update(state)
    wide = jax.tree.map(jnp.asarray, formats.get("int8"))
    second = update(optax.tree_utils.tree_set(state, None, fmt=wide))
    assert next(traces) == 1
    if name != "oscillation_reset":  # whose first call resets nothing
        assert (first["w"] != second["w"]).any()


# In a run

TINY = ["task.kind=teacher", "task.size=64", "model.hidden=[4]", "batch_size=8"]
SETTINGS = {
    "moments": ['optimizer.moments={"kind": "fp8_lm"}'],
    "coat": ['optimizer.moments={"kind": "coat", "group": 16}'],
    "own": [
        'optimizer.moments={"kind": "own", "first": {"format": "int8", "group": 8,'
        ' "rounding": "stochastic"}}'
    ],
    "reset": [
        'optimizer.oscillation_reset={"format": "int8", "start": 5, "every": 20}'
    ],
    "hysteresis": ['optimizer.hysteresis={"format": "float8_e4m3fn"}'],
    "averaging": ['optimizer.averaging={"start": 20, "every": 2}'],
    "communication": ['optimizer.communication={"window": 50}'],
    "wage": [
        'optimizer={"kind": "wage", "weight_bits": 2,'
        ' "learning_rate": {"kind": "cosine", "peak": 2.0, "final": 0.125}}'
    ],
}
SETTINGS["reset"][0] = SETTINGS["reset"][0].replace("}", ', "window": 10}')
ALL = [
    setting
    for name, settings in SETTINGS.items()
    for setting in settings
    if name not in ("coat", "own", "wage")
]


def experiment(*settings: str, base: str = "digits-float32") -> config.Experiment:
    return overrides.apply(load(base), settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_puts_its_transformation_into_the_step(name):
    tx = make_transformation(experiment(*SETTINGS[name]))
    state = jax.eval_shape(tx.init, first_params())
    expected = {
        "moments": "NarrowMomentsState",
        "coat": "NarrowMomentsState",
        "own": "NarrowMomentsState",
        "reset": "OscillationResetState",
        "hysteresis": "HysteresisState",
        "averaging": "AveragingState",
        "communication": "NarrowAllReduceState",
        "wage": "WAGEState",
    }[name]
    assert f"{expected}(" in repr(state.inner)


def test_without_settings_the_state_is_the_optimizers_alone():
    state = jax.eval_shape(make_transformation(experiment()).init, first_params())
    assert type(state.inner).__name__ == "InjectStatefulHyperparamsState"


@pytest.mark.slow
def test_all_of_them_train_together_with_a_learning_rate_that_is_told():
    built = build(experiment(*TINY, *ALL, "steps=100"))
    rows = np.arange(40 * 8).reshape(40, 8) % 32
    data = built.task.data
    batches = data.gather(data.arrays, built.split.train[rows])
    dispatch = make_dispatch(make_train_step(built.program))
    state, metrics = dispatch(jax.jit(built.init)(built.key), batches)
    assert np.isfinite(metrics.scalars["loss"]).all()
    assert metrics.scalars["learning_rate"][-1] == np.float32(0.002)
    assert metrics.scalars["applied"][-1] == 40
    weights = transforms.rounded_weights(state.opt_state, state.params)
    assert_equal(weights, state.params)  # E4M3 at a power of two: to the bit


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        (
            'optimizer.oscillation_reset={"format": "int8", "start": 580}',
            "optimizer.oscillation_reset.start (580) leaves no window of 50 steps in",
        ),
        (
            'optimizer.oscillation_reset={"format": "int8", "start": 0, "every": 9}',
            "window (50) must not be above every (9).",
        ),
        (
            'optimizer.averaging={"start": 600}',
            "optimizer.averaging.start (600) must be below steps (600).",
        ),
        ('optimizer.hysteresis={"format": "fp8"}', "Unknown format 'fp8'"),
        ('optimizer.in_place={"format": "fp8"}', "Unknown format 'fp8'"),
        (
            'optimizer={"kind":"sgd","learning_rate":{"kind":"constant","peak":1},'
            '"in_place":{},"hysteresis":{"format":"int8"}}',
            "in_place has no master, which hysteresis needs.",
        ),
        ('optimizer.moments={"kind": "fp9"}', "unknown 'fp9'"),
        ('optimizer={"kind":"sgd","moments":{"kind":"coat"}}', "moments"),
        (
            'optimizer={"kind":"wage","bits":1,'
            '"learning_rate":{"kind":"constant","peak":1}}',
            "optimizer.bits should be at least 2, got 1.",
        ),
        (
            'optimizer={"kind":"wage","learning_rate":{"kind":"constant","peak":1e5}}',
            "learning_rate.peak (100000) must not be above 2^16 units of the grid.",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(setting, fault):
    with pytest.raises(InputError) as refused:
        experiment(setting)
    assert fault in " ".join(refused.value.args)


ON_DIGITS = {
    **{name: SETTINGS[name] for name in ("moments", "communication")},
    "coat": ['optimizer.moments={"kind": "coat"}'],
    "reset": ['optimizer.oscillation_reset={"format": "int4", "start": 100}'],
    "hysteresis": ['optimizer.hysteresis={"format": "int4"}'],
    "averaging": ['optimizer.averaging={"start": 200}', "schedule.kind=float32"],
    "wage": SETTINGS["wage"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_DIGITS)
def test_digits_are_learned_with_it(name, tmp_path):
    """To guess is to be right in 10 % of the test set."""
    made = experiment(*ON_DIGITS[name], "steps=300", "evaluate_every=300")
    outcome = run(made, out=tmp_path)
    assert outcome.state == "done"
    assert outcome.results["test/float32/accuracy"] > 0.9
    assert ("test_averaged/float32/accuracy" in outcome.results) == (
        name == "averaging"
    )
    if name == "averaging":
        assert outcome.results["test_averaged/float32/accuracy"] > 0.9
