"""Candidates in three dimensions, with values by hand."""

import numpy as np
import pytest
import scipy.ndimage

from auxseg.prediction import nodule_candidates
from auxseg.scoring.components import find_components


def candidates(volume, spacing=(2.0, 1.0, 1.0), hu=None, above=0.5):
    hu = np.zeros(volume.shape) if hu is None else hu
    return nodule_candidates.find_candidates(volume, lambda index: hu[index], spacing, above=above)


def test_pieces_that_touch_by_corners_are_one():
    volume = np.zeros((4, 8, 8), np.uint8)
    volume[0, 1:3, 1:3] = 255
    volume[1, 3, 3] = 200
    volume[3, 6:8, 6:8] = 128
    found = candidates(volume)
    assert [c.measures["volume_mm3"] for c in found] == [10.0, 8.0]
    assert found[0].places.tolist() == [[0, 1, 1], [0, 1, 2], [0, 2, 1], [0, 2, 2], [1, 3, 3]]
    assert found[1].centre_zyx == (3.0, 6.5, 6.5)


def test_threshold_and_least_size():
    volume = np.zeros((2, 8, 8), np.uint8)
    volume[0, 0, :3] = 128  # just above half
    volume[1, 5, :3] = 127
    volume[0, 7, :2] = 255  # two voxels
    assert len(candidates(volume)) == 1


def test_centre_is_weighted_by_probability():
    volume = np.zeros((1, 1, 8), np.uint8)
    volume[0, 0, 2:5] = (255, 153, 204)
    (found,) = candidates(volume)
    assert found.centre_zyx[2] == pytest.approx((2 * 1.0 + 3 * 0.6 + 4 * 0.8) / 2.4)
    assert found.measures["highest"] == 1.0
    assert found.measures["mean"] == pytest.approx(0.8)
    assert found.measures["sum"] == pytest.approx(2.4 * 2.0)


def ball(radius, shape=(40, 40, 40)):
    grid = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return 255 * (sum(np.square(g) for g in grid) <= radius**2).astype(np.uint8)


def test_a_ball_is_round_and_full():
    (found,) = candidates(ball(9.0), spacing=(1.0, 1.0, 1.0))
    measures = found.measures
    assert measures["diameter_mm"] == pytest.approx(18.0, rel=0.01)
    assert measures["short_axis"] == pytest.approx(1.0, abs=0.01)
    assert measures["fill"] == pytest.approx(1.0, abs=0.02)
    assert measures["drift"] == pytest.approx(0.0, abs=1e-6)


def test_a_slanting_tube_is_long_and_drifts():
    volume = np.zeros((12, 40, 40), np.uint8)
    for index in range(12):
        volume[index, 10:13, 5 + 2 * index : 8 + 2 * index] = 255
    (found,) = candidates(volume, spacing=(1.0, 1.0, 1.0))
    assert found.measures["short_axis"] < 0.2
    assert found.measures["drift"] * found.measures["diameter_mm"] == pytest.approx(2.0)
    assert found.measures["widest"] == pytest.approx(1 / 12)


def test_hu_inside_the_piece_alone():
    volume, hu = np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), -900.0)
    volume[0, 1, 1:4], hu[0, 1, 1:4] = 255, (0.0, 30.0, 60.0)
    (found,) = candidates(volume, hu=hu)
    assert found.measures["mean_hu"] == pytest.approx(30.0)
    assert found.measures["spread_hu"] == pytest.approx(np.std([0, 30, 60]))


def test_pieces_are_those_of_an_independent_labelling():
    volume = np.random.default_rng(0).integers(0, 256, (6, 30, 30)).astype(np.uint8)
    found = candidates(volume, above=0.92)
    labels, count = scipy.ndimage.label(volume > 255 * 0.92, np.ones((3, 3, 3)))
    expected = {frozenset(map(tuple, np.argwhere(labels == n).tolist())) for n in range(1, count + 1)}
    assert {frozenset(map(tuple, c.places.tolist())) for c in found} == {e for e in expected if len(e) >= 3}
    assert len(found) > 20


def test_nothing_marked_is_no_candidate():
    assert candidates(np.zeros((3, 8, 8), np.uint8)) == []


def test_a_piece_is_cut_where_measuring_would_cut_it():
    volume = np.zeros((3, 8, 8), np.uint8)
    volume[0, 2:4, 2:4] = 255
    volume[0, 4, 4] = 255  # by a corner within the slice: stays
    volume[1, 5, 5] = 255  # by an edge between slices: goes
    (found,) = candidates(volume)
    assert len(found.places) == 6
    assert nodule_candidates.largest_piece(found.places, volume.shape).tolist() == [
        [0, 2, 2],
        [0, 2, 3],
        [0, 3, 2],
        [0, 3, 3],
        [0, 4, 4],
    ]
    components = find_components(np.where(volume > 0, 3, 0).astype(np.uint8), 3)
    assert sorted(piece.voxels for piece in components.pieces) == [1, 5]
