"""Augmentation: what moves, moves in image and mask alike; left and right change places."""

import fakes
import jax
import numpy as np
import pytest

from auxseg.base.classes import UNKNOWN
from auxseg.training import augment

WINDOW = (-1000.0, 400.0)
NONE = augment.Ranges(0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def cases():
    return fakes.two_discs(6, size=32).read(np.arange(6))


def run(cases, ranges, seed=0, step=0, indices=None):
    indices = np.arange(len(cases[0]), dtype=np.int32) if indices is None else indices
    keys = augment.case_keys(seed, np.int32(step), indices)
    return jax.device_get(augment.augment(*cases, keys, ranges=ranges, window_hu=WINDOW))


def test_no_range_changes_nothing(cases):
    images, masks = run(cases, NONE)
    np.testing.assert_allclose(images, cases[0], atol=1e-2)
    np.testing.assert_array_equal(masks, cases[1])
    assert masks.dtype == np.uint8


def test_flip_swaps_the_lungs_and_nothing_else(cases):
    images, masks = run(cases, NONE._replace(flip_probability=1.0))
    np.testing.assert_allclose(images, cases[0][:, :, ::-1], atol=1e-2)
    swapped = np.array([0, 2, 1, 3], np.uint8)[cases[1][:, :, ::-1]]
    np.testing.assert_array_equal(masks, swapped)
    columns = np.arange(32)
    left = [(columns * (m == 1)).sum() / (m == 1).sum() for m in masks]
    assert min(left) > 16  # the left lung is still at the right of the picture


@pytest.mark.parametrize("name", ["shift_fraction", "scale_fraction", "rotate_degrees"])
def test_image_and_mask_move_together(cases, name):
    reach = 20.0 if name == "rotate_degrees" else 0.2
    images, masks = run(cases, NONE._replace(**{name: reach}))
    assert (masks != cases[1]).any()
    lung = (masks == 1) | (masks == 2)
    assert np.median(images[lung]) == pytest.approx(-850, abs=40)
    # Edges are blurred by interpolation; away from them air is lung and the rest is not.
    assert (images[lung] < -405).mean() > 0.9


def test_intensity_stays_in_its_range(cases):
    images, masks = run(cases, NONE._replace(intensity_fraction=0.05))
    np.testing.assert_array_equal(masks, cases[1])
    # Offset at most 5 % of 1400 HU, contrast at most 5 % of the distance to the middle, 600 HU here.
    assert np.abs(images - cases[0]).max() <= 70 + 0.05 * 1300 + 1
    assert np.abs(images - cases[0]).max() > 1


def test_a_case_looks_the_same_wherever_it_is_in_the_batch(cases):
    ranges = augment.Ranges(0.5, 0.1, 0.1, 10.0, 0.05)
    indices = np.arange(6, dtype=np.int32)
    whole = run(cases, ranges, seed=5, step=7)
    last = run(tuple(c[3:] for c in cases), ranges, seed=5, step=7, indices=indices[3:])
    np.testing.assert_array_equal(whole[1][3:], last[1])
    np.testing.assert_allclose(whole[0][3:], last[0], atol=1e-2)
    assert (run(cases, ranges, seed=5, step=8)[1] != whole[1]).any()
    assert (run(cases, ranges, seed=6, step=7)[1] != whole[1]).any()


def test_unknown_pixels_move_and_stay_unknown(cases):
    images, masks = cases
    masks = masks.copy()
    masks[:, 8:16, 20:28] = UNKNOWN
    _, flipped = run((images, masks), NONE._replace(flip_probability=1.0))
    np.testing.assert_array_equal(flipped == UNKNOWN, masks[:, :, ::-1] == UNKNOWN)
    _, moved = run((images, masks), augment.Ranges(0.5, 0.1, 0.1, 10.0, 0.05))
    assert set(np.unique(moved)) == set(np.unique(masks)) and (moved == UNKNOWN).any(axis=(1, 2)).all()


def test_what_was_cut_out_of_a_slice_has_its_edges_mirrored():
    image = np.full((2, 8, 8), -500, np.int16)
    mask = np.ones((2, 8, 8), np.uint8)
    keys = augment.case_keys(0, np.int32(0), np.array([3, 3], np.int32))
    moved, masks = jax.device_get(
        augment.augment(
            image,
            mask,
            keys,
            ranges=NONE._replace(shift_fraction=0.4),
            window_hu=WINDOW,
            is_cut=np.array([True, False]),
        )
    )
    np.testing.assert_allclose(moved[0], -500, atol=1e-2)
    assert masks[0].all() and not masks[1].all() and moved[1].min() < -900


def test_the_scale_of_hu_turns_about_lung():
    image = np.array([[[-850, 150]]], np.int16)
    ranges = NONE._replace(hu_scale_fraction=0.2)
    found = np.array(
        [run((image, np.zeros((1, 1, 2), np.uint8)), ranges, step=step)[0][0, 0] for step in range(40)]
    )
    np.testing.assert_allclose(found[:, 0], -850, atol=1e-2)
    scale = (found[:, 1] + 850) / 1000
    assert 1 / 1.2 - 1e-3 <= scale.min() < 0.9 and 1.1 < scale.max() <= 1.201
