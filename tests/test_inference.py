"""Statistics against closed forms, published data, SciPy, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from adaprec_jax import inference
from adaprec_jax.inference import permutation

# Student 1908: hours of sleep that two drugs gained, of the same ten patients.
SLEEP = np.array([
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
])  # fmt: skip
# Darwin 1876: crossed minus self-fertilised maize, in eighths of an inch.
MAIZE = np.array(
    [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], float
)  # fmt: skip


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape)


def test_student_s_own_data_have_the_p_value_and_interval_that_are_published():
    found = inference.difference(SLEEP[1, :9], SLEEP[0, :9])
    expected = stats.ttest_rel(SLEEP[1, :9], SLEEP[0, :9])
    interval = expected.confidence_interval()
    assert found.method == "t"
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    low, high = inference.t_interval(SLEEP[1] - SLEEP[0])[1:]
    assert (low, high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_the_sign_test_of_darwin_s_maize_counts_what_fisher_counted():
    assert MAIZE.sum() == 314
    assert inference.sign_test(MAIZE, "above") == 863 / 2**15  # Fisher 1935
    assert inference.sign_test(MAIZE) == 2 * 863 / 2**15


def test_drawn_permutations_agree_with_the_normal_limit():
    many = normal(60) + 0.25
    expected = 2 * stats.norm.sf(many.sum() / np.sqrt(np.sum(many**2)))
    assert inference.sign_test(many) == pytest.approx(expected, abs=0.01)
    assert permutation.sign_test(np.full(60, 1.0)) > 0  # never zero


@pytest.mark.parametrize("side", ["two-sided", "above", "below"])
def test_the_shuffle_test_agrees_with_scipy_s(side):
    a, b = normal(2, 7)
    alternative = {"above": "greater", "below": "less"}.get(side, side)
    gap = lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis)
    expected = stats.permutation_test((a, b), gap, alternative=alternative)
    assert inference.shuffle_test(a, b, side) == pytest.approx(expected.pvalue)


def test_welch_agrees_with_scipy():
    a, b = normal(8), 3 * normal(5) + 1
    found = inference.difference(a, b, paired=False)
    expected = stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.correlation is None


@pytest.mark.parametrize("samples", [1, 2])
def test_the_bootstrap_agrees_with_scipy_s(samples):
    skewed = np.exp(normal(samples, 20))
    gap = lambda *each, axis: (
        each[0].mean(axis=axis) - sum(other.mean(axis=axis) for other in each[1:])
    )
    found = inference.bootstrap_interval(*skewed, statistic=gap)
    expected = stats.bootstrap(
        tuple(skewed), gap, n_resamples=50_000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.02 * width)
    assert found.high == pytest.approx(expected.high, abs=0.04 * width)


def test_wilson_agrees_with_scipy_and_stays_a_rate():
    for events, runs in [(0, 10), (1, 10), (10, 10), (3, 7)]:
        found = inference.wilson_interval(events, runs)
        expected = stats.binomtest(events, runs).proportion_ci(method="wilson")
        assert found[1:] == pytest.approx((expected.low, expected.high))


def test_ranks_of_finite_runs_are_wilcoxon_s_and_mann_and_whitney_s():
    a, b = normal(2, 9)
    gaps = a - b
    expected = stats.wilcoxon(gaps, method="exact").pvalue
    assert inference.sign_test(inference.signed_ranks(gaps)) == pytest.approx(expected)
    expected = stats.mannwhitneyu(a, b[:6], method="exact").pvalue
    ranked = inference.joint_ranks(a, b[:6])
    assert inference.shuffle_test(*ranked) == pytest.approx(expected)


@pytest.mark.parametrize("size", [6, 9, 12])
def test_the_interval_of_a_shift_holds_what_the_rank_test_does_not_refuse(size):
    gaps = normal(size) + 0.5
    refused = lambda shift: stats.wilcoxon(gaps - shift, method="exact").pvalue <= 0.05
    low, high = inference.shift(gaps)[1:]
    assert [refused(at) for at in (low - 1e-9, low + 1e-9)] == [True, False]
    assert [refused(at) for at in (high + 1e-9, high - 1e-9)] == [True, False]


def test_the_interval_of_a_shift_of_arms_that_are_not_paired_does_so_too():
    a, b = normal(8), normal(2, 6)[1]
    refused = lambda shift: (
        stats.mannwhitneyu(a - shift, b, method="exact").pvalue <= 0.05
    )
    low, high = inference.shift(a, b)[1:]
    assert [refused(at) for at in (low - 1e-9, low + 1e-9)] == [True, False]
    assert [refused(at) for at in (high + 1e-9, high - 1e-9)] == [True, False]


def test_a_run_that_diverged_counts_as_the_worst_and_moves_no_median_far():
    base = np.full(12, 0.9) + 0.01 * normal(12)
    values = inference.worst(base.copy() - 0.05, higher=True)
    values[3] = -np.inf
    found = inference.difference(values, base, margin=0.1)
    assert found.method == "ranks"
    assert found.estimate == pytest.approx(-0.05)
    assert found.p == 2 / 2**12  # all signs are the same
    assert found.error is None
    assert found.visible() is None
    assert found.p_within is not None
    assert found.p_within > 0.001  # beyond the margin by any amount, once in twelve
    both = base.copy()
    both[3] = -np.inf
    tie = inference.difference(values, both)
    assert np.isfinite([tie.estimate, tie.low, tie.high]).all()  # equally bad


def test_few_runs_of_which_one_diverged_decide_nothing():
    base = np.array([0.9, 0.91, 0.92])
    found = inference.difference(np.array([0.95, 0.96, -np.inf]), base)
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert found.p > 0.05


def test_equivalence_is_two_one_sided_tests():
    gaps = 0.1 * normal(8) + 0.02
    expected = max(
        stats.ttest_1samp(gaps, -0.1, alternative="greater").pvalue,
        stats.ttest_1samp(gaps, 0.1, alternative="less").pvalue,
    )
    assert inference.within_margin(gaps, 0.1) == pytest.approx(expected)
    a, b = 0.1 * normal(2, 8)
    expected = max(
        stats.ttest_ind(a + 0.1, b, equal_var=False, alternative="greater").pvalue,
        stats.ttest_ind(a - 0.1, b, equal_var=False, alternative="less").pvalue,
    )
    assert inference.within_margin(a, 0.1, b) == pytest.approx(expected)


def test_power_and_seeds_are_those_of_the_tables():
    # Cohen 1988 and G*Power: paired, two-sided 5 %, power 80 %.
    for effect, pairs in [(0.5, 34), (0.8, 15)]:
        chances = [inference.power(effect, 1 / n**0.5, n - 1) for n in range(8, 40)]
        assert next(n for n, p in enumerate(chances, 8) if p >= 0.8) == pairs
    spread = np.array([-1.0, 0.0, 1.0])  # standard deviation 1
    assert inference.seeds_needed(spread, margin=1.0) == 34
    assert inference.seeds_needed(0.001 * spread, margin=1.0) == 10
    visible = inference.smallest_visible(1 / 34**0.5, 33)
    assert inference.power(visible, 1 / 34**0.5, 33) == pytest.approx(0.8)


def test_power_is_the_share_of_studies_that_find_the_effect():
    drawn = np.random.default_rng(3).normal(0.9, 1, (4000, 12))
    share = np.mean(stats.ttest_1samp(drawn, 0.0, axis=1).pvalue <= 0.05)
    expected = inference.power(0.9, 1 / 12**0.5, 11)
    assert share == pytest.approx(expected, abs=0.02)


def test_holm_takes_the_steps_of_his_paper():
    # Aickin and Gensler 1996 (Am J Public Health 86), their worked rule: p(i) by the
    # number of hypotheses that are left, never falling.
    p = [0.01, 0.005, 0.04, 0.03]
    assert inference.adjusted([[each] for each in p]) == [
        [pytest.approx(each)] for each in (0.03, 0.02, 0.06, 0.06)
    ]


def test_claims_of_ten_arms_are_wrong_together_in_at_most_5_of_100_studies():
    rng = np.random.default_rng(11)
    # Half the arms differ by nothing, half by exactly the margin.
    true = np.repeat([0.0, 2.0], 5)
    wrong = 0
    for _ in range(400):
        gaps = rng.normal(size=(10, 6)) + true[:, None]
        means, errors = gaps.mean(1), gaps.std(1, ddof=1) / 6**0.5
        differs = 2 * stats.t.sf(np.abs(means) / errors, 5)
        within = np.maximum(
            stats.t.sf((means + 2) / errors, 5), stats.t.sf((2 - means) / errors, 5)
        )
        found = np.array(inference.adjusted(np.stack([differs, within], 1).tolist()))
        wrong += (found[:5, 0] <= 0.05).any() or (found[5:, 1] <= 0.05).any()
    assert wrong / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def covers(interval, size: int, studies: int) -> float:
    """The share of intervals of normal values that hold their mean, zero."""
    drawn = np.random.default_rng(5).normal(size=(studies, size))
    found = [interval(each) for each in drawn]
    return float(np.mean([low <= 0 <= high for _, low, high in found]))


def test_intervals_contain_the_truth_as_often_as_they_say():
    assert covers(inference.t_interval, 3, 3000) == pytest.approx(0.95, abs=0.015)
    assert covers(inference.mean_interval, 5, 3000) == pytest.approx(0.95, abs=0.015)
    # Of few values a bootstrap interval is too narrow; so it begins at ten.
    assert covers(inference.bootstrap_interval, 5, 400) < 0.88
    assert 0.88 < covers(inference.mean_interval, 10, 400) < 0.96


def test_the_tests_find_nothing_in_5_of_100_studies_at_most():
    drawn = np.random.default_rng(9).normal(size=(600, 10))
    assert np.mean([inference.sign_test(each) <= 0.05 for each in drawn]) < 0.075
    at_margin = drawn + 0.7
    share = np.mean([inference.within_margin(each, 0.7) <= 0.05 for each in at_margin])
    assert share < 0.075


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_tasks():
    tasks = normal(3, 12) + np.arange(3)[:, None]
    found = inference.interquartile_interval([*tasks])
    assert found.estimate == pytest.approx(stats.trim_mean(tasks.ravel(), 0.25))
    expected = stats.bootstrap(
        tuple(tasks),
        lambda *each, axis: stats.trim_mean(
            np.concatenate(each, axis=axis), 0.25, axis=axis
        ),
        n_resamples=5_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found[1:] == pytest.approx((expected.low, expected.high), abs=0.05)


def test_the_best_of_k_is_the_mean_over_all_choices_of_k():
    values = normal(7)
    for higher, best in [(True, max), (False, min)]:
        chosen = [best(each) for each in itertools.combinations(values, 3)]
        found = inference.best_of(values, 3, higher=higher)
        assert found.value == pytest.approx(np.mean(chosen))
    assert "best of 3" in repr(found)
    one_bad = inference.worst(np.array([0.9, np.nan, 0.8]), higher=True)
    assert inference.best_of(one_bad, 2).value == pytest.approx(2.6 / 3)


def test_arms_that_are_equal_are_equal_and_no_nan_comes_of_it():
    same = np.full(12, 0.5)
    found = inference.difference(same, same, margin=0.01)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)
    assert (found.p, found.p_within, found.correlation) == (1.0, 1 / 2**12, None)
    assert found.visible() is None
    shifted = inference.difference(same[:4] + 0.25, same[:4], margin=0.01)
    # Without spread t has no end; the signs of four seeds say only so much.
    assert (shifted.method, shifted.p, shifted.p_within) == ("permutation", 1 / 8, 1.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: inference.t_interval(np.ones(1)), "at least two values, got 1"),
        (lambda: inference.t_interval(np.array([1, np.nan])), "needs finite values"),
        (lambda: inference.wilson_interval(3, 2), "got 3 of 2"),
        (lambda: inference.within_margin(np.ones(3), 0.0), "above zero, got 0.0"),
        (lambda: inference.seeds_needed(np.ones(3), -1.0), "above zero, got -1.0"),
        (lambda: inference.seeds_needed(normal(3), 1e-9), "more than 100000 seeds"),
        (lambda: inference.best_of(np.ones(2), 3), "to the 2 runs there are, got 3"),
        (lambda: inference.difference(np.ones(1), np.ones(1)), "at least two runs"),
        (lambda: inference.difference(np.ones(3), np.ones(2)), "need the same seeds"),
    ],
)
def test_what_has_no_answer_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
