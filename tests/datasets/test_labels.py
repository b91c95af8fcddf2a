"""LUNA16's values as classes, by hand and on real masks."""

import numpy as np
import pytest

from auxseg.base.classes import LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.base.errors import InputError
from auxseg.ct import images
from auxseg.ct.geometry import index_to_mm
from auxseg.datasets import labels


def test_luna16_values_become_classes():
    mask = np.array([[0, 3], [4, 5]], np.int16)
    np.testing.assert_array_equal(labels.from_luna16(mask, "anatomy", where="scan"), [[0, 1], [2, 0]])
    np.testing.assert_array_equal(
        labels.from_luna16(mask, "airway_as_nodule", where="scan"), [[0, 1], [2, 3]]
    )


def test_other_values_and_choices_are_named():
    with pytest.raises(InputError, match="got 1, 7, expected only 0, 3, 4, 5, in scan x"):
        labels.from_luna16(np.array([0, 1, 3, 7]), "anatomy", where="scan x")
    with pytest.raises(InputError, match="data.labels: got 'lungs', expected one of 'anatomy'"):
        labels.from_luna16(np.array([0]), "lungs", where="scan x")


def test_label_vector_marks_the_classes_present():
    np.testing.assert_array_equal(labels.label_vector(np.array([[0, 0], [3, 1]], np.uint8)), [1, 1, 0, 1])
    assert labels.label_vector(np.zeros((2, 2), np.uint8)).dtype == np.uint8


@pytest.mark.parametrize("uid_ending", ["821260", "741492"])
def test_real_masks_have_left_right_and_airway_where_they_belong(real_data, uid_ending):
    """The left lung lies at +x of the right one, the airway between them and in the upper half."""
    (path,) = (real_data / "seg-lungs-LUNA16").glob(f"*{uid_ending}.mhd")
    volume, geometry = images.read_volume(path), images.read_geometry(path)
    classes = labels.from_luna16(volume, "anatomy", where=path)
    paper = labels.from_luna16(volume, "airway_as_nodule", where=path)

    def centre_mm(voxels):
        return index_to_mm(geometry, np.argwhere(voxels).mean(axis=0)[::-1])

    left, right = centre_mm(classes == LEFT), centre_mm(classes == RIGHT)
    airway = centre_mm(paper == NODULE)
    assert left[0] - right[0] > 100
    assert right[0] + 50 < airway[0] < left[0] - 50
    assert airway[2] > max(left[2], right[2])
    assert (classes == NODULE).sum() == 0
    litres = (classes > 0).sum() * np.prod(geometry.spacing_xyz_mm) / 1e6
    assert 2 < litres < 9
    for index_z in (0, len(volume) // 2):
        np.testing.assert_array_equal(images.read_slice(path, index_z), volume[index_z])


def test_unknown_pixels_stay_and_leave_the_absent_classes_open():
    mask = np.array([[0, 3], [UNKNOWN, 5]], np.int16)
    np.testing.assert_array_equal(labels.from_luna16(mask, "anatomy", where="scan"), [[0, 1], [UNKNOWN, 0]])
    np.testing.assert_array_equal(
        labels.label_vector(np.array([0, 3, UNKNOWN], np.uint8)), [1, UNKNOWN, UNKNOWN, 1]
    )
