"""The box around the body: by hand on small volumes, and the same however much air lies around."""

import numpy as np
import pytest
from scipy import ndimage

from auxseg.ct import body

AIR, TISSUE = -1000, 40


def read_from(volume):
    return lambda start, stop: volume[start:stop]


def draw(shape=(10, 60, 80)):
    """Returns a body of 40 columns and 24 rows, a table's shell of one row below it, and a tube beside it."""
    volume = np.full(shape, AIR, np.int16)
    volume[:, 20:44, 20:60] = TISSUE
    volume[:, 50:51, :] = 200
    volume[:, 10:14, 66:70] = TISSUE
    return volume


def test_the_box_is_the_square_around_the_body_with_its_margin():
    box = body.find_body(read_from(draw()), 10, (1.5, 1.5))
    assert box.size_yx == (42, 42)  # 40 columns and 2 % on each side
    assert box.start_yx == (11, 19)  # around rows 20 to 43 and columns 20 to 59


def test_pixels_that_are_not_square_give_a_square_in_mm():
    box = body.find_body(read_from(draw()), 10, (3.0, 1.5))
    assert box.size_yx == (25, 50)  # 24 rows of 3 mm: 72 mm with the margin 74.9


def test_air_around_moves_the_box_and_nothing_else():
    plain = body.find_body(read_from(draw()), 10, (1.5, 1.5))
    padded = np.pad(draw(), ((0, 0), (30, 30), (41, 41)), constant_values=-2000)
    wide = body.find_body(read_from(padded), 10, (1.5, 1.5))
    assert wide.size_yx == plain.size_yx
    assert np.subtract(wide.start_yx, plain.start_yx).tolist() == [30, 41]
    np.testing.assert_array_equal(wide.cut(padded) == TISSUE, plain.cut(draw()) == TISSUE)


def test_what_few_slices_reach_does_not_widen_the_box():
    volume = draw()
    volume[9, 20:30, 4:60] = TISSUE  # an arm in one slice of ten
    assert body.find_body(read_from(volume), 10, (1.5, 1.5)).start_yx == (11, 19)


def test_air_alone_has_no_body():
    assert body.find_body(read_from(np.full((3, 20, 20), AIR, np.int16)), 3, (1.0, 1.0)) is None


def test_cut_and_paste_go_beyond_the_slice():
    box = body.Box((-1, 1), (3, 2))
    image = np.array([[1, 2, 3], [4, 5, 6]], np.int16)
    np.testing.assert_array_equal(box.cut(image), [[-1024, -1024], [2, 3], [5, 6]])
    np.testing.assert_array_equal(box.cut_mask(image), [[0, 0], [2, 3], [5, 6]])
    part = np.array([[7, 7], [1, 2], [3, 1]], np.uint8)
    np.testing.assert_array_equal(box.paste(part, (2, 3)), [[0, 1, 2], [0, 3, 1]])
    assert box.shown((2, 3)) == (slice(1, 3), slice(0, 2))


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7), (0.75, 0.6), (3.0, 2.0), (0.4, 1.5), (0.1, 10.0)])
def test_the_opening_is_that_of_scipy_s_filters(spacing_mm):
    noise = np.random.default_rng(0).random((40, 51))
    tissue = ndimage.gaussian_filter(noise, 2.5) > 0.47
    size = [max(1, round(6.0 / mm)) for mm in spacing_mm]
    eroded = ndimage.minimum_filter(tissue.astype(np.uint8), size, mode="constant")
    expected = ndimage.maximum_filter(eroded, size, mode="constant", origin=[-(1 - n % 2) for n in size])
    np.testing.assert_array_equal(body._open(tissue, spacing_mm), expected > 0)
