"""Nodules matched as objects: what counts as a hit."""

import numpy as np

from auxseg.scoring import matching


def matched(pixels):
    """Returns the kinds of objects where `pixels` of a nodule of 100 are predicted and no other."""
    reference, prediction = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    reference[1:11, 1:11] = True
    prediction[1, 1 : 1 + pixels] = True
    objects = matching.match_objects(
        prediction=prediction, reference=reference, spacing_yx_mm=np.array([1.0, 1.0])
    )
    return [(each["kind"], each["iou"]) for each in objects]


def test_nine_of_a_hundred_pixels_do_not_find_a_nodule_and_ten_do():
    assert matched(9) == [("missed", 0.0), ("false", 0.0)]
    assert matched(10) == [("found", 0.1)]


def test_the_largest_overlap_takes_a_nodule_and_the_other_is_false():
    reference, prediction = np.zeros((5, 12), bool), np.zeros((5, 12), bool)
    reference[1:4, 1:11] = True
    prediction[1:4, 1:4] = prediction[1:4, 5:11] = True  # 9 and 18 of 30 pixels
    objects = matching.match_objects(prediction=prediction, reference=reference, spacing_yx_mm=(2.0, 0.5))
    assert [(each["kind"], each["area_px"]) for each in objects] == [("found", 30), ("false", 9)]
    assert objects[0]["iou"] == 0.6
    # A circle of 30 mm2 is 6.18 mm wide; the centre of the false one lies in its middle.
    assert abs(objects[0]["diameter_mm"] - 6.1804) < 1e-3 and objects[0]["stratum"] == "6-10 mm"
    assert (objects[1]["center_y_px"], objects[1]["center_x_px"]) == (2.0, 2.0)


def test_strata_are_of_millimetres():
    """7 pixels are 2.985 wide: at 2 mm each that is a nodule of 5.97 mm, at 2.5 mm one of 7.46 mm."""
    mask = np.zeros((3, 9), bool)
    mask[1, 1:8] = True
    names = [
        matching.match_objects(prediction=mask, reference=mask, spacing_yx_mm=(mm, mm))[0]["stratum"]
        for mm in (2.0, 2.5)
    ]
    assert names == [matching.stratum(5.97), matching.stratum(7.46)] and names[0] != names[1]


def test_only_the_objects_that_are_kept_are_matched():
    reference = np.zeros((4, 12), bool)
    reference[1:3, 1:5] = True
    reference[1:3, 7:11] = True
    overlaps = matching.find_overlaps(reference, reference)
    assert matching.match(overlaps, np.array([False, True])) == {1: (1, 1.0)}
    assert matching.match(overlaps) == {0: (0, 1.0), 1: (1, 1.0)}


def test_the_box_around_a_mask_and_around_nothing():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 4] = True
    assert matching.bounding_box(mask) == (slice(1, 3), slice(4, 5))
    assert np.ones((5, 6))[matching.bounding_box(np.zeros((5, 6), bool))].shape == (0, 0)
