"""What a scheduled run means: each step is one step with its plan held constant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from adaprec_jax import formats, loss_scaling
from adaprec_jax.contractions import Watch, contraction_table
from adaprec_jax.plan import integers
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.schedules import (
    Schedule,
    clip,
    constant,
    cpt,
    delay,
    hold,
    join,
    late_switch,
    per_layer,
    piecewise,
    shuffled,
    stack,
    two_threshold,
    warmup,
)
from adaprec_jax.train import Program, init_state, make_train_step, plan_of
from tests.small_run import Aux, assert_equal

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

STEPS = 12
BFLOAT16 = SharedPrecision(*[formats.get("bfloat16")] * 3)
CPT = cpt(min_bits=3, max_bits=8, cycles=2, steps=STEPS, gradient_bits=8)
CONTROLLER = two_threshold(
    low=0.05, high=0.1, min_bits=2, max_bits=6, start_bits=4, gradient_bits=8
)
TABULATED = {
    "constant": constant(integers(4, 8)),
    "piecewise": piecewise([3, 7], [integers(b, 8) for b in (3, 5, 6)]),
    "cpt": CPT,
    "shuffled": shuffled(CPT, seed=1),
    "warmup": warmup(BFLOAT16, integers(4, 8), steps=5),
    "late_switch": late_switch(integers(4, 8), BFLOAT16, steps=STEPS, fraction=0.7),
}
OTHERS = {
    "late_switch forward": late_switch(
        integers(4, 8), BFLOAT16, steps=STEPS, fraction=0.7, products="forward"
    ),
    "two_threshold": CONTROLLER,
    "join, hold and clip": join(
        [CPT, hold(clip(CONTROLLER, min_bits=4, max_bits=5), 3)], [4]
    ),
    "per_layer and delay": per_layer({"blocks@-1": delay(CONTROLLER, 2)}, default=CPT),
}
HELD = Schedule(lambda table: None, lambda step, stats, plan: (plan, plan))


def loss(params, model_state, batch, key):
    x, y = batch
    x, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["blocks"])
    value = jnp.mean(jnp.square(x - y))
    return value, Aux({}, model_state)


PARAMS = {"blocks": jax.random.normal(jax.random.key(0), (2, 4, 4))}
BATCHES = [jax.random.normal(jax.random.key(t), (2, 8, 4)) for t in range(STEPS)]
TABLE = contraction_table(loss, PARAMS, (), (*BATCHES[0],), None)
PROGRAM = Program(
    loss,
    TABLE,
    HELD,
    loss_scaling.none(optax.sgd(0.1)),
    watch=Watch(("underflow_fraction",), ("activation", "weight")),
)


@functools.cache
def compiled(name: str):
    """The step of a schedule: all tabulated ones are one program."""
    schedule = HELD if name == "held" else OTHERS.get(name, CPT)
    return jax.jit(make_train_step(PROGRAM._replace(schedule=schedule)))


# States of one shape, so that all tabulated schedules are one executable.
PADDED = stack([schedule.init(TABLE) for schedule in TABULATED.values()])


def scheduled(name: str):
    """A program and its first state."""
    if name in OTHERS:
        program, state = PROGRAM._replace(schedule=OTHERS[name]), None
    else:
        program = PROGRAM._replace(schedule=CPT)
        state = jax.tree.map(lambda leaf: leaf[list(TABULATED).index(name)], PADDED)
    return program, init_state(program, PARAMS, (), jax.random.key(1), state)


@pytest.mark.parametrize("name", [*TABULATED, *OTHERS])
def test_a_scheduled_step_equals_one_with_its_plan_held_constant(name):
    program, state = scheduled(name)
    step = compiled(name if name in OTHERS else "tabulated")
    plans = set()
    for batch in BATCHES:
        after, metrics = step(state, (*batch,))
        plan = plan_of(program, state, after.plan)
        same, same_metrics = compiled("held")(
            state._replace(schedule_state=plan), (*batch,)
        )
        assert_equal(*(s._replace(schedule_state=()) for s in (same, after)))
        assert_equal(same_metrics, metrics)
        plans.add(np.asarray(after.plan).tobytes())
        state = after
    assert (len(plans) > 1) == (name != "constant")
    assert step._cache_size() == 1
