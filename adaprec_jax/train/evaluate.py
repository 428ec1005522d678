"""Scores of a model at the precision of now, at the widest so far, and at float32."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float32, PyTree

from adaprec_jax.contractions import contraction_table, with_precision
from adaprec_jax.train import record
from adaprec_jax.train.record import PackedPlan
from adaprec_jax.train.state import Program, TrainState, plan_of, stream

Score: TypeAlias = Callable[
    [TrainState, PackedPlan, PyTree], dict[str, Float32[Array, "*runs batch"]]
]
"""Scores each example of a batch, under a plan; as `make_score` makes it."""


def make_score(
    program: Program, scores: Callable[[PyTree, PyTree, Any], dict[str, Array]]
) -> Score:
    """Returns `score(state, plan, batch)`: one number per example, by name.

    Its contractions are rounded by the plan, which is given in rows (`record`): formats
    are data, so one compilation serves every precision.

    Args:
        program: What is trained.
        scores: `(params, model_state, batch) -> scores`, as a task has it. All of its
            contractions must be among those of `program.table`.
    """
    rounded = with_precision(scores, program.options)

    def score(state: TrainState, packed: PackedPlan, batch: PyTree) -> dict[str, Array]:
        args = (state.params, state.model_state, batch)
        plan = plan_of(program, state, packed)
        names = contraction_table(scores, *args).names
        return rounded(
            {name: plan[name] for name in names if name in plan},
            *args,
            key=stream(state.key, "evaluation"),
            states=state.recipe_states,
        )

    return score


def evaluate(
    score: Score, state: TrainState, batches: Iterable[PyTree], count: int
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the mean scores over a split, for three precisions.

    Args:
        score: What `make_score` returned, jitted; for a pack, mapped over its runs.
        state: The run's state, or that of a pack.
        batches: All examples in order, in batches of one size.
        count: How many there are; what follows them fills up the last batch, and is
            left out.

    Returns:
        For "now", "highest" and "float32" the means by name: float64, scalars or an
        array over the runs of a pack.
    """
    plans = {
        "now": state.plan,
        "highest": state.highest,
        "float32": record.full_precision(state.plan),
    }
    found: dict[str, list[dict[str, Array]]] = {name: [] for name in plans}
    for batch in batches:
        for name, plan in plans.items():
            found[name].append(score(state, plan, batch))
    mean = functools.partial(_mean, count=count)
    return {name: jax.tree.map(mean, *parts) for name, parts in found.items()}


def _mean(*parts: Array, count: int) -> np.ndarray:
    """Returns the mean over the last axis, joined, of the first `count` examples."""
    joined = np.concatenate([np.asarray(part) for part in parts], axis=-1)
    return np.asarray(np.mean(joined[..., :count], axis=-1, dtype=np.float64))
