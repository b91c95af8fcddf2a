"""The nodule look: where it looks, and that what it marks lies where it should."""

import numpy as np

from auxseg.prediction import nodule_look


def test_region_closes_notches_and_adds_a_margin():
    lungs = np.zeros((2, 60, 60), bool)
    lungs[0, 10:50, 10:50] = True
    lungs[0, 25:35, 40:50] = False  # a nodule of 10 mm at the pleura
    region = nodule_look.find_region(lungs, (1.0, 1.0))
    assert region[0, 8:52, 8:52].all()
    assert region[0].sum() == 44 * 44
    assert not region[1].any()


def test_marks_lie_where_the_image_says():
    volume = np.full((5, 50, 70), -1000, np.int16)
    volume[1, 20, 33], volume[4, 45, 60] = 400, -300
    region = np.zeros(volume.shape, bool)
    region[:, 11:48, 22:64] = True
    region[4, 45, 60] = True
    shapes = set()

    def forward(images):
        shapes.add(images.shape)
        return images[..., 0]

    marked = nodule_look.mark(lambda index: volume[index], region, forward, batch_size=2)
    assert shapes == {(2, 64, 64, 1)}  # 37 x 42 pixels, filled up
    expected = np.zeros(volume.shape, np.uint8)
    expected[1, 20, 33], expected[4, 45, 60] = 255, 128
    np.testing.assert_array_equal(marked, expected)


def test_outside_the_region_nothing_is_marked():
    volume = np.zeros((1, 40, 40), np.int16)
    region = np.zeros(volume.shape, bool)
    region[0, 5, 5] = region[0, 30, 30] = True
    marked = nodule_look.mark(lambda index: volume[index], region, lambda images: np.ones(images.shape[:3]))
    assert marked.sum() == 2 * 255
    assert nodule_look.mark(lambda index: volume[index], region & False, None).sum() == 0
