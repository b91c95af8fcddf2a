"""Windows of slices at a fixed scale: within the slice, often about a structure, never at one place; labels follow."""

import jax
import numpy as np
import pytest

from auxseg.base.classes import UNKNOWN
from auxseg.training import batching, cutting

NUM, WINDOW = 300, (16, 16)


def cut(masks, filled, *, step=3, seed=5, num_classes=4, nodule=3):
    rows, columns = np.mgrid[: masks.shape[1], : masks.shape[2]]
    images = np.broadcast_to((100 * rows + columns).astype(np.int16), masks.shape)
    indices = np.arange(len(masks), dtype=np.int32)
    raw = batching.RawBatch(images, masks, indices, np.ones(len(masks), np.float32))
    settings = {"window_yx": WINDOW, "num_classes": num_classes, "nodule": nodule}
    call = jax.jit(lambda raw: cutting.cut(raw, np.int32(step), seed=seed, filled_yx=filled, **settings))
    return jax.device_get(call(raw))


@pytest.fixture(scope="module")
def found():
    """Windows of slices of 40x48 pixels with a large lung and a nodule of one pixel, on a canvas of 64x64."""
    masks = np.full((NUM, 64, 64), UNKNOWN, np.uint8)
    masks[:, :40, :48] = 0
    masks[:, 4:20, 4:30] = 1
    masks[:, 22, 28] = 3
    return cut(masks, np.full((NUM, 2), (40, 48), np.int32))


def test_windows_are_pieces_of_their_slices(found):
    raw, inside = found
    assert raw.images.shape == raw.masks.shape == (NUM, *WINDOW) and inside.all()
    rows, columns = raw.images[:, 0, 0] // 100, raw.images[:, 0, 0] % 100
    assert rows.min() >= 0 and rows.max() <= 40 - 16 and columns.max() <= 48 - 16
    assert (np.diff(raw.images, axis=1) == 100).all() and (np.diff(raw.images, axis=2) == 1).all()
    assert not (raw.masks == UNKNOWN).any()
    assert len(np.unique(rows)) > 20 and len(np.unique(columns)) > 25


def test_every_second_window_holds_a_structure_at_any_place(found):
    """Half of these are about the nodule, as it is one of two classes: a quarter, and a few by chance."""
    places = np.argwhere(found[0].masks == 3)
    assert 0.2 < len(places) / NUM < 0.45
    assert len(np.unique(places[:, 1])) > 12 and len(np.unique(places[:, 2])) > 12


def test_labels_are_those_of_the_window(found):
    raw = found[0]
    labels = np.asarray(batching.to_batch(raw, window_hu=(-1000.0, 400.0), num_classes=4).labels)
    np.testing.assert_array_equal(labels[:, 3] == 1.0, (raw.masks == 3).any(axis=(1, 2)))
    assert (labels[:, 3] == 0.0).any() and not (labels == -1.0).any()


def test_windows_are_a_function_of_seed_step_and_case():
    masks = np.zeros((4, 64, 64), np.uint8)
    filled = np.full((4, 2), 64, np.int32)
    first, again, later = (cut(masks, filled, step=step)[0].images for step in (3, 3, 4))
    assert (first == again).all() and (first != later).any()


def test_a_slice_that_is_smaller_lies_at_the_upper_left():
    masks = np.full((2, 64, 64), UNKNOWN, np.uint8)
    masks[0, :10, :12], masks[1, :10, :40] = 0, 0
    raw, inside = cut(masks, np.array([[10, 12], [10, 40]], np.int32))
    assert inside.tolist() == [False, True] and raw.images[0, 0, 0] == 0
    labels = batching.to_batch(raw, window_hu=(-1000.0, 400.0), num_classes=4).labels
    assert np.asarray(labels)[0].tolist() == [1.0, -1.0, -1.0, -1.0]  # nobody knows what lies beyond


def test_votes_of_readers_count_as_nodule():
    masks = np.full((NUM, 64, 64), 128, np.uint8)
    masks[:, 60, 60] = 131
    raw, _ = cut(masks, np.full((NUM, 2), 64, np.int32), num_classes=2, nodule=1)
    assert 0.4 < (raw.masks == 131).any(axis=(1, 2)).mean() < 0.65
