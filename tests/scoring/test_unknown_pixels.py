"""Pixels of which nothing is known are in no score: pixels, distances, objects, calibration, thresholds."""

import numpy as np
import pytest

from auxseg.base.classes import NODULE, UNKNOWN
from auxseg.scoring import calibration, case_scores, matching, operating_point, pixel_counts, surfaces


def score(prediction, reference):
    return case_scores.score_case(
        prediction=np.asarray(prediction, np.uint8),
        reference=np.asarray(reference, np.uint8),
        spacing_yx_mm=(1.0, 1.0),
    )


def test_counts_leave_unknown_pixels_out():
    masks = np.array([[[0, 1], [UNKNOWN, UNKNOWN]], [[UNKNOWN, UNKNOWN], [UNKNOWN, UNKNOWN]]], np.uint8)
    predictions = np.array([[[0, 0], [1, 1]], [[1, 1], [1, 1]]])
    counts = pixel_counts.count_pixels(predictions=predictions, masks=masks, num_classes=2)
    np.testing.assert_array_equal(counts.overlap, [[1, 0], [0, 0]])
    np.testing.assert_array_equal(counts.predicted, [[2, 0], [0, 0]])
    np.testing.assert_array_equal(counts.reference, [[1, 1], [0, 0]])
    assert pixel_counts.pooled_accuracy(counts) == pixel_counts.pooled_dsc(counts) == 0.5
    assert pixel_counts.false_positive_cases(counts).tolist() == [0, 0]
    nothing = pixel_counts.Counts(*(each[1:] for each in counts[:3]))
    assert np.isnan(pixel_counts.pooled_accuracy(nothing)) and np.isnan(pixel_counts.pooled_dsc(nothing))


def test_overlap_by_hand():
    row = score([[1, 1, 1], [1, 0, 0]], [[1, 0, UNKNOWN], [1, 0, UNKNOWN]]).row
    # Of four known pixels: two of the lung found, one added.
    assert (row["left_lung_dice"], row["accuracy"]) == (pytest.approx(4 / 5), 3 / 4)
    assert row["left_lung_predicted_px"] == 3 and row["left_lung_specificity"] == 0.5
    assert sum(value for name, value in row.items() if name.startswith("pixels_")) == 4


def test_a_lung_that_runs_on_into_the_unknown_has_no_contour_there():
    reference = np.zeros((9, 9), np.uint8)
    reference[2:7, 2:7] = 1
    reference[:, 5:] = UNKNOWN
    beyond = np.zeros((9, 9), np.uint8)
    beyond[2:7, 2:9] = 1
    row = score(beyond, reference).row
    assert row["left_lung_hd95_mm"] == row["left_lung_assd_mm"] == 0.0
    assert row["left_lung_dice"] == row["left_lung_surface_dice_1mm"] == 1.0
    # A row more at the top: three pixels that lie 1 mm off, of ten in the contour.
    beyond[1, 2:9] = 1
    row = score(beyond, reference).row
    assert row["left_lung_hd95_mm"] == 1.0 and row["left_lung_surface_dice_1mm"] == 1.0
    assert 0.0 < row["left_lung_assd_mm"] < 0.5


def test_a_mask_with_unknown_all_around_keeps_a_contour():
    mask, unknown = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    mask[1, 1], unknown[1, 1] = True, False
    assert surfaces.contour(mask, unknown).sum() == 1


def test_an_object_in_the_unknown_counts_as_nothing_and_one_at_its_edge_by_what_is_known():
    reference = np.zeros((12, 12), np.uint8)
    reference[1:4, 1:4] = NODULE
    reference[:, 6:] = UNKNOWN
    prediction = np.zeros((12, 12), np.uint8)
    prediction[1:4, 1:4] = NODULE
    prediction[8:10, 8:10] = NODULE  # wholly in unknown
    prediction[6, 4:8] = NODULE  # two of its four pixels are known
    scored = score(prediction, reference)
    assert [(item["kind"], item["area_px"]) for item in scored.objects] == [("found", 9), ("false", 2)]
    assert (scored.row["nodules_found"], scored.row["nodules_false"]) == (1, 1)


def test_an_object_that_unknown_cuts_in_two_is_one():
    prediction = np.ones((1, 5), bool)
    known = np.array([[True, True, False, True, True]])
    overlaps = matching.find_overlaps(prediction, np.zeros((1, 5), bool), known)
    np.testing.assert_array_equal(overlaps.given_labels, [[1, 1, 0, 1, 1]])
    assert overlaps.given_px.tolist() == [4]


def test_a_case_of_which_nothing_is_known_has_no_score():
    row = score(np.full((4, 4), NODULE), np.full((4, 4), UNKNOWN)).row
    assert row["nodule_status"] == row["left_lung_status"] == "absent"
    assert np.isnan(row["accuracy"]) and row["nodules_false"] == 0


def test_calibration_counts_known_pixels():
    probabilities = np.full((2, 2, 4), 0.25)
    reference = np.array([[0, UNKNOWN], [UNKNOWN, UNKNOWN]], np.uint8)
    counts = calibration.count_calibration(probabilities=probabilities, reference=reference)
    assert counts[:, :, 0].sum(axis=1).tolist() == [1] * 5


def test_a_threshold_is_chosen_on_known_pixels():
    probabilities = np.zeros((8, 8, 4), np.float32)
    probabilities[..., 0] = 1.0
    for rows in (slice(0, 2), slice(5, 7)):
        probabilities[rows, 0:2] = (0.0, 0.0, 0.0, 1.0)
    reference = np.zeros((8, 8), np.uint8)
    reference[0:2, 0:2], reference[4:] = NODULE, UNKNOWN
    counts = operating_point.count([(probabilities, reference, (1.0, 1.0))], nominal_pixel_mm=1.0)
    found, missed, false, dice, _ = counts.sums[0]
    assert (found, missed, false, dice) == (1, 0, 0, 1.0)


CROP = np.array([[1, 1, 1, 0], [0] * 4, [0] * 4, [0, 0, 0, 1]], np.uint8)
"""A crop's value 0 may be background, left or right lung; 3 is nodule."""
LUNGS_ONLY = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0] * 4], np.uint8)
"""Nodules are not told from the lung that they lie in."""


def test_what_a_label_may_mean_is_right():
    prediction = np.array([[0, 1, 2, 3], [3, 3, 1, 0]], np.uint8)
    reference = np.array([[0, 0, 0, 0], [3, UNKNOWN, 3, 3]], np.uint8)
    expected = [[0, 0, 0, 3], [3, 3, 0, 0]]
    np.testing.assert_array_equal(case_scores.relabel(prediction, reference, CROP), expected)
    got = pixel_counts.relabel(prediction[None], reference[None], CROP[None])
    np.testing.assert_array_equal(got, [expected])
    lungs = case_scores.relabel(np.array([[3, 3, 3]]), np.array([[1, 2, 0]]), LUNGS_ONLY)
    np.testing.assert_array_equal(lungs, [[1, 2, 1]])


def test_a_crop_is_scored_by_its_nodule_alone():
    prediction = np.array([[0, 1, 2, 3], [3, 3, 1, 0]], np.uint8)
    reference = np.array([[0, 0, 0, 0], [3, 3, 3, 0]], np.uint8)
    scored = case_scores.score_case(
        prediction=prediction,
        reference=reference,
        spacing_yx_mm=(1.0, 1.0),
        probabilities=np.eye(4)[prediction],
        meaning=CROP,
    )
    assert scored.row["nodule_dice"] == pytest.approx(4 / 6) and scored.row["accuracy"] == 6 / 8
    assert scored.row["left_lung_status"] == "unknown" and np.isnan(scored.row["left_lung_dice"])
    assert np.isnan(scored.row["left_lung_predicted_px"]) and np.isnan(scored.row["shift_y_px"])
    assert scored.calibration[..., 0].sum(axis=1).tolist() == [0, 0, 0, 8, 0]
    counts = pixel_counts.count_pixels(
        predictions=prediction[None], masks=reference[None], num_classes=4, meanings=CROP[None]
    )
    mean, cases = pixel_counts.mean_dice(counts)
    assert cases.tolist() == [0, 0, 0, 1] and mean[3] == pytest.approx(4 / 6)
    assert pixel_counts.false_positive_cases(counts).tolist() == [0, 0, 0, 0]
    assert pixel_counts.pooled_accuracy(counts) == 6 / 8


def test_of_a_set_of_lungs_nodules_are_not_scored():
    row = case_scores.score_case(
        prediction=np.array([[3, 1, 0]], np.uint8),
        reference=np.array([[1, 1, 0]], np.uint8),
        spacing_yx_mm=(1.0, 1.0),
        meaning=LUNGS_ONLY,
    ).row
    assert row["accuracy"] == 1.0 and row["nodule_status"] == "unknown" and row["nodules_false"] == 0
