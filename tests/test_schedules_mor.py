"""MoR: the low format where it errs little, against a replay from measured errors."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import TensorStats, Watch
from adaprec_jax.plan import describe
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.schedules import mor, stack
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.closed_runs import follow, rows

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

INT4, INT5, BFLOAT16 = (formats.get(name) for name in ("int4", "int5", "bfloat16"))
HIGH = SharedPrecision(*[BFLOAT16] * 3)
THRESHOLD = 0.12  # between the errors of the layers, and of the steps, of the small run
SCHEDULE = mor(SharedPrecision(INT4, INT5, INT4), HIGH, threshold=THRESHOLD, every=2)
# The operands of the six roundings that are of each role.
OPERANDS = {"activation": (0, 5), "weight": (1, 3), "gradient": (2, 4)}


@pytest.fixture(scope="module")
def turns():
    return follow(SCHEDULE, 24, skipped=(3, 8))


@pytest.mark.slow
def test_the_decisions_of_a_run_are_those_of_the_measured_errors(turns):
    low = {role: np.zeros(3, bool) for role in OPERANDS}
    plans = set()
    for step, turn in enumerate(turns):
        for role, operands in OPERANDS.items():
            name = "int5" if role == "weight" else "int4"
            if turn.stats.finite and step % 2 == 0:
                sums = {
                    path: tensors[role]
                    for path, tensors in turn.stats.what_if[name].items()
                }
                noise = rows({path: s.noise_squares for path, s in sums.items()})
                squares = rows({path: s.sum_squares for path, s in sums.items()})
                low[role] = np.sqrt(noise / squares) <= THRESHOLD
            bits = np.where(low[role], 5 if role == "weight" else 4, 16)
            for operand in operands:
                found = formats.bits(formats.Format(*turn.formats))[:, operand]
                np.testing.assert_array_equal(found, bits, err_msg=f"{step} {role}")
        plans.add(tuple(tuple(low[role]) for role in OPERANDS))
    assert len(plans) >= 3
    assert {flag for plan in plans for flags in plan for flag in flags} == {True, False}


@pytest.mark.slow
def test_the_errors_are_logged(turns):
    last = turns[-1]
    for role in OPERANDS:
        logged = last.signals[f"relative_error_{role}"]
        held = rows({p: t[role].error for p, t in last.state.tensors.items()})
        np.testing.assert_array_equal(logged, held)
        assert (logged > 0).all()


@pytest.mark.slow
def test_a_skipped_step_decides_nothing(turns):
    """The fourth and the ninth overflow, so calls 4 and 9 learn nothing."""
    for skipped in (3, 8):
        after = turns[skipped + 1]
        for field, before in zip(after.formats, turns[skipped].formats, strict=True):
            np.testing.assert_array_equal(field, before)
    assert not np.array_equal(turns[2].formats.mantissa_bits, turns[1].formats[0])


def measured(x: np.ndarray):
    """Statistics in which every tensor is `x`, its E4M3 error by ml_dtypes."""
    rounded = x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    squares, noise = np.sum(x**2), np.sum((x - rounded) ** 2)
    here = table()
    stats = empty(here, Watch(("sqnr_db",), what_if={"float8_e4m3fn": INT4}))
    fill = lambda c: TensorStats(
        sum_squares=jnp.full(c.axes, squares, jnp.float32),
        noise_squares=jnp.full(c.axes, noise, jnp.float32),
    )
    tensors = {c.name: dict.fromkeys(OPERANDS, fill(c)) for c in here.contractions}
    return stats._replace(
        tensors=tensors, what_if={"float8_e4m3fn": tensors}, finite=jnp.bool_(True)
    )


@pytest.mark.parametrize(
    ("spread", "chosen"), [(0.0, "float8_e4m3fn"), (7, "bfloat16")]
)
def test_e4m3_holds_a_normal_tensor_and_not_one_of_tiny_numbers(spread, chosen):
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32) * 100
    x = (x * 2.0**-spread / (1000 if spread else 1)).astype(np.float32)
    fp8 = SharedPrecision(*[formats.get("float8_e4m3fn")] * 3)
    schedule = mor(fp8, HIGH)
    plan, _ = schedule.update(jnp.int32(0), measured(x), schedule.init(table()))
    assert describe({"Dense_0": plan["Dense_0"]}) == (
        f"Dense_0: activation {chosen}, weight {chosen}, gradient {chosen}"
    )


def test_an_activation_in_the_weight_slot_takes_the_activations_format():
    schedule = mor(
        SharedPrecision(formats.get("int3"), INT5, INT4), HIGH, threshold=10.0
    )
    stats = measured(np.ones(2, np.float32))
    of = stats.tensors
    stats = stats._replace(what_if={"int3": of, "int4": of, "int5": of})
    plan, _ = schedule.update(jnp.int32(0), stats, schedule.init(table()))
    assert describe(plan).splitlines() == [
        "Dense_0: activation int3, weight int5, gradient int4",
        "Attention: activation int3, weight int3, gradient int4",
        "Block/Dense_0: activation int3, weight int5, gradient int4",
    ]


@pytest.mark.slow
def test_the_contract_is_kept():
    check_schedule(mor(SharedPrecision(*[INT4] * 3), HIGH, threshold=0.5, every=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold must be a number above 0, got 0.0"),
        ({"threshold": float("nan")}, "threshold must be a number above 0, got nan"),
        ({"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mor(HIGH, HIGH, **settings)


def test_statistics_that_were_not_gathered_are_missed():
    with pytest.raises(ValueError, match="reads the error of int4 in the activation"):
        SCHEDULE.update(jnp.int32(0), empty(table()), SCHEDULE.init(table()))


def test_runs_with_other_formats_are_no_pack():
    """A pack would run all of them under the formats of the first."""
    contractions = table()
    fp8, wide, wider = (
        SharedPrecision(*[formats.get(name)] * 3)
        for name in ("float8_e4m3fn", "bfloat16", "float32")
    )
    states = [mor(fp8, high).init(contractions) for high in (wide, wider)]
    with pytest.raises(ValueError, match="Only states of one structure"):
        stack(states)
    stack([mor(fp8, wide, threshold=t).init(contractions) for t in (0.1, 0.2)])
