"""How sharp a scan is: measured on noise of known spread, and a soft scan made as sharp as is asked for."""

import numpy as np
import pytest
from scipy import ndimage

from auxseg.prediction import sharpness


def draw(spread, *, soft_px=0.0, shape=(6, 80, 80)):
    """Lung of -850 HU with noise, and tissue on its left, which is not measured."""
    volume = np.random.default_rng(3).normal(-850.0, spread, shape)
    if soft_px:
        volume = np.stack([ndimage.gaussian_filter(plane, soft_px) for plane in volume])
    volume[:, :, :30] = 40.0
    inside = np.zeros(shape, bool)
    inside[1:5, :, 40:] = True
    return volume, inside


def test_white_noise_has_the_spread_that_a_blur_takes_away():
    volume, inside = draw(30.0)
    found = sharpness.measure(volume.__getitem__, inside, (0.7, 0.7))
    left = ndimage.gaussian_filter(np.eye(81)[40][:, None] * np.eye(81)[40], 1.0 / 0.7)
    expected = 30.0 * np.sqrt(np.square(np.eye(81)[40][:, None] * np.eye(81)[40] - left).sum())
    assert found.sharpness_hu() == pytest.approx(expected, rel=0.03)
    assert found.find_gain(sharpness.Known(0.9 * expected, 2.0 * expected)) == 0.0


def test_a_soft_scan_becomes_as_sharp_as_asked():
    volume, inside = draw(60.0, soft_px=1.0)
    target = 1.5 * sharpness.measure(volume.__getitem__, inside, (0.7, 0.7)).sharpness_hu()
    read, gain = sharpness.reader(
        volume.__getitem__, inside, (0.7, 0.7), sharpness.Known(0.9 * target, target)
    )
    assert 0.3 < gain < 2.0
    assert sharpness.measure(read, inside, (0.7, 0.7)).sharpness_hu() == pytest.approx(target, rel=0.01)


def test_no_scan_is_sharpened_without_end_and_none_without_lung():
    volume, inside = draw(0.5)
    assert sharpness.measure(volume.__getitem__, inside, (0.7, 0.7)).find_gain(
        sharpness.Known(14.0, 25.0)
    ) == pytest.approx(2.0)
    read, gain = sharpness.reader(
        volume.__getitem__, np.zeros_like(inside), (0.7, 0.7), sharpness.Known(14.0, 25.0)
    )
    assert gain == 0.0 and (read(2) == volume[2]).all()


def test_rows_and_columns_may_differ():
    image = np.zeros((61, 61), np.float32)
    image[30, 30] = 1.0
    detail = sharpness.take_detail(image, (2.0, 0.5))
    assert detail[30, 32] < detail[32, 30] < 0 and abs(float(detail.sum())) < 1e-4
    sharp = sharpness.sharpen(image, 2.0, (2.0, 0.5))
    assert float(sharp.sum()) == pytest.approx(1.0, abs=1e-3) and sharp[30, 30] > 2.0 and sharp[30, 31] < 0.0
