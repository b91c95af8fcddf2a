"""Resizing against Pillow, by hand, and on the smallest nodules."""

import numpy as np
import pytest
from PIL import Image

from auxseg.base.classes import AIR_HU, CLASS_NAMES, NODULE, UNKNOWN
from auxseg.datasets import resize


@pytest.mark.parametrize(
    ("shape", "size_yx"), [((512, 512), (320, 320)), ((64, 48), (32, 80)), ((20, 20), (50, 50))]
)
def test_image_is_pillows_antialiased_bilinear(shape, size_yx):
    image = np.random.default_rng(0).normal(-300, 200, shape).astype(np.float32)
    image = np.maximum(image, AIR_HU)
    expected = np.asarray(Image.fromarray(image).resize(size_yx[::-1], Image.Resampling.BILINEAR))
    resized = resize.resize_image(image, size_yx)
    assert resized.dtype == np.int16
    np.testing.assert_allclose(resized, expected, atol=0.501)


def test_image_of_the_same_size_is_unchanged_but_for_padding():
    image = np.array([[-3024, -1000], [40, 1200]], np.int16)
    np.testing.assert_array_equal(resize.resize_image(image, (2, 2)), [[-1024, -1000], [40, 1200]])


def test_padding_counts_as_air():
    padded = np.full((8, 8), -1000, np.int16)
    padded[:, 4:] = -3024
    assert resize.resize_image(padded, (3, 3)).min() >= -1024


def test_mask_takes_the_class_with_most_area():
    mask = np.array([[1, 1, 2, 2], [1, 0, 2, 2], [0, 0, 3, 2], [0, 0, 3, 3]], np.uint8)
    np.testing.assert_array_equal(resize.resize_mask(mask, (2, 2)), [[1, 2], [0, 3]])


def test_equal_areas_go_to_the_higher_class():
    np.testing.assert_array_equal(resize.resize_mask(np.array([[0, 1], [0, 1]], np.uint8), (1, 1)), [[1]])


def test_mask_areas_survive_to_one_percent():
    rows, columns = np.mgrid[:512, :512]
    mask = np.zeros((512, 512), np.uint8)
    mask[np.hypot(rows - 250, columns - 350) < 90] = 1
    mask[np.hypot(rows - 250, columns - 150) < 80] = 2
    resized = resize.resize_mask(mask, (320, 320))
    for value in (0, 1, 2):
        assert np.mean(resized == value) == pytest.approx(np.mean(mask == value), rel=0.01)


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("spacing_mm", [0.5, 0.7, 0.98])
def test_a_nodule_of_3_mm_survives_at_every_place(spacing_mm, offset):
    rows, columns = np.mgrid[:512, :512] + 0.0
    for centre in range(100, 110):
        mask = np.full((512, 512), CLASS_NAMES.index("right_lung"), np.uint8)
        inside = np.hypot(rows - centre - offset, columns - centre) * spacing_mm <= 1.5
        mask[inside] = NODULE
        resized = resize.resize_mask(mask, (320, 320)) == NODULE
        assert resized.sum() == pytest.approx(inside.sum() * (320 / 512) ** 2, abs=3.0)
        assert resized.any()


def test_every_nodule_keeps_a_pixel_even_of_one_native_pixel():
    mask = np.zeros((96, 96), np.uint8)
    mask[10, 10] = mask[50, 70] = mask[80, 20] = NODULE
    resized = resize.resize_mask(mask, (32, 32))
    assert list(zip(*np.nonzero(resized), strict=True)) == [(3, 3), (16, 23), (26, 6)]


def test_mask_of_the_same_size_is_a_copy():
    mask = np.eye(16, dtype=np.uint8)
    resized = resize.resize_mask(mask, (16, 16))
    np.testing.assert_array_equal(resized, mask)
    assert resized is not mask


def test_unknown_stays_unknown_and_becomes_no_class():
    mask = np.array(
        [[0, UNKNOWN, 3, 3], [0, UNKNOWN, 3, UNKNOWN], [1, 1, 0, 0], [1, UNKNOWN, 0, 0]], np.uint8
    )
    # Equal areas of background and unknown are unknown; most of the others is a class.
    np.testing.assert_array_equal(resize.resize_mask(mask, (2, 2)), [[UNKNOWN, 3], [1, 0]])
    enlarged = resize.resize_mask(mask, (7, 9))
    assert set(np.unique(enlarged)) == {0, 1, 3, UNKNOWN}
