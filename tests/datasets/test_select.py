"""Fewer classes of a data set of lungs and nodules."""

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.datasets import select
from tests import fakes

MASK = np.array([[[2, 0, 1, 1], [2, 0, 3, 1], [2, 0, 1, 1]]], np.uint8)
"""The right lung at the left, the left lung at the right with a nodule of one pixel at its edge."""


def selected(*names):
    made = fakes.dataset(np.zeros(MASK.shape, np.int16), MASK)
    return select.select(made, ("background", *names))


def test_nodules_alone():
    dataset = selected("nodule")
    np.testing.assert_array_equal(dataset.read([0])[1], (MASK == 3).astype(np.uint8))
    np.testing.assert_array_equal(dataset.table.labels, [[1, 1]])
    assert dataset.classes == ("background", "nodule") and dataset.table.has_nodule.tolist() == [True]
    assert dataset.name == "fake-nodule"


def test_the_background_is_there_where_no_lung_is():
    made = fakes.dataset(np.zeros((1, 2, 2), np.int16), np.array([[[0, 3], [0, 0]]], np.uint8))
    np.testing.assert_array_equal(select.select(made, ("background", "nodule")).table.labels, [[1, 1]])


def test_lungs_without_nodules_have_no_hole_and_say_where_one_was():
    dataset = selected("left_lung", "right_lung")
    mask = dataset.read_native_mask(0)
    assert mask[1, 2] in (0, 1)  # the nearest of the lung and the background: both one pixel away
    np.testing.assert_array_equal(np.delete(mask.ravel(), 6), np.delete(MASK.ravel(), 6))
    assert dataset.table.has_nodule.tolist() == [True]  # patients with one are still dealt out evenly


def test_both_lungs_as_one():
    mask = selected("nodule", "lung").read_native_mask(0)
    np.testing.assert_array_equal(mask, np.array([0, 2, 2, 1], np.uint8)[MASK[0]])


def test_a_nodule_in_the_middle_of_a_lung_becomes_lung():
    mask = np.ones((1, 5, 5), np.uint8)
    mask[0, 2, 2] = 3
    dataset = select.select(fakes.dataset(np.zeros(mask.shape, np.int16), mask), ("background", "lung"))
    np.testing.assert_array_equal(dataset.read_native_mask(0), np.ones((5, 5)))


def test_a_class_is_there_where_one_of_its_members_is_and_unknown_where_one_may_be():
    labels = np.array([[1, 0], [0, 255], [0, 0], [255, 1]], np.uint8)
    assert select._any_of(labels).tolist() == [1, 255, 0, 1]


@pytest.mark.parametrize("names", [("heart",), ("lung", "left_lung")])
def test_other_structures_and_doubled_pixels_are_refused(names):
    with pytest.raises(InputError, match="data.classes: got .* expected different structures of fake"):
        selected(*names)
