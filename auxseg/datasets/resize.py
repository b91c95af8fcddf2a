"""Images and masks of any size brought to the size that the network sees.

Both are two sparse matrix products, rows then columns: images with a triangle filter that widens with the
reduction (antialiasing, as Pillow's BILINEAR), masks by the area that each class covers in each new pixel.
From 512x512 to 320x320 this takes about 1 ms an image and, unlike a dense product, keeps to one thread, so
that slices can be resized in parallel.

The aspect ratio is not kept: a slice that is not square is stretched. CT slices are square almost always.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.sparse

from auxseg.base.classes import AIR_HU, NODULE
from auxseg.datasets import labels

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def resize_image(image_hu, size_yx):
    """Returns an image in another size, antialiased.

    Values below -1024 HU, padding outside the scanner's field of view, count as -1024 HU so that they do not
    darken what lies beside them.

    Args:
        image_hu: int16 or float [H, W] in HU.
        size_yx: new rows and columns.

    Returns:
        int16 [*size_yx], rounded to the nearest HU.
    """
    image = np.maximum(np.asarray(image_hu, np.float32), AIR_HU)
    rows, columns = (_triangle_weights(*pair) for pair in zip(image.shape, size_yx, strict=True))
    return np.rint(_apply(rows, columns, image)).astype(np.int16)


def resize_mask(mask, size_yx, *, nodule=NODULE):
    """Returns a mask in another size: in every new pixel the class that covers most of it.

    Equal areas go to the higher class, and so to unknown, which is never mixed into a class. A nodule (an 8-connected component) that would vanish, as it covers
    less than its surroundings of every new pixel that it touches, keeps the pixel that it covers best:
    a nodule of 3 mm is never lost.

    Args:
        mask: uint8 [H, W], class indices and `classes.UNKNOWN`.
        size_yx: new rows and columns.
        nodule: value of nodules.

    Returns:
        uint8 [*size_yx].
    """
    if mask.shape == tuple(size_yx):
        return np.array(mask, np.uint8)
    rows, columns = (_area_weights(*pair) for pair in zip(mask.shape, size_yx, strict=True))
    best = np.zeros(size_yx, np.uint8)
    best_area = _apply(rows, columns, (mask == 0).astype(np.float32))
    for value in (value for value in labels.distinct(mask).tolist() if value):
        area = _apply(rows, columns, (mask == value).astype(np.float32))
        wins = (area >= best_area - 1e-5) & (area > 1e-5)
        best[wins], best_area[wins] = value, area[wins]
    return _keep_nodules(mask, best, rows, columns, nodule)


def _keep_nodules(mask, resized, rows, columns, nodule):
    """Gives every nodule that has no pixel left the one that it covers best; changes `resized`."""
    if not (mask == nodule).any():
        return resized
    components, num_components = scipy.ndimage.label(mask == nodule, _EIGHT_NEIGHBOURS)
    for component in range(1, num_components + 1):
        area = _apply(rows, columns, (components == component).astype(np.float32))
        if not (resized[area > 0] == nodule).any():
            resized[np.unravel_index(np.argmax(area), area.shape)] = nodule
    return resized


def _apply(rows, columns, array):
    """Returns rows @ array @ columns.T for sparse weights and a dense array."""
    return (columns @ (rows @ array).T).T


@functools.lru_cache(maxsize=64)
def _area_weights(num_in, num_out):
    """Returns the share of each input pixel in each output pixel, float32 CSR [num_out, num_in]."""
    edges = np.arange(num_out + 1) * (num_in / num_out)
    pixels = np.arange(num_in)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return _normalised(np.maximum(overlap, 0.0))


@functools.lru_cache(maxsize=64)
def _triangle_weights(num_in, num_out):
    """Returns bilinear weights, as wide as the reduction, float32 CSR [num_out, num_in]."""
    scale = num_in / num_out
    centres = (np.arange(num_out) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(num_in) - centres[:, None]) / max(1.0, scale)
    return _normalised(np.maximum(1.0 - distance, 0.0))


def _normalised(weights):
    weights[weights < 1e-9] = 0.0
    return scipy.sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
