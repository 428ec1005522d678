"""The loop on the host, on a make-believe device; then a real run that diverges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax.contractions.table import Contraction, Table
from adaprec_jax.train import (
    Cadence,
    Hooks,
    TrainState,
    evaluate,
    make_diagnose,
    make_dispatch,
    make_score,
    make_train_step,
    train,
)
from adaprec_jax.train.diagnose import Instant, first_bad
from adaprec_jax.train.step import Metrics
from tests import small_run
from tests.small_run import CLASSES, PROGRAM, batches, first_state, one

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

CADENCE = Cadence(steps=12, dispatch=2, evaluate_every=4, save_every=6)


def fake_state(calls, weight, halted) -> TrainState:
    """As much of a train state as the loop looks at."""
    blank = TrainState(*[()] * len(TrainState._fields))
    return blank._replace(
        calls=np.int32(calls), params={"w": np.full(3, weight)}, halted=halted
    )


def fake_run(*, halts_at=None, ill_from=99, stops_at=99, start=0, runs=()):
    """Trains on a device that only counts; returns the ending and what happened."""
    log: list[tuple] = []

    def dispatch(state, numbers):
        log.append(("dispatch", numbers.tolist()))
        done = numbers + 1
        halted = np.zeros((len(numbers), *runs), bool)
        if halts_at is not None:
            halted |= done.reshape(-1, *[1] * len(runs)) >= halts_at
        scalars = {
            "loss": np.where(halted, np.nan, 1.0),
            "finite": (~halted).astype(float),
            "consecutive_skips": halted.astype(float),
            "loss_scale": np.ones(halted.shape),
        }
        weight = np.inf if done[-1] >= ill_from else 1.0
        state = fake_state(done[-1], weight, halted[-1])
        return state, Metrics(scalars, None, {}, {}, halted)

    def note(name):
        return lambda step, _: log.append((name, step))

    hooks = Hooks(
        fetch=lambda numbers: numbers,
        on_metrics=lambda numbers, _: log.append(("metrics", numbers.tolist())),
        evaluate=note("evaluate"),
        save=note("save"),
        stop=lambda: sum(name == "dispatch" for name, _ in log) >= stops_at,
    )
    state = fake_state(start, 1.0, np.zeros(runs, bool))
    return train(dispatch, state, CADENCE, hooks), log


def test_every_step_is_taken_once_and_reported_one_dispatch_late():
    ending, log = fake_run()
    assert (ending.kind, ending.step, int(ending.state.calls)) == ("done", 12, 12)
    assert log == [
        ("dispatch", [0, 1]),
        ("dispatch", [2, 3]),
        ("metrics", [1, 2]),
        ("metrics", [3, 4]),
        ("evaluate", 4),
        ("dispatch", [4, 5]),
        ("metrics", [5, 6]),
        ("save", 6),
        ("dispatch", [6, 7]),
        ("metrics", [7, 8]),
        ("evaluate", 8),
        ("dispatch", [8, 9]),
        ("dispatch", [10, 11]),
        ("metrics", [9, 10]),
        ("metrics", [11, 12]),
        ("evaluate", 12),
        ("save", 12),
    ]


def test_a_restored_run_goes_on_where_it_was():
    _, log = fake_run(start=6)
    assert log == fake_run()[1][8:]


def test_a_run_that_is_stopped_saves_once_and_leaves():
    ending, log = fake_run(stops_at=4)
    assert (ending.kind, ending.step) == ("interrupted", 8)
    assert log[-2:] == [("evaluate", 8), ("save", 8)]
    ending, log = fake_run(stops_at=3)
    assert (ending.kind, ending.step) == ("interrupted", 6)
    assert log[-1] == ("save", 6)
    assert [name for name, _ in log].count("save") == 1


@pytest.mark.parametrize(("halts_at", "last"), [(1, 1), (4, 4), (9, 9), (12, 12)])
def test_a_diverged_run_ends_with_its_last_row_and_is_not_saved_again(halts_at, last):
    ending, log = fake_run(halts_at=halts_at)
    assert (ending.kind, ending.step) == ("diverged", last)
    assert ending.message == f"the loss was not finite from step {halts_at} on"
    reported = [number for name, rows in log if name == "metrics" for number in rows]
    assert reported == list(range(1, last + 1))
    assert [step for name, step in log if name == "save"] == ([6] if last > 6 else [])


def test_a_pack_goes_on_until_all_its_runs_have_diverged():
    ending, _ = fake_run(halts_at=np.array([3, 99]), runs=(2,))
    assert ending.kind == "done"
    ending, _ = fake_run(halts_at=np.array([3, 9]), runs=(2,))
    assert (ending.kind, ending.step) == ("diverged", 9)


def test_a_state_that_is_not_finite_is_not_saved():
    ending, log = fake_run(ill_from=5)
    assert (ending.kind, ending.step) == ("diverged", 6)
    assert ending.message == "the parameter ['w'] is not finite at step 6"
    assert "save" not in dict(log)
    assert fake_run(ill_from=7, stops_at=5)[0].kind == "diverged"


def test_a_cadence_that_does_not_fit_is_refused():
    odd = CADENCE._replace(save_every=3)
    with pytest.raises(ValueError, match=r"save_every .* of dispatch=2, got 3"):
        train(print, fake_state(0, 1, False), odd, Hooks(id))


def contraction(name, axes=()) -> Contraction:
    shapes = ((1, 1), (1, 1), (1, 1))
    return Contraction(name, "", "", shapes, ("activation", "weight"), axes, 1, 1, True)


@pytest.mark.parametrize(
    ("bad", "first"),
    [
        ([(1, 0), (2, 0), (3, 0)], "the activation of up@0"),
        ([(3, 0), (2, 0)], "the activation of down@0"),  # before the next layer's up
        ([(0, 2), (1, 2), (4, 2)], "the gradient of down@1"),
        ([(2, 2), (3, 2)], "the gradient of up@1"),
        ([(5, 2), (0, 1)], "the weight of in"),
        ([], None),
    ],
)
def test_the_first_bad_tensor_is_found_in_the_order_of_computation(bad, first):
    stack = (contraction("up", (2,)), contraction("down", (2,)))
    table = Table((contraction("in"), *stack, contraction("out")), ())
    marks = np.zeros((6, 3), bool)
    for row, role in bad:  # rows: in, up@0, up@1, down@0, down@1, out
        marks[row, role] = True
    assert first_bad(table, marks) == first


@functools.cache
def compiled():
    return make_dispatch(make_train_step(PROGRAM)), make_diagnose(PROGRAM)


@pytest.mark.parametrize("poisoned", [True, False])
@pytest.mark.slow
def test_bad_data_ends_a_run_with_the_step_and_the_layer(poisoned):
    def fetch(numbers):
        x, y = batches(len(numbers), int(numbers[0]))
        x[numbers == 6, 3, 1] = np.nan if poisoned else 1.0
        return x, y

    dispatch, diagnose = compiled()
    saved = []
    hooks = Hooks(fetch, save=lambda step, _: saved.append(step), diagnose=diagnose)
    ending = train(dispatch, first_state(), Cadence(12, 4, 4, 4), hooks)
    expected = (
        "the loss was not finite from step 7 on; "
        "the first tensor that was not finite is the activation of blocks@0"
    )
    assert ending.kind == ("diverged" if poisoned else "done")
    assert ending.message == (expected if poisoned else "")
    assert saved == ([4] if poisoned else [4, 8, 12])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ending.state.params))


def test_a_bad_weight_is_named_with_its_layer():
    state = first_state()
    bad = state.params["blocks"]["w"].at[1, 0, 0].set(jnp.nan)
    state = state._replace(params=state.params | {"blocks": {"w": bad}})
    hooks = Hooks(lambda n: batches(len(n), int(n[0])), diagnose=compiled()[1])
    ending = train(compiled()[0], state, Cadence(4, 4, 4, 4), hooks)
    assert ending.message.endswith("not finite is the weight of blocks@1")


def test_a_nan_that_the_largest_magnitude_passes_over_is_named():
    """On a CPU the maximum of more than some thousand elements does."""
    x, y = one(batches(1, size=4096), 0)
    assert x.size > 16_384
    x[1000, 3] = np.nan
    state = first_state()
    instant = Instant(state.calls, state.plan, state.opt_state.scale)
    found = compiled()[1](state, instant, (x, y))
    assert found.endswith("not finite is the activation of blocks@0")
    x[1000:1004, 3] = 3e38  # their sum is infinite, and none of them is
    assert compiled()[1](state, instant, (x, y)).endswith("was finite")


def test_one_compilation_evaluates_at_every_precision_without_the_padding():
    state, _ = compiled()[0](first_state(), batches(4))
    score = jax.jit(make_score(PROGRAM, small_run.scores))
    x, y = batches(1, size=24)
    rows = np.arange(32).reshape(4, 8) % 24  # the last eight fill up
    found = evaluate(score, state, [(x[0, i], y[0, i]) for i in rows], count=24)
    assert score._cache_size() == 1
    exact = small_run.scores(state.params, state.model_state, (x[0], y[0]))
    for name, values in exact.items():
        mean = np.mean(np.asarray(values), dtype=np.float64)
        np.testing.assert_allclose(found["float32"][name], mean, rtol=1e-6)
    assert exact["first"].shape == (24,)
    firsts = [found[precision]["first"] for precision in ("now", "highest", "float32")]
    assert len(set(map(float, firsts))) >= 2
    assert 1 / CLASSES < found["now"]["accuracy"] <= 1
