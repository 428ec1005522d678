"""The square root of three: when the backward products switch, by hand and in a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import TensorStats, Watch
from adaprec_jax.plan import bits
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.schedules import sqrt3
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.closed_runs import follow, rows

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

INT3, BFLOAT16 = (
    SharedPrecision(*[formats.get(name)] * 3) for name in ("int3", "bfloat16")
)
# Of the noise of the small run; at the square root of three nothing would switch.
MULTIPLE = {"run": 3.6, "layer": 2.3}


@pytest.fixture(scope="module", params=["run", "layer"])
def run(request):
    schedule = sqrt3(
        INT3,
        BFLOAT16,
        per=request.param,
        multiple=MULTIPLE[request.param],
        decay=0.5,
        patience=2,
        every=2,
    )
    return request.param, follow(schedule, 30, skipped=(5,))


@pytest.mark.slow
def test_the_switch_of_a_run_is_where_the_averages_say(run):
    per, turns = run
    means, below = np.full((2, 3), np.nan), np.zeros(3, int)
    raised, seen = np.zeros(3, bool), set()
    for step, turn in enumerate(turns):
        if turn.stats.finite and step % 2 == 0:
            sums = [
                rows(
                    {
                        path: np.float64(getattr(tensors["gradient"], field))
                        for path, tensors in turn.stats.tensors.items()
                    }
                )
                for field in ("elements", "sum_squares", "noise_squares")
            ]
            if per == "run":
                sums = [np.full(3, s.sum()) for s in sums]
            now = np.sqrt([sums[1] / sums[0], sums[2] / sums[0]])
            averaged = np.where(np.isnan(means), now, 0.5 * means + 0.5 * now)
            means = np.where(raised, means, averaged)
            stalled = means[0] < MULTIPLE[per] * means[1]
            below = np.where(raised, below, np.where(stalled, below + 1, 0))
            raised = raised | (below >= 2)
        np.testing.assert_array_equal(turn.state.switch.raised, raised)
        width = formats.bits(formats.Format(*turn.formats))
        assert (width[:, :2] == 3).all()  # forward stays
        expected = np.where(raised, 16, 3)[:, None] + np.zeros((3, 4), int)
        np.testing.assert_array_equal(width[:, 2:], expected)
        np.testing.assert_allclose(turn.signals["gradient_rms"], means[0], rtol=1e-4)
        np.testing.assert_allclose(turn.signals["gradient_noise"], means[1], rtol=1e-4)
        seen.add(tuple(raised))
    assert len(seen) == 2 if per == "run" else len(seen) > 2


def measured(squares, noise, *, elements=4.0, finite=True):
    """Statistics of a gradient that is alike in all contractions."""
    here = table()
    stats = empty(here, Watch(("rms", "sqnr_db"), ("gradient",)))
    numbers = {"elements": elements, "sum_squares": squares, "noise_squares": noise}
    fill = lambda c: TensorStats(
        **{field: jnp.full(c.axes, x, jnp.float32) for field, x in numbers.items()}
    )
    tensors = {c.name: {"gradient": fill(c)} for c in here.contractions}
    return stats._replace(tensors=tensors, finite=jnp.bool_(finite))


def switches(noises, **settings) -> list[bool]:
    """Whether the last layer is raised in the calls of a run, |g|^2 being 3."""
    schedule = sqrt3(INT3, BFLOAT16, **{"every": 1, **settings})
    state, raised = schedule.init(table()), []
    for step, noise in enumerate(noises):
        stats = noise if isinstance(noise, tuple) else measured(3.0, noise)
        plan, state = schedule.update(jnp.int32(step), stats, state)
        entry = bits(plan)["Block/Dense_0"]
        raised.append(int(entry.wgrad.gradient[2]) == 16)
        assert {int(width) for width in entry.forward.weight} == {3}
    return raised


@pytest.mark.parametrize("per", ["run", "layer"])
@pytest.mark.slow
def test_the_limit_is_three_times_the_variance_of_the_noise(per):
    settings = {"per": per, "decay": 0.0, "patience": 1}
    assert switches([0.99, 0.99, 1.01, 0.5], **settings) == [False, False, True, True]


def test_patience_counts_checks_in_a_row():
    found = switches([1.1, 1.1, 0.9, 1.1, 1.1, 1.1], decay=0.0, patience=3)
    assert found == [False] * 5 + [True]


def test_the_average_rides_out_a_spike():
    """0.9 of the first and 0.1 of a tenfold noise: sqrt(0.1) 0.9 + sqrt(10) 0.1 < 1."""
    assert switches([0.1, 10.0], decay=0.9, patience=1) == [False, False]
    assert switches([0.1, 10.0], decay=0.0, patience=1) == [False, True]


def test_what_is_not_known_counts_for_nothing():
    unknown = [
        measured(np.nan, 9.0),
        measured(3.0, np.inf),
        measured(3.0, 9.0, finite=False),
        measured(0.0, 0.0, elements=0.0),
    ]
    found = switches([1.1, *unknown, 1.1], decay=0.9, patience=2)
    assert found == [False] * 5 + [True]


def test_a_gradient_of_zeros_is_not_below_its_noise():
    assert switches([measured(0.0, 0.0)] * 3, patience=1) == [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize("per", ["run", "layer"])
def test_the_contract_is_kept(per):
    check_schedule(sqrt3(INT3, BFLOAT16, per=per, every=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per": "tensor"}, "per must be 'run' or 'layer', got 'tensor'"),
        ({"multiple": 0.0}, "multiple must be a number above 0, got 0.0"),
        ({"decay": 1.0}, "decay must lie in 0 to below 1, got 1.0"),
        ({"patience": 0}, "Expected patience and every of at least 1, got patience=0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sqrt3(INT3, BFLOAT16, **settings)


def test_statistics_that_were_not_gathered_are_missed():
    schedule = sqrt3(INT3, BFLOAT16)
    nothing = empty(table(), Watch(("rms",), ("weight",)))
    with pytest.raises(ValueError, match="reads elements of the gradient of"):
        schedule.update(jnp.int32(0), nothing, schedule.init(table()))
