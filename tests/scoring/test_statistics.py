"""Statistics by hand, against scipy, and by simulation where only coverage can be checked."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from auxseg.base.errors import InputError
from auxseg.scoring import calibration, statistics


def test_bootstrap_mean_leaves_nan_out_and_counts():
    interval = statistics.bootstrap_mean([0.5, math.nan, 1.0, 0.0], ["a", "b", "c", "c"])
    assert interval.estimate == 0.5 and (interval.num_cases, interval.num_patients) == (3, 2)
    assert interval.low <= 0.5 <= interval.high


def test_bootstrap_resamples_whole_patients():
    """Two patients of one value each: a resample holds 0, 1 or 2 of either, nothing between."""
    values, patients = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    interval = statistics.bootstrap_mean(values, patients)
    assert (interval.low, interval.high) == (0.0, 1.0)
    apart = statistics.bootstrap_mean(values, range(100))
    assert 0.35 < apart.low < 0.45 and 0.55 < apart.high < 0.65


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).normal(0.9, 0.05, 60)
    ours = statistics.bootstrap_mean(values, range(60), num_resamples=20000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=2)
    low, high = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=5e-4)


def test_bootstrap_ratio_pools():
    interval = statistics.bootstrap_ratio([1, 30], [10, 100], ["a", "b"])
    assert interval.estimate == pytest.approx(31 / 110)
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.3))


def test_resamples_without_a_denominator_are_dropped():
    """Patient a alone, a quarter of the resamples, has none; all others have 5 of 10 for each b in them."""
    interval = statistics.bootstrap_ratio([0, 5], [0, 10], ["a", "b"])
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_a_ratio_without_any_denominator_is_unknown():
    interval = statistics.bootstrap_ratio([1, 1], [0, 0], ["a", "b"])
    assert all(math.isnan(value) for value in (interval.estimate, interval.low, interval.high))


def test_bootstrap_repeats_itself():
    values = np.linspace(0, 1, 20)
    assert statistics.bootstrap_mean(values, range(20), seed=3) == statistics.bootstrap_mean(
        values, range(20), seed=3
    )


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_bootstrap_of_nothing(values):
    interval = statistics.bootstrap_mean(values, ["a"] * len(values))
    assert math.isnan(interval.estimate) and math.isnan(interval.low) and interval.num_cases == 0


def test_one_patient_has_no_interval():
    interval = statistics.bootstrap_mean([0.2, 0.4], ["a", "a"])
    assert interval.estimate == pytest.approx(0.3) and math.isnan(interval.low)


def test_bootstrap_covers():
    """Of 300 intervals about 95 % hold the truth; 40 patients of 2 equal cases each."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        values = np.repeat(rng.normal(size=40), 2)
        interval = statistics.bootstrap_mean(values, np.repeat(np.arange(40), 2), num_resamples=500)
        hits += interval.low <= 0 <= interval.high
    assert 0.89 <= hits / 300 <= 0.98


def test_bland_altman_by_hand():
    agreement = statistics.bland_altman([-1.0, 0.0, 1.0, 4.0])
    sd = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert agreement.bias == 1.0 and agreement.sd == pytest.approx(sd)
    assert agreement.upper_limit == pytest.approx(1 + 1.959964 * sd)
    assert agreement.bias_interval[1] == pytest.approx(1 + 3.182446 * sd / 2)
    half = 3.182446 * sd * math.sqrt(1 / 4 + 1.959964**2 / 6)
    assert agreement.lower_interval == pytest.approx(
        (1 - 1.959964 * sd - half, 1 - 1.959964 * sd + half), rel=1e-5
    )


def test_bland_altman_of_two_by_hand():
    """Differences 0 and 2: bias 1, deviation 1.4142; Student's t of one degree of freedom is 12.7062."""
    agreement = statistics.bland_altman([0.0, 2.0])
    assert agreement.bias_interval[1] == pytest.approx(1 + 12.7062 * math.sqrt(2) / math.sqrt(2), rel=1e-5)
    half = 12.7062 * math.sqrt(2) * math.sqrt(1 / 2 + 1.959964**2 / 2)
    assert agreement.upper_interval[1] - agreement.upper_limit == pytest.approx(half, rel=1e-5)


def test_limits_centre_on_the_bias():
    agreement = statistics.bland_altman(np.random.default_rng(0).normal(-125, 2000, 50))
    assert (agreement.lower_limit + agreement.upper_limit) / 2 == pytest.approx(agreement.bias)


def test_bland_altman_of_few():
    assert math.isnan(statistics.bland_altman([]).bias)
    one = statistics.bland_altman([3.0])
    assert one.bias == 3.0 and math.isnan(one.sd) and math.isnan(one.bias_interval[0])


def test_correlation_equals_scipy():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 30))
    theirs = stats.pearsonr(x, x + noise)
    ours = statistics.correlation(x, x + noise)
    low, high = theirs.confidence_interval()
    assert (ours.estimate, ours.low, ours.high) == pytest.approx((theirs.statistic, low, high))


@pytest.mark.parametrize(("x", "y"), [([1, 2], [3, 4]), ([1, 1, 1], [1, 2, 3]), ([], [])])
def test_correlation_of_too_little(x, y):
    assert math.isnan(statistics.correlation(x, y).estimate)


def test_exact_sign_flip_by_enumeration():
    first, second = np.zeros(6), np.array([0.1, 0.2, 0.3, -0.05, 0.4, 0.1])
    result = statistics.paired_test(first, second, range(6))
    flips = [abs(np.dot(signs, second)) >= abs(second.sum()) - 1e-12
             for signs in itertools.product((-1, 1), repeat=6)]  # fmt: skip
    assert result.exact and result.p_value == pytest.approx(np.mean(flips))
    assert result.difference.estimate == pytest.approx(second.mean())
    assert result.effect_size == pytest.approx(second.mean() / second.std(ddof=1))


def test_twelve_patients_are_the_most_of_whom_all_flips_are_tried():
    """Of 12 equal differences two of the 4,096 flips are as large: none turned, and all."""
    found = statistics.paired_test(np.zeros(12), np.ones(12), range(12))
    assert found.exact and found.p_value == 2 / 4096
    assert not statistics.paired_test(np.zeros(13), np.ones(13), range(13)).exact


def test_flips_that_rounding_alone_sets_apart_are_ties():
    """Of the 16 flips of 3, 1, 2 and -3 tenths twelve are 3 or more, as far from 0 as their sum; in any unit."""
    for unit in (1.0, 1e-6):
        found = statistics.paired_test(np.zeros(4), np.array([0.3, 0.1, 0.2, -0.3]) * unit, range(4))
        assert found.p_value == 12 / 16


def test_random_flips_too_count_ties():
    """Nine patients without a difference change nothing, but that there are too many for all flips: 12 of 16 again."""
    found = statistics.paired_test(np.zeros(13), np.array([0.3, 0.1, 0.2, -0.3] + 9 * [0.0]), range(13))
    assert not found.exact and found.p_value == pytest.approx(12 / 16, abs=0.02)


def test_random_sign_flip_agrees_with_scipy():
    differences = np.random.default_rng(4).normal(0.02, 0.08, 40)
    ours = statistics.paired_test(np.zeros(40), differences, range(40))
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20000, rng=0
    )
    assert not ours.exact and ours.p_value == pytest.approx(theirs.pvalue, abs=0.015)
    assert ours.wilcoxon_p == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_five_patients_cannot_reach_five_percent():
    assert statistics.paired_test(np.zeros(5), np.ones(5), range(5)).p_value == pytest.approx(2**-4)


def test_cases_of_one_patient_count_once():
    """One patient of fifty equal differences is no evidence; fifty patients are."""
    many = statistics.paired_test(np.zeros(50), np.ones(50), range(50))
    few = statistics.paired_test(np.zeros(50), np.ones(50), ["a"] * 49 + ["b"])
    assert many.p_value < 0.001 and few.p_value == 0.5


def test_no_difference():
    result = statistics.paired_test([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], list("abc"))
    assert result.p_value == 1.0 and result.wilcoxon_p == 1.0 and math.isnan(result.effect_size)


def test_paired_test_leaves_incomplete_pairs_out():
    result = statistics.paired_test([0.5, math.nan, 0.7], [0.6, 0.6, math.nan], list("abc"))
    assert result.difference.num_cases == 1 and math.isnan(result.p_value) and result.exact


def test_paired_test_refuses_unequal_lengths():
    with pytest.raises(InputError, match="pair the cases first"):
        statistics.paired_test([0.5], [0.5, 0.6], "ab")


def test_sign_flip_keeps_its_level():
    rng = np.random.default_rng(0)
    rejected = [
        statistics.paired_test(np.zeros(10), rng.normal(size=10), range(10)).p_value <= 0.05
        for _ in range(300)
    ]
    assert np.mean(rejected) <= 0.09


def test_holm_by_hand():
    corrected = statistics.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_nan_out_of_the_family():
    np.testing.assert_allclose(statistics.holm([0.02, math.nan, 0.9]), [0.04, math.nan, 0.9])
    assert statistics.holm([]).shape == (0,)
    assert statistics.holm([0.9, 0.8]).max() == 1.0


def test_calibration_error_by_hand():
    bins = np.array([[10, 1.0, 0.0], [0, 0, 0], [10, 9.0, 5.0]])
    assert calibration.calibration_error(bins) == pytest.approx((1 + 4) / 20)
    assert calibration.calibration_error(bins, skip_lowest=True) == pytest.approx(0.4)
    confidence, frequency = calibration.reliability(bins)
    np.testing.assert_allclose(confidence, [0.1, math.nan, 0.9])
    np.testing.assert_allclose(frequency, [0.0, math.nan, 0.5])
    assert math.isnan(calibration.calibration_error(np.zeros((3, 3))))


def test_a_bin_of_one_pixel_has_a_frequency():
    confidence, frequency = calibration.reliability([[1, 0.75, 1], [0, 0, 0]])
    np.testing.assert_array_equal(confidence, [0.75, math.nan])
    np.testing.assert_array_equal(frequency, [1.0, math.nan])


def test_a_bin_whose_pixels_have_no_confidence_is_not_empty():
    confidence, frequency = calibration.reliability([[2, 0.0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(confidence, [0.0, math.nan])
    np.testing.assert_array_equal(frequency, [0.5, math.nan])


def test_four_pairs_are_the_fewest_with_an_interval():
    # r = 0.8 of four pairs: Fisher's z is 1.0986, its standard error 1.
    found = statistics.correlation(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4]))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.8, -0.6969, 0.9956), abs=1e-3)
    assert np.isnan(statistics.correlation(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])).low)
