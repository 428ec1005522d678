"""Bits by the shift of the mean: published values, and a replay from the statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.contractions import Watch, value_and_grad
from adaprec_jax.contractions.statistics import ROLES
from adaprec_jax.contractions.table import Table
from adaprec_jax.plan import integers
from adaprec_jax.schedules import qem
from adaprec_jax.schedules.qem import mean_shift
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.recorded_run import record

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

X = [1, 0.5, 0.25, 0.01, 0.001, -0.002, 0.0004, 3]


@pytest.mark.parametrize(("bits", "diff"), [(4, 0.0776486), (8, 0.0040528)])
def test_the_error_measure_is_the_published_one(bits, diff):
    """As gathered from a product, of a format that is not in force."""
    watch = Watch(
        ("mean_abs", "mean_abs_rounded"), what_if={"n": formats.integer(bits)}
    )
    step = value_and_grad(lambda p, x: (jnp.sum(x @ p["w"]), None), watch=watch)
    x = jnp.asarray([X], jnp.float32)
    *_, seen = step({"w": jnp.ones((8, 2))}, x, plan={"w": integers(16, 16)})
    found = mean_shift(seen.what_if["n"]["w"]["activation"])
    assert float(found) == pytest.approx(diff, abs=1e-6)


def rounded_mean(x, bits):
    """Mean of |x| rounded to integers of a power-of-two scale, and its logarithm."""
    s = np.ceil(np.log2(np.abs(x).max() / (2.0 ** (bits - 1) - 1)))
    return np.abs(np.round(x / 2.0**s) * 2.0**s).mean(), s


def replay(run, rule, every):
    """Bits of each tensor at each step, in float64, from the words of the rule."""
    found, shifts, intervals = [], [], set()
    state = {}  # (path, role, layer) -> bits, average, due, diff
    for t, step in enumerate(run):
        if step.stats.finite and t % every == 0:
            for key, means, largest in tensors(step.stats):
                bits, m, due, _ = state.get(key, (8, None, 0, np.nan))
                if t < due:
                    continue
                mean = means[0]
                diff = {
                    n: np.log2(abs(mean - means[n]) / mean + 1) for n in (8, 16, 24)
                }
                while diff[bits] > rule["threshold"] and bits < 24:
                    bits += 8
                    m = m if m is None else m - 8
                s = np.ceil(np.log2(largest / (2.0 ** (bits - 1) - 1)))
                m = s if m is None else m
                slow = max(
                    rule["alpha"] * abs(s - m), rule["delta"] * diff[bits] ** 2, 1e-300
                )
                interval = np.clip(
                    round(rule["beta"] / slow - rule["gamma"]), 1, rule["epoch"]
                )
                if t < int(rule["warmup_fraction"] * rule["epoch"]):
                    interval = 1
                if t >= rule["epoch"]:
                    interval = rule["epoch"]
                intervals.add(int(interval))
                m = rule["alpha"] * s + (1 - rule["alpha"]) * m
                state[key] = (bits, m, t + interval, diff[bits])
        found.append({key: each[0] for key, each in state.items()})
        shifts.append({key: each[3] for key, each in state.items()})
    return found, shifts, intervals


def tensors(stats):
    """Yields what was seen of each tensor of each layer."""
    for path, roles in stats.what_if["int8"].items():
        for role in ROLES:
            for layer in np.ndindex(roles[role].amax.shape):
                asked = {n: stats.what_if[f"int{n}"][path][role] for n in (8, 16, 24)}
                of = lambda field, n=8, asked=asked, layer=layer: float(
                    np.float64(getattr(asked[n], field)[layer])
                )
                means = {n: of("sum_abs_rounded", n) / of("elements") for n in asked}
                means[0] = of("sum_abs") / of("elements")
                yield (path, role, layer), means, of("amax")


RULE = {
    "epoch": 40, "warmup_fraction": 0.1, "threshold": 0.0015, "alpha": 0.04,
    "beta": 3.0, "gamma": 2.0, "delta": 3e6,
}  # fmt: skip
EVERY = 2


@functools.cache
def trained():
    return record(qem(**RULE, every=EVERY), 60, (5, 8))


@pytest.mark.slow
def test_a_run_has_the_bits_that_a_replay_of_its_statistics_has():
    run, rule, every = trained(), RULE, EVERY
    expected, shifts, intervals = replay(run, rule, every)
    for step, bits, shift in zip(run, expected, shifts, strict=True):
        for (path, role, layer), width in bits.items():
            assert step.bits[path][role][layer] == width
            np.testing.assert_allclose(
                step.signals[f"mean_shift_{role}"][path][layer],
                shift[path, role, layer],
                rtol=1e-3,
                atol=3e-6,  # of float32 sums that nearly cancel
            )
    assert set(expected[-1].values()) == {8, 16}
    assert len(expected[-1]) == 9
    # Of every look, of an epoch, and some in between.
    assert len(intervals) >= 3
    assert {1, 40} < intervals


@pytest.mark.slow
def test_what_the_step_gathers_is_what_numpy_rounds():
    # Statistics shown at a step are of the step before; so were those weights.
    before, step = trained()[3:5]
    weight = np.float64(before.weights["last"].value)
    for bits in (8, 16, 24):
        sums = step.stats.what_if[f"int{bits}"]["last"]["weight"]
        mean, _ = rounded_mean(weight, bits)
        np.testing.assert_allclose(sums.sum_abs_rounded / sums.elements, mean, 1e-5)


def statistics(mean, means, largest):
    """Statistics in which every tensor has these means, before rounding and after."""
    nothing = empty(table(), qem(epoch=1).reads)

    def filled(rounded):
        def sums(leaf):
            ones = jnp.ones_like(leaf.elements)
            return leaf._replace(
                elements=ones,
                sum_abs=ones * mean,
                sum_abs_rounded=ones * rounded,
                amax=ones * largest,
            )

        return {
            path: {role: sums(leaf) for role, leaf in roles.items()}
            for path, roles in nothing.tensors.items()
        }

    what_if = {
        f"int{n}": filled(jnp.float32(x))
        for n, x in zip((8, 16, 24), means, strict=True)
    }
    return nothing._replace(what_if=what_if, finite=jnp.bool_(True))


@pytest.mark.parametrize(
    ("mean", "means", "bits"),
    [
        (1.0, [1.0, 1.0, 1.0], 8),
        (1.0, [0.9, 1.0, 1.0], 16),
        (1.0, [0.9, 0.9, 1.0], 24),
        (1.0, [0.9, 0.9, 0.9], 24),
        (0.0, [0.0, 0.0, 0.0], 8),
        (np.nan, [0.0, 0.0, 0.0], 8),
        (np.inf, [np.inf, 1.0, 1.0], 8),
    ],
)
def test_bits_grow_until_the_shift_is_small(mean, means, bits):
    schedule = qem(epoch=10)
    seen = statistics(mean, means, 1.0)
    _, state = jax.jit(schedule.update)(jnp.int32(0), seen, schedule.init(table()))
    found = {int(b) for tensor in widths(state) for b in np.ravel(tensor)}
    assert found == {bits}


def widths(state):
    return [t.bits for roles in state.tensors.values() for t in roles.values()]


@pytest.mark.parametrize("largest", [127 / 64, 127.0, 64.0, 1e-30])
def test_the_scale_is_the_smallest_power_of_two_that_holds_the_tensor(largest):
    schedule = qem(epoch=10)
    seen = statistics(1.0, [1.0] * 3, largest)
    _, state = schedule.update(jnp.int32(0), seen, schedule.init(table()))
    s = float(state.tensors["Dense_0"]["weight"].average)
    assert 2.0**s * 127 >= np.float32(largest) > 2.0 ** (s - 1) * 127


@pytest.mark.slow
def test_it_keeps_the_contract():
    check_schedule(qem(epoch=4, every=2))


def test_statistics_that_do_not_answer_are_refused():
    schedule = qem(epoch=4)
    with pytest.raises(
        ValueError, match=r"did not gather.*stats\.empty\(table, schedule\.reads\)"
    ):
        schedule.update(
            jnp.int32(0), empty(Table((), ())), schedule.init(Table((), ()))
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 0}, "epoch=0"),
        ({"every": 0}, "every=0"),
        ({"warmup_fraction": 1.5}, "warmup_fraction=1.5"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"gamma": -1.0}, "gamma=-1.0"),
        ({"delta": -1.0}, "delta=-1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        qem(**{"epoch": 10, **arguments})
