"""Controls: what they cost, what they decide, and the split of a gain."""

import numpy as np
import pytest
from scipy import stats

from adaprec_jax.contractions.table import macs_shares
from adaprec_jax.report.figure import mean_cost
from adaprec_jax.runs import expected, store
from adaprec_jax.runs.build import build
from adaprec_jax.runs.config import Constant, PerLayer, Piecewise
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.foreseen import foreseen
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.runs.run import run
from adaprec_jax.studies.columns import column
from adaprec_jax.studies.controls import controls, of_sweep, roles
from adaprec_jax.studies.replay import decisions, with_replays
from adaprec_jax.studies.results import gathered
from adaprec_jax.studies.split import HEADLINE, split
from adaprec_jax.studies.study import load_study, save, study_of
from tests import made_up_study
from tests.made_up_study import ACCURACY

CPT = load("digits-cpt")


def by_kind(experiment):
    return {roles(each.tags)[0].control: each for each in controls(experiment)}


def steps_of(experiment):
    """The bits of all operands of all layers at each step, foreseen."""
    course = foreseen(experiment)
    at = np.searchsorted(course.starts, np.arange(course.steps), side="right") - 1
    return course.bits[at]


def test_the_static_formats_are_every_width_of_the_schedule():
    found = [e.schedule for e in controls(CPT) if isinstance(e.schedule, Constant)]
    assert [each.precision.weight for each in found] == [f"int{b}" for b in range(3, 9)]
    assert {each.precision.gradient for each in found} == {"int8"}
    late = {e.name for e in controls(load("digits-late-switch"))}
    assert "digits-late-switch-static-bfloat16" in late  # its other format


@pytest.mark.parametrize(
    "config", ["digits-cpt", "digits-cyclic-rth", "digits-step-list", "graph-cpt"]
)
def test_a_static_mixture_costs_what_the_schedule_does_and_never_changes(config):
    experiment = load(config)
    mixture = by_kind(experiment)["mixture"]
    assert isinstance(mixture.schedule, PerLayer)
    course = foreseen(mixture)
    assert len(course.starts) == 1
    own = mean_cost(foreseen(experiment))
    assert mean_cost(course) == pytest.approx(own, rel=0.01)
    assert own == pytest.approx(expected.mean_cost(experiment))


@pytest.mark.parametrize("config", ["digits-cpt", "digits-cyclic-lt"])
def test_reordered_controls_have_the_same_formats_in_another_order(config):
    experiment = load(config)
    bits = steps_of(experiment)
    found = by_kind(experiment)
    for control in ("permuted", "rising", "falling"):
        theirs = steps_of(found[control])
        assert (np.sort(theirs, axis=0) == np.sort(bits, axis=0)).all()
        weight = theirs[:, 0, 1]
        falls = np.diff(weight) < 0
        rises = np.diff(weight) > 0
        assert (falls.any(), rises.any()) == {
            "permuted": (True, True),
            "rising": (False, True),
            "falling": (True, False),
        }[control]


def test_controls_of_several_schedules_hold_each_run_once():
    cyclic = load("digits-cyclic-lr")
    both = controls([CPT, cyclic])
    # The static ones are the same, and so is the mixture of nearly equal cost.
    assert len(both) == len(controls(CPT)) + 4
    (mixture,) = (each for each in both if each.name.endswith("mixture"))
    assert [role.of for role in roles(mixture.tags)] == [CPT.name, cyclic.name]
    assert len(study_of(both, "x").cells) == len(both)


def test_what_never_changes_has_no_controls():
    with pytest.raises(InputError, match="digits-int8 never changes its formats"):
        controls(load("digits-int8"))


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """Two short runs of a closed loop that does change its mind."""
    out = tmp_path_factory.mktemp("runs")
    short = ["steps=40", "steps_per_dispatch=10", "evaluate_every=40",
             "checkpoint_every=40", "schedule.every=10"]  # fmt: skip
    base = apply(load("digits-two-threshold"), short)
    study = study_of([apply(base, [f"seed={seed}"]) for seed in (0, 1)], "closed")
    save(study, out)
    for cell in study.cells:
        run(cell.experiment, out=out)
    return study, out


@pytest.mark.slow
def test_a_replayed_run_is_the_run_to_the_bit(closed):
    study, out = closed
    more = with_replays(study, out)
    arms = {cell.arm for cell in more.cells}
    assert arms == {"all", "all replayed", "all exchanged"}
    own = next(cell for cell in more.cells if cell.arm == "all replayed")
    ended = run(own.experiment, out=out)
    first = store.outcome(store.locate(out, study.cells[0].experiment))
    for name in ("test/float32/loss", "test/float32/accuracy", "cost"):
        assert ended.results[name] == first.results[name]
    assert ended.results["precision_changes"] == first.results["precision_changes"] > 0
    save(more, out)
    assert load_study("closed", out) == more
    swapped = [cell for cell in more.cells if cell.arm == "all exchanged"]
    assert swapped[0].experiment.schedule == decisions(
        study.cells[1].experiment, store.locate(out, study.cells[1].experiment)
    )


def test_the_widths_of_a_record_are_the_formats_of_its_settings(tmp_path):
    maturity = load("digits-accordion")
    study = study_of([maturity], "one")
    save(study, tmp_path)
    rows = {
        step: {
            f"bits/Dense_0/{operand}": float(8 if "gradient" in operand else bits)
            for operand in (
                "forward.activation", "forward.weight", "dgrad.gradient",
                "dgrad.weight", "wgrad.gradient", "wgrad.activation",
            )
        }
        for step, bits in ((1, 8), (201, 4))
    }  # fmt: skip
    path = made_up_study.end(study, tmp_path, maturity.name, 0, {}, rows=rows)
    found = decisions(maturity, path)
    (rule,) = found.rules
    assert rule.pattern == "Dense_0"
    assert isinstance(rule.schedule, Piecewise)
    assert rule.schedule.boundaries == (200,)
    found = [(each.weight, each.gradient) for each in rule.schedule.precisions]
    assert found == [("int8", "int8"), ("int4", "int8")]


@pytest.mark.parametrize("tuned", [False, True])
def test_the_headline_is_the_difference_from_static_formats_of_equal_cost(
    tmp_path, tuned
):
    rng = np.random.default_rng(4)
    arms = [load("digits-float32"), CPT, *controls(CPT)]
    if tuned:  # each arm at a rate of its own
        rate = "optimizer.learning_rate.peak={}"
        arms = [apply(e, [rate.format((k + 1) / 1e4)]) for k, e in enumerate(arms)]
    costs = {e.name: expected.mean_cost(e) for e in arms}
    costs["digits-cpt-mixture"] = costs["digits-cpt"]
    seeds = 5
    study = study_of(
        [apply(e, [f"seed={seed}"]) for e in arms for seed in range(seeds)], "split"
    )
    save(study, tmp_path)
    noise = 0.001 * rng.normal(size=(len(arms), seeds))
    level = {"digits-float32": 0.97, "digits-cpt": 0.962, "digits-cpt-permuted": 0.95,
             "digits-cpt-mixture": 0.96}  # fmt: skip
    values = {
        e.name: level.get(e.name, 0.9 + 0.9 * costs[e.name]) + noise[k]
        for k, e in enumerate(arms)
    }
    for cell in study.cells:
        name, seed = cell.experiment.name, cell.seed
        results = {ACCURACY: values[name][seed], "cost": costs[name]}
        made_up_study.end(study, tmp_path, name, seed, results)
    results = gathered(study, tmp_path)
    (found,) = split(results, "float32", [column(results.arms, "test/accuracy")])
    parts = {part.name: part for part in found.parts}
    low, high = (values[f"digits-cpt-static{bits}"] for bits in (5, 6))
    share = (costs["digits-cpt"] - costs["digits-cpt-static5"]) / (
        costs["digits-cpt-static6"] - costs["digits-cpt-static5"]
    )
    gap = values["digits-cpt"] - (low + share * (high - low))
    headline = parts[HEADLINE].difference
    assert headline.estimate == pytest.approx(gap.mean())
    assert headline.p == pytest.approx(stats.ttest_1samp(gap, 0).pvalue)
    assert [part.name for part in found.parts] == [
        HEADLINE, "bits", "regularisation by noise", "timing", "not rising",
        "not falling", "regularisation", "structure",
    ]  # fmt: skip
    noise = values["digits-cpt-noise"]
    assert parts["structure"].difference.estimate == pytest.approx(
        (values["digits-cpt"] - noise).mean()
    )
    two = ("structure", "regularisation by noise")
    assert sum(parts[name].difference.estimate for name in two) == pytest.approx(
        headline.estimate
    )
    timing = values["digits-cpt"] - values["digits-cpt-permuted"]
    assert parts["timing"].difference.estimate == pytest.approx(timing.mean())
    assert parts["timing"].answer == "better"
    assert parts["regularisation"].answer == "worse"
    # What the parts say together is what the schedule gains over its baseline.
    whole = parts[HEADLINE].difference.estimate + parts["bits"].difference.estimate
    gain = values["digits-cpt"] - values["digits-float32"]
    assert whole == pytest.approx(gain.mean())


def test_nothing_is_extrapolated_beyond_the_static_formats(tmp_path):
    arms = ["digits-int3", "digits-int5", "digits-late-switch"]
    study = made_up_study.study(tmp_path, arms, 3)
    for cell in study.cells:
        cost = expected.mean_cost(cell.experiment)
        results = {ACCURACY: 0.9 + cell.seed / 1e3, "cost": cost}
        made_up_study.end(study, tmp_path, cell.experiment.name, cell.seed, results)
    results = gathered(study, tmp_path)
    (found,) = split(results, "int3", [column(results.arms, "test/accuracy")])
    assert found.parts == ()
    assert found.missing.endswith("0.01855 to 0.03418: nothing is extrapolated")


def test_the_shares_that_a_mixture_is_made_of_are_those_of_the_network():
    course = foreseen(by_kind(CPT)["mixture"])
    shares = macs_shares(build(CPT).program.table)
    a, w, g = (course.bits[0, :, k] for k in (0, 1, 2))
    assert course.cost[0] == pytest.approx(
        np.dot(shares, a * w + g * w + g * a) / (3 * 32**2)
    )


def test_noise_has_the_formats_of_the_schedule_and_no_rounding():
    noise = by_kind(CPT)["noise"]
    np.testing.assert_array_equal(steps_of(noise), steps_of(CPT))
    assert {recipe.kind for _, recipe in noise.scaling} == {"noise"}
    assert noise.scaling.weight.recipe == CPT.scaling.weight
    assert by_kind(noise)["noise"].scaling == noise.scaling  # no noise of noise


def test_controls_of_a_sweep_have_its_seeds_and_an_order_for_each():
    arms = [load("digits-int5"), CPT]
    sweep = [apply(e, [f"seed={seed}"]) for e in arms for seed in (3, 5)]
    more = of_sweep(sweep)
    assert [e.name for e in more[:4]] == [e.name for e in sweep]
    kinds = {role.control for each in more for role in roles(each.tags)}
    assert kinds == {"static", "mixture", "permuted", "rising", "falling", "noise"}
    permuted = [e for e in more if e.name.endswith("permuted")]
    assert [(e.seed, e.schedule.shuffle_seed) for e in permuted] == [(3, 3), (5, 5)]
    # int5 was there; now it says that it is a control, too.
    assert [role.control for role in roles(more[0].tags)] == ["static"]
    assert len({cell.arm for cell in study_of(more, "x").cells}) == len(more) / 2
    few = of_sweep(sweep, ["noise"])
    assert [e.name for e in few[4:]] == ["digits-cpt-noise"] * 2
    with pytest.raises(InputError, match="Unknown control 'nois'; did you mean"):
        of_sweep(sweep, ["nois"])
    with pytest.raises(InputError, match="No schedule of the sweep changes"):
        of_sweep(sweep[:2])
