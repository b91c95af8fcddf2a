"""The README's picture shows the largest nodule where it is."""

import numpy as np
import pytest

from auxseg.base.errors import InputError
from experiments.checks import readme_picture


def test_the_largest_nodule_s_largest_slice():
    masks = np.zeros((4, 20, 30), np.uint8)
    masks[0, 2:4, 2:4] = 3
    masks[2, 10:14, 20:25], masks[3, 10:12, 20:22] = 3, 3
    assert readme_picture.find_largest_nodule(masks) == (2, 12, 22)
    with pytest.raises(InputError, match="no nodule was found"):
        readme_picture.find_largest_nodule(np.ones((1, 4, 4), np.uint8))


def test_panels_show_the_mask_s_colours_and_the_nodule_s_outline():
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 40:56] = 1
    mask[20:30, 44:54] = 3
    picture = readme_picture.draw(np.full((64, 64), -1350, np.int16), mask, (25, 49), 1.0, "whose")
    side, gap = readme_picture.SIDE_PX, readme_picture.GAP_PX
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (side + readme_picture.FOOT_PX, 3 * side + 2 * gap, 3)
    plain, masked, close = (pixels[:side, k * (side + gap) :][:, :side] for k in range(3))
    assert plain.max() < 10
    red, blue = masked[side * 50 // 64, side * 48 // 64], masked[side * 25 // 64, side * 49 // 64]
    assert red[0] > 60 and red[2] < 40 and blue[2] > 60 and blue[0] < 40
    bright = np.argwhere(close[..., 2] > 150)
    inside = close[round((25 - 2) * side / 60), round((49 - 4) * side / 60)]
    assert len(bright) and inside.max() < 10, "an outline alone"


def test_a_close_up_stays_inside_the_image():
    rows, columns = readme_picture._close_up((2, 98), 1.0, (100, 100))
    assert (rows.start, rows.stop, columns.start, columns.stop) == (0, 60, 40, 100)
