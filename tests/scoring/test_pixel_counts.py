"""Counts and scores by hand on 2x2 masks."""

import jax
import numpy as np
import pytest

from auxseg.scoring import pixel_counts

REFERENCES = np.array([[[0, 1], [1, 2]], [[0, 0], [0, 0]], [[3, 3], [3, 3]]])
PREDICTIONS = np.array([[[0, 1], [2, 2]], [[0, 0], [0, 3]], [[0, 0], [0, 0]]])


@pytest.fixture
def counts():
    got = pixel_counts.count_pixels(predictions=PREDICTIONS, masks=REFERENCES, num_classes=4)
    return jax.device_get(got)


def test_counts(counts):
    np.testing.assert_array_equal(counts.overlap, [[1, 1, 1, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(counts.predicted, [[1, 1, 2, 0], [3, 0, 0, 1], [4, 0, 0, 0]])
    np.testing.assert_array_equal(counts.reference, [[1, 2, 1, 0], [4, 0, 0, 0], [0, 0, 0, 4]])


def test_dice_per_case_leaves_out_what_neither_mask_has(counts):
    nan = np.nan
    expected = [[1, 2 / 3, 2 / 3, nan], [6 / 7, nan, nan, 0], [0, nan, nan, 0]]
    np.testing.assert_allclose(pixel_counts.dice_per_case(counts), expected)


def test_mean_dice_is_over_the_cases_that_have_the_class(counts):
    mean, number = pixel_counts.mean_dice(counts)
    np.testing.assert_array_equal(number, [2, 1, 1, 1])
    np.testing.assert_allclose(mean, [(1 + 6 / 7) / 2, 2 / 3, 2 / 3, 0])


def test_class_that_no_case_has_gets_nan_and_zero():
    mask = np.zeros((2, 2, 2), int)
    got = jax.device_get(pixel_counts.count_pixels(predictions=mask, masks=mask, num_classes=2))
    mean, number = pixel_counts.mean_dice(got)
    np.testing.assert_array_equal(number, [2, 0])
    np.testing.assert_array_equal(mean, [1, np.nan])


def test_false_positive_cases(counts):
    np.testing.assert_array_equal(pixel_counts.false_positive_cases(counts), [1, 0, 0, 1])


def test_pooled_dsc_equals_accuracy_and_hides_a_missed_nodule(counts):
    assert pixel_counts.pooled_dsc(counts) == pytest.approx(6 / 12)
    assert pixel_counts.pooled_accuracy(counts) == pytest.approx(6 / 12)
    reference = np.zeros((1, 40, 40), int)
    reference[0, 10:30, 10:30] = 1
    missed = reference.copy()
    reference[0, 15:18, 15:18] = 3
    got = jax.device_get(pixel_counts.count_pixels(predictions=missed, masks=reference, num_classes=4))
    assert pixel_counts.mean_dice(got)[0][3] == 0.0
    assert pixel_counts.pooled_dsc(got) == pytest.approx(1 - 9 / 1600)
