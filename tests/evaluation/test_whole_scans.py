"""Scores of lungs against a label map, by hand."""

import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import scans
from auxseg.evaluation import whole_scans

SPACING = (10.0, 10.0, 10.0)  # a voxel is 1 mL


def test_scores_by_hand():
    labels = np.array([[[1, 1, 1, 2, 2, 9, 0, 255]]], np.uint8)
    masks = np.array([[[1, 1, 2, 2, 0, 2, 1, 1]]], np.uint8)
    scores = whole_scans.score_lungs(masks, labels, SPACING)
    assert scores["left_dice"] == pytest.approx(
        2 * 2 / (3 + 3)
    )  # ours at 0, 1, 6; what is unknown counts nothing
    assert scores["right_dice"] == pytest.approx(2 * 1 / (3 + 2))
    assert scores["outside_ml"] == 1 and scores["far_outside_ml"] == 1  # 10 mm from the airway
    assert scores["missed_ml"] == 1 and scores["swapped_ml"] == 1
    assert scores["airway_ml"] == 1 and scores["airway_marked_ml"] == 1 and scores["airway_share"] == 1
    assert (scores["left_ml"], scores["right_ml"]) == (4, 3)
    assert (scores["left_pieces"], scores["right_pieces"]) == (2, 2)


def test_what_lies_near_is_not_far_outside():
    labels, masks = np.zeros((2, 1, 1, 8), np.uint8)
    labels[..., :3], masks[..., :5] = 1, 1
    scores = whole_scans.score_lungs(masks, labels, (1.0, 1.0, 2.0))
    assert scores["outside_ml"] == pytest.approx(0.004) and scores["far_outside_ml"] == pytest.approx(0.002)


def test_a_lung_that_is_not_there_has_no_dice_and_one_that_is_missed_has_none():
    labels = np.array([[[1, 1, 0, 0]]], np.uint8)
    scores = whole_scans.score_lungs(np.zeros_like(labels), labels, SPACING)
    assert scores["left_dice"] == 0 and scores["right_dice"] is None and scores["airway_share"] is None


@pytest.fixture
def scan(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    image.SetSpacing((1.0, 1.0, 2.0))
    image.SetOrigin((0.0, 0.0, -10.0))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    return scans.open_scan(scans.find_scans(tmp_path / "scan.nii.gz")[0], tmp_path)


def write_labels(path, values, origin=(0.0, 0.0, -10.0)):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, 2.0))
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def test_label_maps_are_read_moved_and_left_out_by_boxes(tmp_path, scan):
    values = np.zeros((3, 4, 5), np.uint8)
    values[1, 2, 3] = 1
    write_labels(tmp_path / "labels.nii.gz", values)
    labels = whole_scans.read_labels(tmp_path / "labels.nii.gz", scan, shift_yx=(-1, -1))
    assert np.argwhere(labels).tolist() == [[1, 1, 2]]
    (tmp_path / "boxes.csv").write_text(
        "scan,z_mm,x_min,y_min,x_max,y_max\nother,-8,0,0,4,3\nscan,-8.1,1,0,2,1\n"
    )
    whole_scans.leave_out(labels, whole_scans.read_boxes(tmp_path / "boxes.csv", "scan"), scan)
    assert (labels[1, 0:2, 1:3] == 255).all() and (labels == 255).sum() == 4


def test_a_map_on_another_grid_and_boxes_without_columns_are_refused(tmp_path, scan):
    write_labels(tmp_path / "labels.nii.gz", np.zeros((3, 4, 5), np.uint8), (0.0, 0.0, -4.0))
    with pytest.raises(InputError, match="another grid"):
        whole_scans.read_labels(tmp_path / "labels.nii.gz", scan)
    (tmp_path / "boxes.csv").write_text("scan,z_mm\nscan,1\n")
    with pytest.raises(InputError, match="no column x_min, y_min, x_max, y_max"):
        whole_scans.read_boxes(tmp_path / "boxes.csv", "scan")


def test_the_nearest_slice_is_found(scan):
    assert [whole_scans.find_slice(scan, mm) for mm in (-11.0, -8.9, -7.1, 3.0)] == [0, 1, 1, 2]
