"""SNIP: the greedy solution against all solutions, and a run against a replay."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adaprec_jax import formats
from adaprec_jax.contractions.statistics import Watch
from adaprec_jax.plan import bits
from adaprec_jax.schedules import snip
from adaprec_jax.schedules.snip import greedy as eager_greedy
from adaprec_jax.stats import empty
from adaprec_jax.testing import check_schedule, table
from tests.closed_runs import follow, rows
from tests.small_run import BATCH, CLASSES, FEATURES, LAYERS

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

FP4, FP8 = (formats.get(name) for name in ("float4_e2m1fn", "float8_e4m3fn"))
greedy = jax.jit(eager_greedy)
SHARE = 0.6
SCHEDULE = snip(FP4, FP8, share=SHARE, every=4)
# The roundings of each product, as columns of a packed plan.
PRODUCTS = {"forward": (0, 1), "dgrad": (2, 3), "wgrad": (4, 5)}
MACS = np.array([FEATURES * FEATURES] * LAYERS + [FEATURES * CLASSES]) * BATCH


@pytest.fixture(scope="module")
def turns():
    return follow(SCHEDULE, 41, skipped=(11,))


def losses(stats) -> dict[str, np.ndarray]:
    """What each product of each layer loses, from the sums, in float64."""

    def sums(fmt, role, field):
        return rows(
            {
                path: np.float64(getattr(tensors[role], field))
                for path, tensors in stats.what_if[fmt].items()
            }
        )

    def squared_error(fmt, role):
        return sums(fmt, role, "noise_squares") / sums(fmt, role, "sum_squares")

    def lost(*roles):
        by_format = [
            np.sqrt(sum(squared_error(fmt, role) for role in roles))
            for fmt in ("float4_e2m1fn", "float8_e4m3fn")
        ]
        return by_format[0] - by_format[1]

    a, w, g = (
        np.sqrt(sums("float4_e2m1fn", role, "sum_squares"))
        for role in ("activation", "weight", "gradient")
    )
    effect = g * a * w / np.sqrt(FEATURES)  # both products sum over the features
    return {
        "forward": effect / effect.mean() * lost("activation", "weight"),
        "dgrad": lost("gradient", "weight"),
        "wgrad": lost("gradient", "activation"),
    }


@pytest.mark.slow
def test_a_run_takes_the_items_of_least_loss_per_work_until_the_share_is_met(turns):
    low = {product: np.zeros(3, bool) for product in PRODUCTS}
    solutions = set()
    for step, turn in enumerate(turns):
        if turn.stats.finite and step % 4 == 0:
            found = losses(turn.stats)
            items = [
                (found[product][layer] / MACS[layer], product, layer)
                for product in PRODUCTS
                for layer in range(3)
            ]
            low = {product: np.zeros(3, bool) for product in PRODUCTS}
            done = 0
            for _, product, layer in sorted(items):
                if done < SHARE * 3 * MACS.sum():
                    low[product][layer] = True
                    done += MACS[layer]
            for product, expected in found.items():
                logged = turn.state.products[product].loss
                np.testing.assert_allclose(logged, expected, rtol=2e-4, atol=1e-6)
        for product, operands in PRODUCTS.items():
            width = formats.bits(formats.Format(*turn.formats))[:, operands]
            expected = np.where(low[product], 4, 8)[:, None]
            np.testing.assert_array_equal(width, expected + np.zeros((3, 2), int))
        solutions.add(tuple(map(tuple, low.values())))
    assert len(solutions) >= 3
    assert turns[12].stats.finite == np.False_
    for before, after in zip(turns[11].formats, turns[12].formats, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_the_share_is_met_from_the_first_statistics_on_by_less_than_an_item(turns):
    for step, turn in enumerate(turns):
        width = formats.bits(formats.Format(*turn.formats))[:, [0, 2, 4]]
        share = np.sum((width == 4) * MACS[:, None]) / (3 * MACS.sum())
        if step < 4:
            assert share == 0
        else:
            assert SHARE <= share < SHARE + MACS.max() / (3 * MACS.sum())


@pytest.mark.slow
def test_the_estimates_are_logged(turns):
    for product in PRODUCTS:
        logged = turns[-1].signals[f"{product}_loss"]
        np.testing.assert_array_equal(logged, turns[-1].state.products[product].loss)


def least_loss(loss, macs, share) -> float:
    """The least loss of all subsets that hold the share."""
    subsets = itertools.product([0, 1], repeat=len(loss))
    target = share * sum(macs)
    return min(
        float(np.dot(taken, loss)) for taken in subsets if np.dot(taken, macs) >= target
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=7, max_size=7), st.sampled_from(range(11)))
def test_greedy_is_the_best_of_all_subsets_where_items_are_equally_large(loss, tenths):
    taken = greedy(
        jnp.asarray(loss, jnp.float32), jnp.ones(len(loss)), jnp.float32(tenths / 10)
    )
    taken = np.asarray(taken)
    assert np.dot(taken, loss) == least_loss(loss, np.ones(len(loss)), tenths / 10)
    assert np.sum(taken) == np.ceil(tenths * len(loss) / 10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=7, max_size=7),
    st.sampled_from(range(11)),
)
def test_greedy_meets_the_share_within_one_item_of_the_best(items, tenths):
    loss, macs = np.asarray(items, np.float32).T
    share = tenths / 10
    taken = np.asarray(greedy(jnp.asarray(loss), jnp.asarray(macs), jnp.float32(share)))
    target = share * macs.sum()
    assert np.dot(taken, macs) >= target - 1e-3
    # Without its worst item the solution is the best of the linear programme's.
    if taken.any():
        worst = max(np.flatnonzero(taken), key=lambda i: loss[i] / macs[i])
        rest = np.dot(taken, loss) - loss[worst]
        assert rest <= least_loss(loss, macs, share) + 1e-3


@pytest.mark.parametrize(("share", "width"), [(0.0, 8), (1.0, 4)])
def test_no_share_and_all_of_it(share, width):
    schedule = snip(FP4, FP8, share=share)
    names = ("float4_e2m1fn", "float8_e4m3fn")
    watch = Watch(("rms", "sqnr_db"), what_if=dict.fromkeys(names, FP4))
    stats = empty(table(), watch)
    ones = stats._replace(finite=jnp.bool_(True))
    tensors = {
        path: {role: sums._replace(**dict.fromkeys(
            ("elements", "sum_squares", "noise_squares"), jnp.ones_like(sums.elements)
        )) for role, sums in of.items()}
        for path, of in stats.tensors.items()
    }  # fmt: skip
    ones = ones._replace(what_if=dict.fromkeys(names, tensors))
    plan, _ = schedule.update(jnp.int32(0), ones, schedule.init(table()))
    for entry in bits(plan).values():
        assert {int(w) for pair in entry for leaf in pair for w in np.ravel(leaf)} == {
            width
        }
    unknown, _ = schedule.update(jnp.int32(0), stats, schedule.init(table()))
    assert int(bits(unknown)["Dense_0"].forward.weight) == 8


@pytest.mark.slow
def test_the_contract_is_kept():
    check_schedule(snip(FP4, FP8, share=0.5, every=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.1}, "share must lie in 0 to 1, got 1.1"),
        ({"share": float("nan")}, "share must lie in 0 to 1, got nan"),
        ({"share": 0.5, "every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        snip(FP4, FP8, **arguments)


def test_statistics_that_were_not_gathered_are_missed():
    with pytest.raises(
        ValueError, match=r"reads .* of float4_e2m1fn in the activation"
    ):
        SCHEDULE.update(jnp.int32(0), empty(table()), SCHEDULE.init(table()))
