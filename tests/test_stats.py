"""The statistics, each against a computation of another kind."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from common import compare, stats
from common.stats import Estimate


@pytest.fixture
def generator():
    return np.random.default_rng(1)


@pytest.fixture
def logits(generator):
    return generator.normal(0, 2, (300, 10)).astype(np.float32)


@pytest.fixture
def labels(generator):
    return generator.integers(0, 10, 300)


def softmax(logits):
    """By its definition, row by row."""
    rows = [[math.exp(value) for value in row] for row in logits.tolist()]
    return [[value / sum(row) for value in row] for row in rows]


# ---------------------------------------------------------------- over seeds


def test_mean_over_seeds_has_the_t_interval_of_the_tables():
    # t with 4 degrees of freedom: 2.776445; standard error √(2.5 / 5).
    estimate = stats.over_seeds([1, 2, 3, 4, 5])
    reach = 2.7764451 * math.sqrt(0.5)
    assert estimate[:3] == pytest.approx((3, 3 - reach, 3 + reach), abs=1e-6)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12).filter(lambda v: np.ptp(v) > 1e-6))
def test_mean_over_seeds_is_scipys_one_sample_t_test(values):
    estimate = stats.over_seeds(values)
    test = scipy.stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(0.95)
    expected = (np.mean(values), interval.low, interval.high, test.pvalue)
    assert estimate[:4] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_one_seed_has_no_interval_and_no_p():
    assert np.isnan(stats.over_seeds([0.7])[1:4]).all()
    assert stats.over_seeds([0.7]).value == 0.7


def test_seeds_that_agree_by_chance_prove_nothing():
    """Two equal differences leave no spread to judge by: that is not a p of 0."""
    estimate = stats.over_seeds([2.0, 2.0])
    assert estimate.value == 2 and np.isnan(estimate[1:4]).all()


def test_on_a_grid_the_error_is_at_least_that_of_rounding():
    # t with 1 degree of freedom is Cauchy's distribution.
    estimate = stats.over_seeds([2, 2], grid=1)
    error = math.sqrt(1 / 12)
    assert estimate.p == pytest.approx(1 - 2 / math.pi * math.atan(2 / error))
    assert estimate.high - 2 == pytest.approx(error * math.tan(0.95 * math.pi / 2))
    assert stats.over_seeds([2, 9], grid=1) == stats.over_seeds([2, 9])  # spread enough


@pytest.mark.parametrize("count", [5, 20])
def test_what_rounding_hides_in_all_seeds_alike_is_in_the_interval(count, generator):
    """Of values that are rounded to 0 or 1 more seeds do not tell where between them they lie."""
    missed = 0
    for _ in range(400):
        true = generator.uniform(-1, 1)
        estimate = stats.over_seeds(np.round(generator.normal(true, 0.1, count)), grid=1)
        missed += not estimate.low < true < estimate.high
    assert missed <= 0.05 * 400


def test_nothing_known_of_one_seed_is_nothing_known_of_the_mean():
    assert np.isnan(stats.over_seeds([1.0, math.nan, 2.0])[:4]).all()


@pytest.mark.parametrize(
    ("values", "inside"), [([29, 30, 32], True), ([29, 30, 36], False), ([40, 42, 41], False)]
)
def test_within_is_two_one_sided_tests_at_half_the_level(values, inside):
    estimate = stats.within(values, 25, 35)
    above = scipy.stats.ttest_1samp(values, 25, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(values, 35, alternative="less").pvalue
    assert inside == (max(above, below) < 0.025)
    assert inside == (estimate.p < 0.05 and 25 < estimate.value < 35)
    assert inside == (estimate.low > 25 and estimate.high < 35)


def test_within_tells_a_mean_that_lies_beyond():
    estimate = stats.within([40, 42, 41], 25, 35)
    assert estimate.low > 35 and estimate.p < 0.05
    assert stats.within([34, 42, 35], 25, 35).p > 0.05


def test_within_of_one_seed_has_no_p():
    assert math.isnan(stats.within([30], 25, 35).p)


# ---------------------------------------------------------------- over images


def test_a_bootstrap_over_kinds_is_one_over_images(generator):
    """The interval of a mean by resampling the images themselves, another way."""
    values = generator.integers(-1, 2, 400)
    kinds, counts = np.unique(values, return_counts=True)
    estimate = stats.over_images(lambda c: (c * kinds).sum(-1) / c.sum(-1), counts)
    bootstrap = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=generator
    ).confidence_interval
    assert estimate.value == pytest.approx(values.mean())
    assert estimate[1:3] == pytest.approx((bootstrap.low, bootstrap.high), abs=0.006)
    assert math.isnan(estimate.p)  # of one seed


def test_the_interval_goes_from_the_50th_lowest_to_the_50th_highest_of_1999_draws():
    """Ranks (R + 1) · 0.025 from either end (Davison, Hinkley 1997)."""
    counts = np.array([5_000_000, 5_000_000])
    draws = np.sort(stats.resampled(counts)[:, 0])
    estimate = stats.over_images(lambda c: c[:, 0], counts)
    assert estimate[1:3] == (draws[49], draws[-50])
    assert draws[48] < draws[49] < draws[50] and draws[-51] < draws[-50] < draws[-49]


@pytest.mark.parametrize(("least", "told"), [(74, True), (84, False)])
def test_draws_without_a_value_lie_beyond_both_ends_of_the_interval(least, told):
    counts = np.array([96, 304])

    def statistic(c):
        return np.where(c[:, 0] > least, c[:, 0], np.nan)

    estimate, draws = stats.over_images(statistic, counts), statistic(stats.resampled(counts))
    assert estimate.value == 96 and np.isnan(draws).any()
    assert np.isfinite(estimate[1:3]).all() == told
    if told:
        assert 0.02 < 1 - (draws >= estimate.low).mean() <= 0.025
        assert 0.02 < 1 - (draws <= estimate.high).mean() <= 0.025


def test_the_bootstrap_gives_the_same_interval_every_time():
    counts = np.array([[30, 4], [9, 57]])
    first = stats.resampled(counts)
    assert first.shape == (stats.RESAMPLES, 2, 2)
    assert (first.sum((1, 2)) == 100).all()
    assert (first == stats.resampled(counts)).all()


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 9), (5, 5), (20, 2)])
def test_mcnemar_is_the_sum_of_binomial_coefficients(only_a, only_b):
    a = np.array([True] * only_a + [False] * only_b + [True, False])
    b = np.array([False] * only_a + [True] * only_b + [True, False])
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert stats.mcnemar(a, b) == pytest.approx(min(1, 2 * tail))


def test_mcnemar_of_networks_that_differ_nowhere_is_1():
    right = np.array([True, False, True])
    assert stats.mcnemar(right, right) == 1


def test_gap_recovered_by_hand():
    teacher = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1.0])
    baseline = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0.0])
    student = np.array([1, 1, 1, 1, 0, 0, 1, 0, 0, 0.0])
    right = (array == 1 for array in (teacher, baseline, student))
    assert stats.gap_over_images(*right).value == pytest.approx(1 / 4)


def test_the_interval_of_the_gap_recovered_is_scipys_bootstrap(generator):
    hard = generator.random(600)
    teacher, baseline = hard > 0.1, hard > 0.3
    student = np.where(generator.random(600) < 0.5, teacher, baseline)
    estimate = stats.gap_over_images(teacher, baseline, student)

    def ratio(t, b, s, axis):
        return (s.mean(axis) - b.mean(axis)) / (t.mean(axis) - b.mean(axis))

    interval = scipy.stats.bootstrap(
        (teacher, baseline, student), ratio, paired=True, vectorized=True, n_resamples=4000,
        method="percentile", rng=generator,
    ).confidence_interval  # fmt: skip
    assert estimate[1:3] == pytest.approx((interval.low, interval.high), abs=0.015)


def test_no_gap_to_recover_where_the_teacher_is_not_better():
    low, high = np.array([True, False, False]), np.array([True, True, False])
    for three in ((low, high, high), (high, high, low)):
        runs = [SimpleNamespace(right=right) for right in three]
        assert compare.gap_recovered(SimpleNamespace(threes=lambda runs=runs: [runs])) is None


def test_a_gap_that_may_be_none_has_no_interval():
    none = np.zeros(100, bool)
    estimate = stats.gap_over_images(np.arange(100) == 0, none, none)
    assert estimate.over == "images"
    assert estimate.value == 0 and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_the_interval_of_a_ratio_holds_what_a_t_test_does_not_reject(generator):
    gaps = generator.normal(1.5, 0.2, 5)
    gains = 0.5 * gaps + generator.normal(0, 0.2, 5)
    ratio = stats.ratio_over_seeds(gains, gaps)
    assert ratio.value == pytest.approx(gains.mean() / gaps.mean()) and ratio.low < ratio.high
    for bound in ratio[1:3]:
        assert scipy.stats.ttest_1samp(gains - bound * gaps, 0).pvalue == pytest.approx(0.05)
    middle = (ratio.low + ratio.high) / 2
    assert scipy.stats.ttest_1samp(gains - middle * gaps, 0).pvalue > 0.05


def test_a_ratio_that_nothing_bounds_has_no_interval(generator):
    gaps = generator.normal(0.1, 1, 5)
    assert math.isnan(stats.ratio_over_seeds(gaps, gaps + generator.normal(0, 0.1, 5)).low)
    assert math.isnan(stats.ratio_over_seeds(np.array([1.0]), np.array([2.0])).low)
    exact = stats.ratio_over_seeds(np.array([1.0, 1.1, 1.2]), np.array([2.0, 2.2, 2.4]))
    assert exact.value == pytest.approx(0.5) and math.isnan(exact.low)  # as of copies of one run
    nearly = stats.ratio_over_seeds(np.array([1.0, 1.1, 1.2001]), np.array([2.0, 2.2, 2.4]))
    assert 0.49 < nearly.low < nearly.high < 0.51


# ---------------------------------------------------------------- fidelity and calibration


def test_agreement_is_the_share_of_equal_top_classes():
    a = np.array([[1, 2], [3, 0], [0, 1], [5, 4]])
    b = np.array([[0, 1], [0, 3], [0, 9], [1, 0]])
    assert stats.agreement(a, b) == 75


def test_kl_to_the_teacher_is_scipys_relative_entropy(generator, logits):
    teacher = generator.normal(0, 2, logits.shape)
    expected = np.mean(
        [scipy.stats.entropy(p, q) for p, q in zip(softmax(teacher), softmax(logits), strict=True)]
    )
    assert stats.kl_to_teacher(logits, teacher) == pytest.approx(expected)
    assert stats.kl_to_teacher(teacher, teacher) == 0


def test_kl_to_the_teacher_stands_logits_of_any_size():
    assert stats.kl_to_teacher(np.array([[0, 1e4]]), np.array([[1e4, 0]])) == pytest.approx(1e4)


def test_nll_and_brier_score_by_their_definitions(logits, labels):
    p = softmax(logits)
    nll = -np.mean([math.log(row[label]) for row, label in zip(p, labels, strict=True)])
    brier = np.mean(
        [
            sum((value - (k == label)) ** 2 for k, value in enumerate(row))
            for row, label in zip(p, labels, strict=True)
        ]
    )
    assert stats.negative_log_likelihood(logits, labels) == pytest.approx(nll, rel=1e-5)
    assert stats.brier_score(logits, labels) == pytest.approx(brier, rel=1e-5)


def test_a_certain_and_wrong_answer_has_a_brier_score_of_2():
    assert stats.brier_score(np.array([[99.0, 0]]), np.array([1])) == pytest.approx(2)


def test_reliability_bins_hold_equally_many_images_in_order_of_confidence():
    confidences = np.array([0.9, 0.6, 0.8, 0.7])
    logits = np.log(np.stack([confidences, 1 - confidences], 1))
    confidence, accuracy, sizes = stats.reliability(logits, np.array([0, 1, 0, 0]), bins=2)
    assert confidence == pytest.approx([0.65, 0.85])
    assert accuracy == pytest.approx([0.5, 1])
    assert sizes.tolist() == [2, 2]
    # In a bin each, as there are fewer than bins: the mean of 0.1, 0.6, 0.2 and 0.3.
    assert stats.expected_calibration_error(logits, np.array([0, 1, 0, 0])) == pytest.approx(30)


def test_ece_by_a_loop_over_images(logits, labels):
    p = np.array(softmax(logits))
    ranked = sorted(zip(p.max(1), p.argmax(1) == labels, strict=True), key=lambda pair: pair[0])
    bins = [ranked[k * 20 : (k + 1) * 20] for k in range(15)]  # 300 images
    gaps = [abs(sum(right for _, right in part) - sum(c for c, _ in part)) for part in bins]
    expected = 100 * sum(gaps) / 300
    assert stats.expected_calibration_error(logits, labels) == pytest.approx(expected, rel=1e-5)


def test_fewer_images_than_bins_leave_no_empty_bin(logits, labels):
    confidence, _, sizes = stats.reliability(logits[:4], labels[:4])
    assert sizes.tolist() == [1] * 4 and np.isfinite(confidence).all()
    assert 0 <= stats.expected_calibration_error(logits[:4], labels[:4]) <= 100


@pytest.mark.parametrize("temperature", [0.4, 1, 3])
def test_the_fitted_temperature_is_the_one_that_the_labels_were_drawn_at(generator, temperature):
    logits = generator.normal(0, 3, (20_000, 10))
    gumbel = generator.gumbel(size=logits.shape)  # the arg max is a draw from the softmax
    labels = (logits / temperature + gumbel).argmax(1)
    assert stats.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_the_fitted_temperature_is_where_the_nll_is_lowest(generator, logits, labels):
    labels = np.where(generator.random(300) < 0.7, logits.argmax(1), labels)
    fitted = stats.fit_temperature(logits, labels)
    nll = [stats.negative_log_likelihood(logits / (fitted * f), labels) for f in (0.99, 1, 1.01)]
    assert nll[1] == min(nll)


# ---------------------------------------------------------------- classes


def test_class_errors_and_confusion_by_a_loop(generator, labels):
    predicted = np.where(generator.random(300) < 0.7, labels, generator.integers(0, 10, 300))
    errors, matrix = stats.class_errors(labels, predicted), stats.confusion(labels, predicted)
    for i, j in itertools.product(range(10), range(10)):
        of_class = [p for y, p in zip(labels, predicted, strict=True) if y == i]
        assert matrix[i, j] == pytest.approx(100 * of_class.count(j) / len(of_class))
    assert errors == pytest.approx(100 - np.diag(matrix))


def test_a_class_without_images_has_no_errors():
    labels = np.array([0, 0, 1])
    assert stats.class_errors(labels, np.array([0, 2, 1])).tolist() == [50] + [0] * 9
    assert stats.confusion(labels, labels)[5].tolist() == [0] * 10


def test_coefficient_of_variation_is_scipys(generator):
    values = generator.random((4, 10))
    assert stats.coefficient_of_variation(values) == pytest.approx(
        scipy.stats.variation(values, axis=1)
    )
    assert stats.coefficient_of_variation(np.array([1, 3])) == pytest.approx(0.5)


def test_without_errors_they_lie_evenly():
    assert stats.coefficient_of_variation(np.zeros((2, 10))).tolist() == [0, 0]
    assert stats.normalised_entropy(np.zeros(10)) == 1


def test_normalised_entropy_by_its_definition():
    assert stats.normalised_entropy(np.array([3, 1])) == pytest.approx(
        -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    )
    assert stats.normalised_entropy(np.full(10, 7.0)) == pytest.approx(1)
    assert stats.normalised_entropy(np.eye(10)[3]) == pytest.approx(0)


def test_correlation_is_numpys(generator):
    a, b = generator.random((2, 10))
    assert stats.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert math.isnan(stats.correlation(a, np.ones(10)))


def test_permuted_correlation_is_the_share_of_all_permutations():
    """Six values have 720 permutations: every one of them is tried here."""
    a, b = np.array([3, 1, 4, 1, 5, 9.0]), np.array([2, 7, 1, 8, 2, 8.0])
    found = np.corrcoef(a, b)[0, 1]
    everything = [np.corrcoef(a, order)[0, 1] for order in itertools.permutations(b)]
    tails = [np.mean(np.array(everything) * sign >= found * sign - 1e-9) for sign in (1, -1)]
    estimate = stats.permuted_correlation(a, b)
    assert estimate.value == pytest.approx(found)
    assert estimate.p == pytest.approx(min(1, 2 * min(tails)), abs=1e-9)


def test_the_interval_of_a_correlation_is_fishers(generator):
    a = generator.random(10)
    b = a + 0.2 * generator.random(10)
    estimate = stats.permuted_correlation(a, b)
    centre, reach = math.atanh(np.corrcoef(a, b)[0, 1]), 1.959964 / math.sqrt(10 - 3)
    expected = (math.tanh(centre - reach), math.tanh(centre + reach))
    assert estimate[1:3] == pytest.approx(expected, rel=1e-5)
    assert estimate.p < 0.01


def test_a_constant_vector_correlates_with_nothing():
    assert np.isnan(stats.permuted_correlation(np.ones(10), np.arange(10.0))[:4]).all()


# ---------------------------------------------------------------- curves


def test_swing_is_the_deviation_of_the_changes_after_warm_up():
    curve = np.array([0, 50, 80, 85, 88, 90, 91, 90, 92, 91.0])
    assert stats.swing(curve) == pytest.approx(np.std([1, -1, 2, -1], ddof=1))
    assert stats.swing(curve, 6) == pytest.approx(np.std([-1, 2, -1], ddof=1))


def test_a_steady_climb_does_not_swing():
    assert stats.swing(np.linspace(80, 90, 30)) == pytest.approx(0, abs=1e-9)


def test_a_swing_of_second_order_is_blind_to_descent(generator):
    noise = generator.normal(0, 0.1, 400)
    descent = 100 * np.exp(-np.arange(400) / 50)
    expected = pytest.approx(np.sqrt(2) * 0.1, rel=0.1)
    assert stats.swing(noise) == expected and stats.swing(noise + descent) > 0.4
    assert stats.swing(noise, order=2) == expected == stats.swing(noise + descent, order=2)


def test_a_short_curve_has_no_swing():
    assert math.isnan(stats.swing(np.arange(8.0)))
    assert math.isnan(stats.swing(np.array([])))


def test_sampling_swing_is_that_of_fresh_images(generator):
    accuracies = generator.binomial(5000, 0.92, 20_000) / 50
    assert stats.sampling_swing(92, 5000) == pytest.approx(np.diff(accuracies).std(), rel=0.03)


def test_first_epoch_at_counts_from_1():
    curve = np.array([80, 90, 85, 92.0])
    assert stats.first_epoch_at(curve, 90) == 2
    assert stats.first_epoch_at(curve, 0) == 1
    assert math.isnan(stats.first_epoch_at(curve, 95))


def test_settled_level_is_the_median_of_the_last_five():
    assert stats.settled_level(np.array([1, 2, 90, 91, 95, 10, 92])) == 91
    assert stats.settled_level(np.array([7, 9])) == 8


@pytest.mark.parametrize("change", [11, 20, 36])
def test_change_point_is_the_first_epoch_of_the_new_level(generator, change):
    curve = np.where(np.arange(1, 41) < change, 90, 92) + generator.normal(0, 0.2, 40)
    assert stats.change_point(curve) == change


def test_change_point_splits_where_the_t_statistic_is_largest(generator):
    """The least squares of two levels are at the largest pooled t statistic between them."""
    curve = generator.normal(0, 1, 30)
    t = {
        split: abs(scipy.stats.ttest_ind(curve[5:split], curve[split:]).statistic)
        for split in range(10, 26)
    }
    assert stats.change_point(curve) == max(t, key=t.get) + 1


def test_too_short_a_curve_has_no_change_point():
    assert math.isnan(stats.change_point(np.arange(14.0)))
    assert stats.change_point(np.arange(15.0)) == 11
    assert math.isnan(stats.change_point(np.array([])))


# ---------------------------------------------------------------- several tests at once


def test_holm_by_hand():
    # In order 0.005 × 4, 0.01 × 3, 0.03 × 2, and 0.04 × 1, which may not fall below 0.06.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_at_1_and_counts_no_unknown_p():
    assert stats.holm([0.6, 0.5]) == pytest.approx([1, 1])
    adjusted = stats.holm([0.02, math.nan, 0.03])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04]) and math.isnan(adjusted[1])
    assert stats.holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_step_down_rule_rejects(p_values):
    adjusted = stats.holm(p_values)
    rejected = set()
    for step, k in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[k] * (len(p_values) - step) >= 0.05:
            break
        rejected.add(k)
    assert {k for k, p in enumerate(adjusted) if p < 0.05} == rejected


def test_the_calibration_error_by_chance_is_that_of_drawn_labels(generator):
    logits = generator.normal(0, 2, (3000, 10))
    p = scipy.special.softmax(logits, axis=1)
    drawn = [
        stats.expected_calibration_error(logits, (p.cumsum(1) > u).argmax(1))
        for u in generator.random((50, 3000, 1))
    ]
    by_chance = stats.chance_calibration_error(logits, p.argmax(1))
    assert by_chance == pytest.approx(np.mean(drawn), rel=0.1)


def test_an_estimate_knows_nothing_but_its_value_unless_told():
    assert np.isnan(Estimate(1.0)[1:4]).all()
