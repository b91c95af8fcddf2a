"""Masks of whole scans in mm: cubes by hand, unknown voxels, an independent computation of surfaces, nodules as objects."""

import numpy as np
import pytest
from scipy import ndimage

from auxseg.base.classes import LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.scoring import volumes

SPACING = (2.0, 1.0, 0.5)  # z, y, x


def to_mm(index_zyx):
    return (index_zyx * np.array(SPACING))[:, ::-1]


GRID = volumes.Grid(to_mm, voxel_mm3=1.0, diagonal_mm=100.0)


def cube(z, y, x, value=LEFT, shape=(8, 12, 14)):
    mask = np.zeros(shape, np.uint8)
    mask[slice(*z), slice(*y), slice(*x)] = value
    return mask


def test_two_cubes_by_hand():
    """4x4x4 voxels, one moved by a row: 3/4 of each in both."""
    reference, prediction = cube((2, 6), (3, 7), (4, 8)), cube((2, 6), (4, 8), (4, 8))
    found = volumes.score_class(prediction, reference, LEFT, GRID)
    assert found["status"] == "both" and found["dice"] == 0.75
    assert found["volume_ml"] == found["reference_ml"] == 0.064 and found["volume_error_ml"] == 0.0
    assert found["hd95_mm"] == 1.0 and found["surface_dice_1mm"] == 1.0
    # Of 56 surface voxels each, how far to the other's surface: a row of 16 sticks out by 1 mm; of the row of 16 that is now
    # inside, the inner 2x2 are 0.5 mm (a column) from the surface, as the cube is 4 columns of 0.5 mm wide.
    assert np.isclose(found["assd_mm"], (16 * 1.0 + 4 * 0.5) / 56)


def test_surfaces_agree_with_distance_maps():
    """An independent way: erosion and Euclidean distance maps of whole volumes."""
    rng = np.random.default_rng(1)
    masks = [ndimage.gaussian_filter(rng.normal(size=(9, 20, 24)), 2) > 0 for _ in range(2)]
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    apart = [ndimage.distance_transform_edt(~edges[1 - k], SPACING)[edges[k]] for k in (0, 1)]
    found = volumes.score_class(*(mask.astype(np.uint8) for mask in masks), LEFT, GRID)
    assert np.isclose(found["hd95_mm"], max(np.percentile(each, 95) for each in apart))
    assert np.isclose(found["assd_mm"], np.concatenate(apart).mean())
    assert np.isclose(found["surface_dice_1mm"], np.mean(np.concatenate(apart) <= 1.0))
    assert np.isclose(found["dice"], 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()))


@pytest.mark.parametrize(
    ("prediction", "reference", "status", "dice", "hd95_mm"),
    [
        (cube((0, 0), (0, 0), (0, 0)), cube((2, 4), (3, 5), (3, 5)), "missed", 0.0, 100.0),
        (cube((2, 4), (3, 5), (3, 5)), cube((0, 0), (0, 0), (0, 0)), "false positive", np.nan, np.nan),
        (cube((0, 0), (0, 0), (0, 0)), cube((0, 0), (0, 0), (0, 0)), "absent", np.nan, np.nan),
    ],
)
def test_missed_and_false_classes(prediction, reference, status, dice, hd95_mm):
    found = volumes.score_class(prediction, reference, LEFT, GRID)
    assert found["status"] == status
    np.testing.assert_equal((found["dice"], found["hd95_mm"]), (dice, hd95_mm))


def test_unknown_voxels_count_nothing_and_bound_no_surface():
    """Right of column 8 nobody knows: what lies there is no error, and the cut at column 8 is no surface."""
    reference, prediction = cube((2, 6), (3, 7), (4, 8)), cube((2, 6), (3, 7), (4, 12))
    reference[:, :, 8:] = UNKNOWN
    found = volumes.score_class(prediction, reference, LEFT, GRID)
    assert found["dice"] == 1.0 and found["volume_ml"] == 0.064 and found["hd95_mm"] == 0.0
    assert volumes.score_class(cube((2, 6), (3, 7), (5, 12)), reference, LEFT, GRID)["dice"] == pytest.approx(
        2 * 48 / 112
    )


def test_what_is_called_a_nodule_is_in_no_lungs_score():
    """A tool that knows lungs alone is right within the reference's nodule, and one that finds a false one is no worse."""
    lung = cube((1, 7), (2, 10), (2, 12), RIGHT)
    marked = np.where(cube((3, 5), (4, 6), (4, 6), NODULE) > 0, NODULE, lung).astype(np.uint8)
    for prediction, reference in ((lung, marked), (marked, lung)):
        found = volumes.score_class(prediction, reference, RIGHT, GRID)
        assert found["dice"] == 1.0 and found["hd95_mm"] == 0.0


def test_nodules_are_matched_through_slices():
    reference, prediction = np.zeros((8, 12, 14), np.uint8), np.zeros((8, 12, 14), np.uint8)
    reference[1:4, 2:5, 2:6] = NODULE  # 36 voxels, found by half of it and 18 beside it
    prediction[1:4, 2:5, 4:8] = NODULE
    reference[6, 9, 9] = NODULE  # missed
    prediction[6, 1:3, 10:13] = NODULE  # false
    prediction[0, 10, 0:2] = NODULE  # where nobody knows
    reference[0, 10, :] = UNKNOWN
    rows = volumes.match_nodules(prediction, reference, GRID)
    assert [(row["kind"], round(row["iou"], 4), row["volume_mm3"]) for row in rows] == [
        ("found", round(18 / 54, 4), 36.0),
        ("missed", 0.0, 1.0),
        ("false", 0.0, 6.0),
    ]
    assert (rows[0]["x_mm"], rows[0]["y_mm"], rows[0]["z_mm"]) == (3.5 * 0.5, 3.0, 4.0)
    assert (
        np.isclose(rows[0]["diameter_mm"], (6 * 36 / np.pi) ** (1 / 3)) and rows[0]["stratum"] == "under 6 mm"
    )
