"""What every schedule promises, over one table; then each against its own oracle."""

import functools
import importlib
import inspect
import operator
import pkgutil
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adaprec_jax import formats, plan as plans, schedules
from adaprec_jax.bit_counts import CYCLIC, cyclic_bits
from adaprec_jax.contractions.statistics import TensorStats, Watch
from adaprec_jax.contractions.table import Table
from adaprec_jax.plan import integers
from adaprec_jax.precision import SharedPrecision, separate
from adaprec_jax.schedules import (
    Schedule,
    by_bottleneck,
    changed,
    clip,
    constant,
    cpt,
    cyclic,
    deficit,
    delay,
    hold,
    join,
    late_switch,
    per_layer,
    piecewise,
    shuffled,
    stack,
    tabulated,
    two_threshold,
    warmup,
)
from adaprec_jax.stats import empty, sqnr_db
from adaprec_jax.testing import table

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

TABLE = table()
BFLOAT16 = SharedPrecision(*[formats.get("bfloat16")] * 3)
CPT = cpt(min_bits=3, max_bits=8, cycles=2, steps=20, gradient_bits=8)
CONTROLLER = functools.partial(
    two_threshold,
    low=0.25,
    high=0.5,
    min_bits=3,
    max_bits=6,
    start_bits=4,
    gradient_bits=8,
    every=1,
)


class Member(NamedTuple):
    schedule: Schedule
    widths: set[int]  # all that its plans may hold


SCHEDULES = {
    "constant": Member(constant(integers(4, 8)), {4, 8}),
    "piecewise": Member(
        piecewise([3, 7], [integers(b, 8) for b in (3, 5, 6)]), {3, 5, 6, 8}
    ),
    "cpt": Member(CPT, {3, 4, 5, 6, 7, 8}),
    **{
        name: Member(
            cyclic(name, min_bits=3, max_bits=6, cycles=2, steps=12, gradient_bits=8),
            {3, 4, 5, 6, 8},
        )
        for name in CYCLIC[1:]
    },
    "shuffled": Member(shuffled(CPT, seed=1), {3, 4, 5, 6, 7, 8}),
    "warmup": Member(warmup(BFLOAT16, integers(4, 8), steps=5), {4, 8, 16}),
    "late_switch": Member(
        late_switch(integers(4, 8), BFLOAT16, steps=20, fraction=0.7), {4, 8, 16}
    ),
    "late_switch forward": Member(
        late_switch(
            integers(4, 8), BFLOAT16, steps=20, fraction=0.7, products="forward"
        ),
        {4, 8, 16},
    ),
    "by_bottleneck": Member(
        by_bottleneck("h100", integers(4, 8), BFLOAT16), {4, 8, 16}
    ),
    "deficit": Member(
        deficit(integers(3, 8), integers(8, 8), start=2, length=5), {3, 8}
    ),
    "two_threshold": Member(CONTROLLER(patience=2, every=3), {3, 4, 5, 6, 8}),
    "join": Member(
        join([CPT, CONTROLLER(), constant(BFLOAT16)], [4, 12]), {*range(3, 9), 16}
    ),
    "per_layer": Member(
        per_layer(
            {"first": constant(BFLOAT16), "Block/**@-1": CONTROLLER()}, default=CPT
        ),
        {3, 4, 5, 6, 7, 8, 16},
    ),
    "changed": Member(
        changed(
            CONTROLLER(), "Block/**@1:", {"weight": formats.integer(7)}, start=2, end=9
        ),
        {3, 4, 5, 6, 7, 8},
    ),
    "clip": Member(clip(CONTROLLER(), min_bits=4, max_bits=5), {4, 5}),
    "delay": Member(delay(CONTROLLER(), 3), {3, 4, 5, 6, 8}),
    "hold": Member(hold(CONTROLLER(), 4), {3, 4, 5, 6, 8}),
}
CLOSED_LOOP = (
    "two_threshold", "join", "per_layer", "changed", "clip", "delay", "hold",
)  # fmt: skip
# The ten cyclic ones differ in their tables alone.
each_schedule = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in CYCLIC[2:] else name
        for name in SCHEDULES
    ],
)


EMPTY = empty(TABLE)


def filled(value: float, *, finite: bool = True):
    """Statistics whose every number is `value`."""
    full = lambda leaf: jnp.asarray(np.full(leaf.shape, value, np.float32))
    stats = jax.tree.map(full, EMPTY)
    return stats._replace(finite=jnp.bool_(finite))


def measured(underflow, *, finite: bool = True):
    """Statistics in which the given shares of every tensor underflow, by path."""

    def sums(share) -> TensorStats:
        zero, one = (jnp.asarray(np.full_like(share, x, np.float32)) for x in (0, 1))
        share = jnp.asarray(np.asarray(share, np.float32))
        return TensorStats(*[zero] * len(TensorStats._fields))._replace(
            elements=one, underflows=share
        )

    tensors = {
        path: dict.fromkeys(("activation", "weight", "gradient"), sums(share))
        for path, share in underflow.items()
    }
    return filled(1.0)._replace(tensors=tensors, finite=jnp.bool_(finite))


STEPS = 12


@functools.cache
def random_run(seed: int = 0) -> list:
    """Statistics of a run in which now and then a step is skipped."""
    rng = np.random.default_rng(seed)
    return [
        measured(
            {c.name: rng.uniform(size=c.axes) for c in TABLE.contractions},
            finite=rng.uniform() > 0.2,
        )
        for _ in range(STEPS)
    ]


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def follow(update, state, run, first=0):
    """Returns the plans of a run, taken step by step, and the last state."""
    decided = []
    for step, stats in enumerate(run, first):
        plan, state = update(jnp.int32(step), stats, state)
        decided.append(on_host(plan))
    return decided, on_host(state)


@functools.cache
def jitted(name):
    return jax.jit(SCHEDULES[name].schedule.update)


@functools.cache
def scanned(name):
    """Returns `follow` of a whole run as one function; its plans are stacked."""
    update = SCHEDULES[name].schedule.update

    def whole(state, run, first=0):
        steps = jnp.arange(STEPS, dtype=jnp.int32) + jnp.int32(first)
        body = lambda state, x: update(*x, state)[::-1]
        return jax.lax.scan(body, state, (steps, run))[::-1]

    whole = jax.jit(whole)
    return lambda *args: on_host(whole(*args))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_sound(decided, allowed):
    """Every format of the stacked plans is finite and of an allowed width."""
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(decided))
    widths = jax.tree.leaves(plans.bits(decided))
    assert {int(width) for leaf in widths for width in np.ravel(leaf)} <= allowed


def forward_bits(decided, path="Dense_0") -> list:
    return [separate(plans.bits(p)[path]).forward.weight.tolist() for p in decided]


# What every schedule promises.


@each_schedule
def test_every_plan_covers_the_table_with_its_axes_and_within_bounds(name):
    schedule, allowed = SCHEDULES[name]
    plan, state = schedule.update(jnp.int32(0), EMPTY, schedule.init(TABLE))
    plans.check(plan, TABLE)
    decided, _ = scanned(name)(state, stacked(random_run()))
    assert_sound(decided, allowed)
    for c in TABLE.contractions:
        assert {leaf.shape[1:] for leaf in jax.tree.leaves(decided[c.name])} == {c.axes}


@each_schedule
def test_the_state_is_strongly_typed_and_keeps_its_structure(name):
    before = SCHEDULES[name].schedule.init(TABLE)
    plan, after = jitted(name)(jnp.int32(0), filled(0.6), before)
    typed = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert typed(before) == typed(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((before, plan, after)))


@each_schedule
def test_eager_jitted_and_scanned_updates_agree_to_the_bit_in_one_compilation(name):
    schedule = SCHEDULES[name].schedule
    run, start = random_run(), schedule.init(TABLE)
    update = jitted(name)
    compiled = update._cache_size()
    decided, end = follow(update, start, run)
    assert update._cache_size() <= compiled + 1  # tabulated schedules share a cache
    assert_equal(scanned(name)(start, stacked(run)), (stacked(decided), end))
    eager, _ = follow(schedule.update, start, run[:2])
    assert_equal(eager, decided[:2])


@each_schedule
def test_stacked_states_decide_under_vmap_as_each_does_alone(name):
    start, run = SCHEDULES[name].schedule.init(TABLE), stacked(random_run())
    _, later = scanned(name)(start, run)
    step, stats = jnp.int32(5), random_run()[0]
    pack = stack([start, later])
    mapped = on_host(jax.vmap(jitted(name), (None, None, 0))(step, stats, pack))
    for member, state in enumerate([start, later]):
        alone = on_host(jitted(name)(step, stats, state))
        assert_equal(jax.tree.map(operator.itemgetter(member), mapped), alone)


@each_schedule
def test_no_statistics_lead_out_of_the_bounds(name):
    schedule, allowed = SCHEDULES[name]
    for value in (0.0, 1.0, 3e38, np.inf, np.nan):
        run = stacked([filled(value)] * STEPS)
        decided, state = scanned(name)(schedule.init(TABLE), run)
        assert_sound(decided, allowed)
        assert_sound(scanned(name)(state, stacked(random_run()))[0], allowed)


@each_schedule
def test_a_skipped_step_changes_no_decision(name):
    """What a skipped step measured leaves no trace: as if nothing had been counted."""
    start = SCHEDULES[name].schedule.init(TABLE)

    def run(skipped):
        run = [stats if stats.finite else skipped for stats in random_run()]
        return scanned(name)(start, stacked(run))

    unmeasured = run(EMPTY)
    for value in (0.0, 1.0, 3e38, np.nan):
        assert_equal(run(filled(value, finite=False)), unmeasured)


@each_schedule
def test_a_run_goes_on_from_numpy_arrays_to_the_bit(name):
    update, state = jitted(name), SCHEDULES[name].schedule.init(TABLE)
    for step, stats in enumerate(random_run()):
        resumed = update(jnp.int32(step), stats, on_host(state))
        plan, state = update(jnp.int32(step), stats, state)
        assert_equal(resumed, (plan, state))


@pytest.mark.parametrize("name", CLOSED_LOOP)
def test_a_closed_loop_makes_different_plans_from_different_statistics(name):
    start = SCHEDULES[name].schedule.init(TABLE)
    decided = (scanned(name)(start, stacked(random_run(seed)))[0] for seed in range(3))
    assert len(set(map(plans.digest, decided))) == 3


# Step-only schedules against lists written by hand.


def test_cpt_is_the_published_sequence():
    golden = [3, 3, 3, 4, 5, 6, 6, 7, 8, 8]
    assert (
        cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=2, steps=20).tolist()
        == golden * 2
    )
    # floor(23 / 2) = 11 steps a cycle; the 23rd begins a third.
    bits = cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=2, steps=23).tolist()
    assert bits[:11] == bits[11:22]
    assert bits[22] == 3


# One cycle of growth, or a fall and a growth, of ten steps each from 3 to 8 bits.
GOLDEN = {
    "CR": "3334566788 3334566788",
    "LR": "3444566678 3444566678",
    "ER": "3566778888 3566778888",
    "RR": "3333334445 3333334445",
    "CT": "8887665433 3334566788",
    "ETH": "8888877665 3566778888",
    "RTH": "8544433333 3333334445",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_cyclic_schedule_is_the_published_sequence(name):
    found = cyclic_bits(name, min_bits=3, max_bits=8, cycles=2, steps=20)
    assert "".join(map(str, found)) == GOLDEN[name].replace(" ", "")
    settings = {"min_bits": 3, "max_bits": 8, "cycles": 2, "steps": 20}
    assert schedules.bits(name.lower(), **settings).tolist() == found.tolist()


def test_a_list_of_stages_has_bits_forward_and_backward():
    """The ablation of FracTrain: FW 3, 4, 6, 8 with BW 6, 6, 8, 8."""
    bits = [(3, 6), (4, 6), (6, 8), (8, 8)]
    schedule = piecewise([1, 3, 4], [integers(*pair) for pair in bits])
    update = jax.jit(schedule.update)
    decided, _ = follow(update, schedule.init(TABLE), [EMPTY] * 5)
    found = [
        (int(entry.activation), int(entry.gradient))
        for entry in (plans.bits(plan)["Dense_0"] for plan in decided)
    ]
    assert found == [bits[0], bits[1], bits[1], bits[2], bits[3]]


def test_cpt_plans_hold_the_sequence_and_the_gradients_keep_their_bits():
    decided, _ = follow(jitted("cpt"), CPT.init(TABLE), [EMPTY] * 23)
    golden = [3, 3, 3, 4, 5, 6, 6, 7, 8, 8] * 2
    assert forward_bits(decided) == golden + [8] * 3  # the last holds on
    assert {int(plans.bits(p)["Attention"].gradient) for p in decided} == {8}


INT3, INT5, INT6 = integers(3, 8), integers(5, 8), integers(6, 8)
BY_HAND = {
    "piecewise": (piecewise([2, 5], [INT3, INT5, INT6]), [3, 3, 5, 5, 5, 6, 6, 6]),
    "warmup": (warmup(BFLOAT16, INT3, steps=3), [16, 16, 16, 3, 3, 3, 3, 3]),
    "late_switch": (
        late_switch(INT3, BFLOAT16, steps=8, fraction=0.75),
        [3, 3, 3, 3, 3, 3, 16, 16],
    ),
    "late_switch at a step": (
        late_switch(INT3, BFLOAT16, steps=8, at=5),
        [3, 3, 3, 3, 3, 16, 16, 16],
    ),
    "deficit at first": (deficit(INT3, INT6, length=3), [3, 3, 3, 6, 6, 6, 6, 6]),
    "deficit later": (
        deficit(INT3, INT6, start=2, length=4),
        [6, 6, 3, 3, 3, 3, 6, 6],
    ),
    "no deficit": (deficit(INT3, INT6, start=2, length=0), [6] * 8),
    "tabulated": (
        tabulated([INT3, INT5], np.array([1, 0, 1])),
        [5, 3, 5, 5, 5, 5, 5, 5],
    ),
    "join": (
        join(
            [constant(INT6), piecewise([2], [INT3, INT5]), constant(BFLOAT16)], [2, 5]
        ),
        [6, 6, 3, 3, 5, 16, 16, 16],
    ),
    "per_layer, nothing left": (
        per_layer({"**": constant(INT5)}, default=hold(CONTROLLER(), 2)),
        [5] * 8,
    ),
    "delay": (delay(piecewise([2], [INT3, INT5]), 3), [3, 3, 3, 3, 3, 5, 5, 5]),
    "hold": (hold(piecewise([1, 4], [INT3, INT5, INT6]), 3), [3, 3, 3, 5, 5, 5, 6, 6]),
    "clip": (
        clip(
            piecewise([1, 2, 3], [INT3, INT5, INT6, BFLOAT16]), min_bits=4, max_bits=5
        ),
        [4, 5, 5, 16, 16, 16, 16, 16],
    ),
}


@pytest.mark.parametrize(("schedule", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_a_step_only_schedule_gives_the_list_written_by_hand(schedule, expected):
    run = [EMPTY] * len(expected)
    decided, _ = follow(jax.jit(schedule.update), schedule.init(TABLE), run)
    assert forward_bits(decided) == expected


def test_a_late_switch_of_the_forward_product_leaves_the_backward_products():
    schedule = SCHEDULES["late_switch forward"].schedule
    update, state = jitted("late_switch forward"), schedule.init(TABLE)
    decided, _ = follow(update, state, [EMPTY] * 2, first=13)
    before, after = (plans.bits(plan)["Dense_0"] for plan in decided)
    assert (tuple(before.forward), tuple(after.forward)) == ((4, 4), (16, 16))
    assert before[1:] == after[1:] == ((8, 4), (8, 4))


def test_a_shuffled_schedule_has_the_same_bits_in_another_order_fixed_by_its_seed():
    def run(schedule) -> list:
        state = schedule.init(TABLE)
        return forward_bits(follow(jitted("cpt"), state, [EMPTY] * 20)[0])

    original, *orders = map(run, [CPT, *(shuffled(CPT, seed) for seed in (1, 1, 2))])
    assert all(Counter(order) == Counter(original) for order in orders)
    assert original != orders[0] == orders[1] != orders[2]


def test_arms_with_different_tables_train_in_one_pack():
    arms = [
        constant(integers(8, 8)),
        cpt(min_bits=3, max_bits=8, cycles=2, steps=20, gradient_bits=6),
        shuffled(CPT, 3),
        piecewise([2, 5], [INT3, INT5, INT6]),
        deficit(INT3, INT6, start=4, length=9),
    ]
    pack = stack([arm.init(TABLE) for arm in arms])
    update = jax.jit(jax.vmap(arms[0].update, (None, None, 0)))
    decided, _ = follow(update, pack, [EMPTY] * 21)
    assert update._cache_size() == 1
    together = stacked(decided)["Block/Dense_0"].weight.mantissa_bits
    for member, arm in enumerate(arms):
        alone, _ = follow(jitted("cpt"), arm.init(TABLE), [EMPTY] * 21)
        mantissa_bits = stacked(alone)["Block/Dense_0"].weight.mantissa_bits
        np.testing.assert_array_equal(together[:, member], mantissa_bits)


# Combinators.


def test_rules_give_each_layer_its_schedule():
    schedule = per_layer(
        {"first": constant(BFLOAT16), "Block/Dense_*@-1": constant(INT6)},
        default=constant(INT3),
    )
    (plan,), _ = follow(schedule.update, schedule.init(TABLE), [EMPTY])
    assert sorted(plans.describe(plan).splitlines()) == [
        "Attention: activation int3, weight int3, gradient int8",
        "Block/Dense_0: activation [int3, int3, int6], weight [int3, int3, int6], "
        "gradient int8",
        "Dense_0: activation bfloat16, weight bfloat16, gradient bfloat16",
    ]


def test_a_rule_may_keep_a_contraction_in_an_entry_of_another_type():
    schedule = per_layer({"last": constant(separate(BFLOAT16))}, default=constant(INT3))
    (plan,), _ = follow(schedule.update, schedule.init(TABLE), [EMPTY])
    assert plan["Block/Dense_0"].wgrad.gradient.mantissa_bits.tolist() == [7] * 3
    assert plan["Dense_0"].weight.mantissa_bits == 1


def test_joined_schedules_learn_only_while_they_are_followed():
    schedule = join([CONTROLLER(), CONTROLLER()], [3])
    run = [measured(share("Dense_0", 0.9))] * 6
    decided, _ = follow(jax.jit(schedule.update), schedule.init(TABLE), run)
    assert forward_bits(decided) == [5, 6, 6, 5, 6, 6]


def test_clip_keeps_signs_and_leaves_other_formats_alone():
    clipped = {
        formats.get("uint8"): "uint5",
        formats.get("int2"): "int3",
        formats.integer(20): "int5",
        formats.integer(24, signed=False): "uint5",
        formats.get("float8_e5m2"): "float8_e5m2",
        formats.get("float32"): "float32",
        formats.get("float4_e2m1fn"): "float4_e2m1fn",
        formats.fixed_point(8, 4): "fixed<8,4>",
        formats.fixed_point(20, 4): "fixed<20,4>",
    }
    entries = [SharedPrecision(fmt, fmt, fmt) for fmt in clipped]
    steps = piecewise(range(1, len(entries)), entries)
    schedule = clip(steps, min_bits=3, max_bits=5)
    run = [filled(0.0)] * len(entries)
    decided, _ = follow(jax.jit(schedule.update), schedule.init(TABLE), run)
    described = [formats.describe(plan["Dense_0"].weight) for plan in decided]
    assert described == list(clipped.values())


def test_clip_takes_bounds_up_to_the_widest_integer():
    schedule = clip(constant(integers(4, 8)), min_bits=20, max_bits=24)
    (plan,), _ = follow(schedule.update, schedule.init(TABLE), [EMPTY])
    assert formats.describe(plan["Dense_0"].weight) == "int20"


# The two-threshold controller.


def share(path: str, value: float, others: float = 0.3) -> dict:
    """Returns underflow shares: `value` in one contraction, `others` elsewhere."""
    return {
        c.name: np.full(c.axes, value if c.name == path else others)
        for c in TABLE.contractions
    }


def replay(
    values, finite, *, low, high, min_bits, max_bits, start_bits, patience, every
):
    """The rule in plain Python for one layer: the bits after each call."""
    bits, wishes, history = start_bits, [], []
    for step, value in enumerate(values):
        if step % every == 0 and finite[step] and value == value:
            wishes.append(1 if value > high else -1 if value < low else 0)
            if wishes[-patience:] in ([1] * patience, [-1] * patience):
                bits = min(max(bits + wishes[-1], min_bits), max_bits)
                wishes = []
        history.append(bits)
    return history


LONG = 20
ONE_LAYER = Table((TABLE.contractions[0]._replace(name="Stack", axes=(2,)),), ())
LONG_RUN = jax.jit(
    lambda state, xs: jax.lax.scan(
        lambda state, x: CONTROLLER().update(*x, state)[::-1], state, xs
    )[1]
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_controller_equals_its_replay_in_plain_python(data):
    value = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 1.0, float("nan")])
    layers = [
        data.draw(st.lists(value, min_size=LONG, max_size=LONG)) for _ in range(2)
    ]
    finite = data.draw(st.lists(st.booleans(), min_size=LONG, max_size=LONG))
    bounds = sorted(data.draw(st.tuples(*[st.integers(2, 16)] * 3)))
    rule = {
        **dict(zip(("min_bits", "start_bits", "max_bits"), bounds, strict=True)),
        "low": 0.25,
        "high": 0.5,
        "patience": data.draw(st.integers(1, 3)),
        "every": data.draw(st.integers(1, 3)),
    }
    underflows = jnp.asarray(np.transpose(layers), jnp.float32)
    zeros = jnp.zeros_like(underflows)
    sums = TensorStats(elements=zeros + 1, zeros=zeros, underflows=underflows)
    stats = empty(Table((), ()))._replace(
        loss=jnp.zeros(LONG),
        gradient_norm=jnp.zeros(LONG),
        finite=jnp.array(finite),
        tensors={"Stack": {"activation": sums, "weight": sums}},
    )
    state = two_threshold(**rule, gradient_bits=8).init(ONE_LAYER)
    steps = jnp.arange(LONG, dtype=jnp.int32)
    decided = plans.bits(LONG_RUN(state, (steps, stats)))["Stack"].weight
    for layer, values in enumerate(layers):
        assert decided[:, layer].tolist() == replay(values, finite, **rule)


def test_the_controller_stays_put_between_its_thresholds():
    schedule = CONTROLLER()
    run = [measured(share("Dense_0", value)) for value in (0.26, 0.49, 0.25, 0.5) * 3]
    decided, _ = follow(jitted("two_threshold"), schedule.init(TABLE), run)
    assert set(forward_bits(decided)) == {4}


def test_the_controller_comes_to_rest_where_a_bit_halves_the_signal():
    """Underflow 4 * 2^-bits: 0.5 at 3 bits, 0.25 at 4; the band holds both ends."""
    schedule = CONTROLLER(start_bits=6, patience=2)
    update, state, bits = jitted("two_threshold"), schedule.init(TABLE), 6
    history = []
    for step in range(20):
        stats = measured(share("Dense_0", 4 * 2.0**-bits))
        plan, state = update(jnp.int32(step), stats, state)
        bits = int(plans.bits(plan)["Dense_0"].weight)
        history.append(bits)
    assert history == [6, 5, 5] + [4] * 17


@pytest.mark.parametrize(("patience", "every"), [(1, 1), (3, 1), (2, 5), (4, 3)])
def test_injected_underflow_raises_that_layer_alone_and_in_time(patience, every):
    start, injected = 4, 11
    schedule = CONTROLLER(start_bits=start, patience=patience, every=every)
    calm = dict(share("", 0.3), **{"Block/Dense_0": np.array([0.3, 0.3, 0.3])})
    upset = dict(calm, **{"Block/Dense_0": np.array([0.3, 0.9, 0.3])})
    run = [measured(calm)] * injected + [measured(upset)] * (patience * every)
    decided, _ = follow(jitted("two_threshold"), schedule.init(TABLE), run)
    assert forward_bits(decided, "Block/Dense_0")[injected - 1] == [start] * 3
    low, raised, high = forward_bits(decided, "Block/Dense_0")[-1]
    assert (low, high) == (start, start)
    assert raised > start
    for path in ("Dense_0", "Attention"):
        assert set(forward_bits(decided, path)) == {start}


def test_the_controller_acts_on_the_larger_known_signal_of_its_roles():
    def run(activation, weight) -> int:
        stats = measured(share("Dense_0", activation))
        other = measured(share("Dense_0", weight)).tensors["Dense_0"]["weight"]
        stats.tensors["Dense_0"]["weight"] = other
        schedule = CONTROLLER()
        plan, _ = schedule.update(jnp.int32(0), stats, schedule.init(TABLE))
        return int(plans.bits(plan)["Dense_0"].weight)

    assert (run(0.9, 0.1), run(0.1, 0.9)) == (5, 5)
    assert (run(0.9, np.nan), run(np.nan, 0.1), run(np.nan, np.nan)) == (5, 3, 4)


def test_the_controller_takes_a_signal_of_ones_own():
    schedule = CONTROLLER(
        low=-30.0,
        high=-20.0,
        signal=lambda sums: -sqnr_db(sums),
        quantities=["sqnr_db"],
        roles=["gradient"],
    )
    stats = filled(1.0)  # as much noise as signal: 0 dB
    plan, _ = schedule.update(jnp.int32(0), stats, schedule.init(TABLE))
    assert int(plans.bits(plan)["Attention"].weight) == 5


# Arguments that make no sense.

WRONG = {
    "bits": (
        lambda: cyclic_bits("CPT", min_bits=8, max_bits=3, cycles=1, steps=9),
        "min_bits=8",
    ),
    "name": (
        lambda: cyclic_bits("CPZ", min_bits=3, max_bits=8, cycles=1, steps=9),
        "CPT, CR.*got 'CPZ'",
    ),
    "odd cycles": (
        lambda: cyclic_bits("ETH", min_bits=3, max_bits=8, cycles=3, steps=9),
        "ETH needs an even number of cycles, got 3",
    ),
    "cycles": (
        lambda: cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=9, steps=5),
        "cycles=9",
    ),
    "width": (lambda: constant(integers(99, 8)), "1 to 24, got 99"),
    "boundaries": (
        lambda: piecewise([3, 3], [INT3] * 3),
        r"rise from 1 on, got \[3, 3\]",
    ),
    "entries": (lambda: piecewise([3], [INT3]), "1 entries and 1 boundaries"),
    "fraction": (
        lambda: late_switch(INT3, BFLOAT16, steps=10, fraction=1.2),
        "within the run.*fraction=1.2",
    ),
    "switch": (
        lambda: late_switch(INT3, BFLOAT16, steps=10, at=10),
        "within the run.*at=10",
    ),
    "deficit": (
        lambda: deficit(INT3, INT6, start=-1, length=3),
        "at least 0, got start=-1, length=3",
    ),
    "products": (
        lambda: late_switch(
            INT3, BFLOAT16, steps=10, fraction=0.5, products="forwards"
        ),
        "'all' or 'forward', got 'forwards'",
    ),
    "types": (
        lambda: warmup(separate(BFLOAT16), INT3, steps=2),
        r"one type.*\['Precision', 'SharedPrecision'\]; precision.separate",
    ),
    "index": (lambda: tabulated([INT3], np.array([0, 1])), r"0 to 0, got \[0, 1\]"),
    "start": (lambda: CONTROLLER(start_bits=7), "start_bits=7"),
    "thresholds": (lambda: CONTROLLER(low=0.5), "low < high"),
    "patience": (lambda: CONTROLLER(patience=0), "patience=0"),
    "roles": (lambda: CONTROLLER(roles=["momentum"]), r"'gradient'.*\['momentum'\]"),
    "no roles": (lambda: CONTROLLER(roles=[]), r"'gradient'.*\[\]"),
    "clip": (lambda: clip(CPT, min_bits=5, max_bits=4), "min_bits=5, max_bits=4"),
    "clip too wide": (lambda: clip(CPT, min_bits=5, max_bits=25), "max_bits <= 24"),
    "delay": (lambda: delay(CPT, 0), "at least 1 step, got 0"),
    "hold": (lambda: hold(CPT, 0), "at least 1 step, got 0"),
    "join": (lambda: join([CPT], [3]), "0 boundaries"),
    "rule": (
        lambda: per_layer({"Dense_9": CPT}, CPT).init(TABLE),
        "'Dense_9' matches none",
    ),
    "types that take turns": (
        lambda: follow_once(join([CPT, constant(separate(BFLOAT16))], [3])),
        "one type, got SharedPrecision and Precision",
    ),
    "unwatched role": (
        lambda: follow_once(CONTROLLER(), empty(TABLE, Watch(roles=("weight",)))),
        r"\['activation'\] of 'Dense_0'.*did not gather",
    ),
    "stack": (
        lambda: stack([CPT.init(TABLE), CONTROLLER().init(TABLE)]),
        "2 different ones",
    ),
    "stack of tables": (
        lambda: stack([CPT.init(TABLE), CPT.init(ONE_LAYER)]),
        "2 different ones",
    ),
}


def follow_once(schedule, stats=EMPTY):
    return schedule.update(jnp.int32(0), stats, schedule.init(TABLE))


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_a_tabulated_schedule_can_be_shuffled():
    with pytest.raises(TypeError, match="TwoThresholdState"):
        shuffled(CONTROLLER(), 0).init(TABLE)


def test_the_package_exports_every_function_that_makes_a_schedule():
    makers = {
        name
        for _, module, _ in pkgutil.iter_modules(
            schedules.__path__, f"{schedules.__name__}."
        )
        for name, value in vars(importlib.import_module(module)).items()
        if inspect.isfunction(value)
        and value.__annotations__.get("return") is Schedule
        and not name.startswith("_")
    }
    assert {"constant", "per_layer"} < makers <= set(schedules.__all__)
