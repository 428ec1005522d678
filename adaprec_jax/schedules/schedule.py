"""What a schedule is: two pure functions, as an optax transformation is."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PyTree

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table
from adaprec_jax.precision import Plan

Tree = TypeVar("Tree", bound=PyTree)


class Schedule(NamedTuple):
    """Decides which formats each step uses.

    `update` is called once before every step, skipped steps included, and traces under
    `jit`, `vmap` and `scan`. Its plan covers every contraction of the table and never
    changes structure, so that one compilation serves a whole run. What may differ
    between runs is data in the state, so such runs share an executable and can be
    stacked under `vmap`.

    A scheduled run means: step t equals, to the bit, one step from the same state with
    the plan of step t held constant.

    Attributes:
        init: Takes the table of contractions, on the host; returns the state.
        update: Takes the number of calls so far, what the step before measured (before
            the first step `adaprec_jax.stats.empty`), and the state; returns the plan
            of this step and the new state. Statistics that are not `finite`, NaN or of
            no elements change no decision.

    >>> from adaprec_jax import contractions, plan as plans, schedules, stats
    >>> params = {"Dense_0": {"kernel": jnp.eye(2)}}
    >>> table = contractions.contraction_table(
    ...     lambda params, x: x @ params["Dense_0"]["kernel"], params, jnp.eye(2)
    ... )
    >>> schedule = schedules.constant(plans.integers(4, 8))
    >>> state = schedule.init(table)
    >>> plan, state = schedule.update(jnp.int32(0), stats.empty(table), state)
    >>> print(plans.describe(plan))
    Dense_0: activation int4, weight int4, gradient int8
    """

    init: Callable[[Table], PyTree]
    update: Callable[[Int32[Array, ""], Stats, PyTree], tuple[Plan, PyTree]]


@jax.tree_util.register_static
class Scope(NamedTuple):
    """The contractions a schedule decides about, as a part of its state.

    It holds no arrays: to JAX it is structure, so states are only alike, and only share
    an executable, if they plan for the same table.
    """

    table: Table


def select(condition: Bool[Array, "..."], yes: Tree, no: Tree) -> Tree:
    """Returns `yes` where `condition`, else `no`, leaf by leaf, broadcast.

    >>> select(jnp.array([True, False]), {"bits": jnp.int32(4)}, {"bits": jnp.int32(8)})
    {'bits': Array([4, 8], dtype=int32)}
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
