"""Progressive fractional quantisation against its published sequence and a replay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax.contractions.table import Table
from adaprec_jax.schedules import pfq
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule
from tests.recorded_run import record

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

STAGES = {"forward_bits": [3, 4, 6, 8], "gradient_bits": [6, 6, 8, 8]}
NOTHING = empty(Table((), ()))


def shown(loss, *, finite=True):
    return NOTHING._replace(loss=jnp.float32(loss), finite=jnp.bool_(finite))


def follow(schedule, losses):
    """The stage and the threshold after each call."""
    update, state, found = jax.jit(schedule.update), schedule.init(Table((), ())), []
    for step, loss in enumerate(losses):
        _, state = update(jnp.int32(step), shown(loss), state)
        found.append((int(state.progress.stage), float(state.progress.epsilon)))
    return found


def test_a_decaying_loss_switches_in_the_published_epochs():
    losses = [2 * np.exp(-0.15 * e) + 0.1 for e in range(40)]
    stages, thresholds = zip(*follow(pfq(**STAGES, every=1), losses), strict=True)
    switched = [e + 1 for e in range(1, 40) if stages[e] > stages[e - 1]]
    assert switched == [16, 22, 28]
    assert stages[-1] == 3
    assert thresholds[-1] == pytest.approx(0.024)
    # Not at the last switch.
    assert sorted(set(np.round(thresholds, 6))) == [0.024, 0.06, 0.15]


def replay(losses, *, every, epsilon, alpha, window, scale_epochs, stages):
    """The stage after each loss, in float64, from the words of the rule."""
    stage, epoch, history, kept, found, changes = 0, [], [], [], [], []
    for loss in losses:
        if loss is not None:
            epoch.append(loss)
        if len(epoch) == every:
            mean, epoch = float(np.mean(epoch)), []
            history.append(mean)
            kept = [*kept, mean][-window:]
            scale = np.mean(history[:scale_epochs])
            if len(kept) == window:
                change = max(abs(old - mean) / scale for old in kept[:-1])
                changes.append(change)
                if change <= epsilon and stage < stages - 1:
                    stage, kept = stage + 1, []
                    epsilon *= alpha if stage < stages - 1 else 1
        found.append(stage)
    return found, changes


@pytest.mark.slow
def test_a_run_switches_when_a_replay_of_its_losses_does():
    rule = {
        "every": 3, "epsilon": 0.3, "alpha": 0.5, "window": 3, "scale_epochs": 4
    }  # fmt: skip
    skipped = (4, 17, 18)
    run = record(pfq(**STAGES, **rule), 60, skipped)
    # A schedule sees the loss of a step in the call after it.
    losses = [None if not s.stats.finite else float(s.stats.loss) for s in run]
    assert [t - 1 for t, loss in enumerate(losses) if loss is None][1:] == [*skipped]
    stages, changes = replay(losses, **rule, stages=4)
    for place, operand in (
        ("forward_bits", "weight"),
        ("forward_bits", "activation"),
        ("gradient_bits", "gradient"),
    ):
        expected = [STAGES[place][stage] for stage in stages]
        for path in ("blocks", "last"):
            bits = [step.bits[path][operand] for step in run]
            assert all((b == e).all() for b, e in zip(bits, expected, strict=True))
    assert len(set(stages)) >= 3
    logged = [step.signals["loss_change"]["blocks"] for step in run]
    assert logged[0].shape == (2,)
    found = [x[0] for x in logged if not np.isnan(x[0])]
    # Each is logged until the next epoch ends.
    distinct = [x for x, before in zip(found, [0, *found], strict=False) if x != before]
    np.testing.assert_allclose(distinct, changes[: len(distinct)], rtol=1e-4)
    assert len(distinct) > 5


def test_a_call_without_a_finite_loss_leaves_the_state_as_it_was():
    schedule = pfq(**STAGES, every=2)
    state = schedule.init(Table((), ()))
    _, state = schedule.update(jnp.int32(0), shown(2.0), state)
    for seen in (shown(1.0, finite=False), shown(np.nan), shown(np.inf)):
        _, after = schedule.update(jnp.int32(1), seen, state)
        jax.tree.map(np.testing.assert_array_equal, state, after)


@pytest.mark.parametrize("loss", [0.0, 1.0, -1.0, 3e38])
def test_a_constant_loss_has_levelled_off(loss):
    stages = [stage for stage, _ in follow(pfq(**STAGES, every=1), [loss] * 20)]
    assert stages == [0] * 4 + [1] * 5 + [2] * 5 + [3] * 6


@pytest.mark.slow
def test_it_keeps_the_contract():
    check_schedule(pfq(**STAGES, every=1, window=2, epsilon=1e3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_bits": [8]}, "with bits in both lists"),
        ({"forward_bits": [], "gradient_bits": []}, "one or more stages"),
        ({"forward_bits": [3, 4, 6, 99]}, "must lie in 1 to 24"),
        ({"every": 0}, "every=0"),
        ({"window": 1}, "window=1"),
        ({"scale_epochs": 0}, "scale_epochs=0"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"alpha": 1.5}, "alpha=1.5"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pfq(**{**STAGES, "every": 1, **arguments})
