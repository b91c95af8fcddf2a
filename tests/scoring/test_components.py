"""Tests of clean-up and connected components, against scipy's own labelling and by hand."""

import numpy as np
import pytest
from scipy import ndimage

from auxseg.base.errors import InputError
from auxseg.scoring.components import (
    CleanUp,
    clean,
    drop_small_nodules,
    equivalent_diameter,
    fill_holes,
    find_components,
    surrounding_lung,
)


def _random_masks(seed, shape=(9, 40, 36), share=0.25):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    return (noise > np.quantile(noise, 1 - share)).astype(np.uint8) * 3


@pytest.mark.parametrize("seed", range(4))
def test_components_match_scipy_in_three_dimensions(seed):
    masks = _random_masks(seed)
    structure = np.zeros((3, 3, 3), bool)
    structure[1], structure[:, 1, 1] = True, True
    labels, count = ndimage.label(masks == 3, structure)
    components = find_components(masks, 3)
    assert len(components.pieces) == count > 3
    ours = np.stack([components.read(masks, k) for k in range(len(masks))])
    pairs = np.unique(np.stack([labels.ravel(), ours.ravel()]), axis=1)
    assert pairs.shape[1] == count + 1  # one to one
    for number, piece in enumerate(components.pieces, start=1):
        where = np.argwhere(ours == number)
        assert piece.voxels == len(where)
        np.testing.assert_allclose(piece.centre_zyx, where.mean(0))
        areas = np.bincount(where[:, 0])
        assert (piece.largest_pixels, piece.largest_slice) == (areas.max(), areas.argmax())
        assert piece.slices == (where[:, 0].min(), where[:, 0].max())
    sizes = [piece.voxels for piece in components.pieces]
    assert sizes == sorted(sizes, reverse=True)


def test_no_component_in_an_empty_mask():
    components = find_components(np.zeros((2, 4, 4), np.uint8), 3)
    assert components.pieces == ()
    assert not components.read(np.zeros((2, 4, 4), np.uint8), 1).any()


def test_the_largest_piece_of_each_lung_stays():
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[:, :3, :3], masks[1, 6:, :2] = 1, 1
    masks[0, :2, 6:], masks[0, 5, 5] = 2, 2
    changed = clean(masks, CleanUp(largest_components=True), pixel_mm2=1.0)
    assert changed == {"largest_components": 5}
    assert (masks == 1).sum() == 27 and (masks == 2).sum() == 4
    assert masks[1, 6, 0] == 0 and masks[0, 5, 5] == 0


def test_holes_are_filled_and_nodules_kept():
    masks = np.zeros((1, 9, 9), np.uint8)
    masks[0, 1:8, 1:8] = 1
    masks[0, 3, 3] = 0
    masks[0, 5, 5] = 3
    masks[0, 4, 1] = 3  # a nodule on the edge
    masks[0, 0, 0] = 0
    assert fill_holes(masks, 1) == 1
    assert masks[0, 3, 3] == 1 and masks[0, 5, 5] == 3 and masks[0, 4, 1] == 3 and masks[0, 0, 0] == 0


def test_a_nodule_in_the_wall_closes_the_hole_behind_it():
    mask = np.zeros((1, 5, 5), np.uint8)
    mask[0, 1:4, 1:4] = 2
    mask[0, 2, 2], mask[0, 1, 2] = 0, 3
    assert fill_holes(mask, 2) == 1
    assert mask[0, 2, 2] == 2


def test_a_nodule_away_from_the_lung_encloses_nothing():
    mask = np.zeros((1, 12, 12), np.uint8)
    mask[0, :3, :3] = 1
    mask[0, 6:9, 6:9] = 3
    mask[0, 7, 7] = 0
    assert fill_holes(mask, 1) == 0 and mask[0, 7, 7] == 0


def test_small_nodules_become_what_surrounds_them():
    masks = np.zeros((2, 20, 20), np.uint8)
    masks[:, 2:14, 2:14] = 2
    masks[0, 4:6, 4:6] = 3  # 4 pixels of 4 mm2: 4.5 mm
    masks[:, 8:13, 8:13] = 3  # 25 pixels: 11.3 mm
    masks[1, 17, 17] = 3  # in nothing
    assert drop_small_nodules(masks, 5.0, 4.0) == 5
    assert (masks == 3).sum() == 50
    assert (masks[0, 4:6, 4:6] == 2).all() and masks[1, 17, 17] == 0


def test_off_by_default_and_refused_without_a_pixel_size():
    masks = _random_masks(0)
    before = masks.copy()
    assert clean(masks, CleanUp(), pixel_mm2=float("nan")) == {}
    np.testing.assert_array_equal(masks, before)
    with pytest.raises(InputError, match="no pixel size"):
        clean(masks, CleanUp(min_nodule_mm=3.0), pixel_mm2=float("nan"))
    for least in (-1.0, 100.0):
        with pytest.raises(InputError, match="min_nodule_mm"):
            CleanUp(min_nodule_mm=least)
    changed = clean(masks, CleanUp(min_nodule_mm=3.0, min_nodule_px=90.0), pixel_mm2=float("nan"))
    assert set(changed) == {"min_nodule_px"} and not (masks == 3).any()


def test_equivalent_diameter_of_a_circle():
    assert equivalent_diameter(np.pi * 9.0) == pytest.approx(6.0)


def drop_plainly(masks, min_mm, pixel_mm2):
    """Piece by piece, as the rule says."""
    components = find_components(masks, 3)
    numbers = np.stack([components.read(masks, index) for index in range(len(masks))])
    for number, piece in enumerate(components.pieces, start=1):
        if 2 * np.sqrt(piece.largest_pixels * pixel_mm2 / np.pi) >= min_mm:
            continue
        for mask, own in zip(masks, numbers == number, strict=True):
            ring = ndimage.binary_dilation(own, np.ones((3, 3))) & ~own & (mask != 3)
            mask[own] = np.bincount(mask[ring]).argmax() if ring.any() else 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_slices", [1, 7])
def test_many_small_nodules_go_to_what_surrounds_each(seed, num_slices):
    generator = np.random.default_rng(seed)
    masks = generator.integers(0, 3, (num_slices, 40, 44)).astype(np.uint8)
    masks[generator.random(masks.shape) < 0.15] = 3
    masks[_random_masks(seed, masks.shape, 0.1) == 3] = 3  # some larger ones among hundreds
    expected, before = masks.copy(), masks.copy()
    drop_plainly(expected, 4.0, 1.5)
    changed = drop_small_nodules(masks, 4.0, 1.5)
    np.testing.assert_array_equal(masks, expected)
    assert changed == (masks != before).sum() > 30 * num_slices
    assert (masks == 3).any()


def test_a_nodule_that_fills_the_slice_has_no_ring():
    masks = np.full((1, 2, 2), 3, np.uint8)
    assert drop_small_nodules(masks, 99.0, 1.0) == 4
    assert not masks.any()


def test_the_lung_around_a_piece_has_most_of_its_ring():
    mask, piece = np.zeros((9, 12), np.uint8), np.zeros((9, 12), bool)
    piece[4, 5] = True
    assert surrounding_lung(mask, piece) == 0
    mask[:, 9:] = 1  # four pixels away
    assert surrounding_lung(mask, piece) == 0
    mask[:, :4], mask[:, 8] = 2, 1  # two columns of the ring, and one
    assert surrounding_lung(mask, piece) == 2
