"""The table of all schedules: static bits at equal cost, and going on."""

import math

import numpy as np
import pytest

from adaprec_jax.runs import overrides
from experiments import schedules

SMALL = ["steps=4", "steps_per_dispatch=2", "evaluate_every=4", "checkpoint_every=4"]


def small(bits: int):
    return overrides.apply(schedules.static("digits", bits), SMALL)


def test_static_bits_are_interpolated_by_seed_and_never_extrapolated():
    frontier = schedules.Frontier(
        np.array([1.0, 2.0, 4.0]), np.array([[0.0, 0.5], [1.0, 0.5], [2.0, 0.9]])
    )
    found = schedules.at_cost(frontier, np.array([1.5, 3.0]))
    np.testing.assert_allclose(found, [0.5, 0.7])
    beyond = schedules.at_cost(frontier, np.array([0.9, 4.1]))
    assert np.isnan(beyond).all()


def test_an_arm_on_the_frontier_differs_by_nothing_from_it():
    arms = [
        schedules.Trained(np.array([0.5, 0.6]), np.full(2, cost), np.zeros(2, int))
        for cost in (0.2, 0.1)
    ]
    frontier = schedules.frontier_of(arms)
    assert frontier.cost.tolist() == [0.1, 0.2]
    line = schedules.row("arm", arms[0], frontier, 100.0)
    assert line.split(" | ")[2:4] == ["0.2000", "0"]
    assert line.endswith("+0.00 ± 0.00")


def test_a_static_arm_is_not_set_beside_itself():
    arm = schedules.Trained(np.array([0.5, 0.6]), np.full(2, 0.2), np.zeros(2, int))
    assert schedules.row("static", arm, None, 100.0).split(" | ")[2:] == [
        "0.2000",
        "0",
        "",
        "",
    ]


def test_every_option_is_explained():
    said = " ".join(schedules.arguments().format_help().split())
    assert all(action.help for action in schedules.arguments()._actions)
    for part in ("static arms train first", "about two minutes", "default: 5", "DIR"):
        assert part in said


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.slow
def test_what_is_trained_is_not_trained_again(one_by_one, tmp_path, monkeypatch):
    arms = {f"static {bits}": small(bits) for bits in (3, 8)}
    first = schedules.trained(arms, 2, tmp_path, one_by_one=one_by_one)
    ratios = [float(arm.cost[0]) for arm in first]
    for ratio, bits in zip(ratios, (3, 8), strict=True):
        assert math.isclose(ratio, (bits**2 + 16 * bits) / 3072, rel_tol=1e-6)
    monkeypatch.setattr(schedules, "train_pack", pytest.fail)
    again = schedules.trained(arms, 2, tmp_path, one_by_one=not one_by_one)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.metric, other.metric)
