"""Three views of a candidate, from itself to its surroundings, as `judge_network` takes them.

The planes of a view lie within the slices that the candidate itself spans, evenly from the first to the last: crops of
nodules hold no others, and how far a candidate reaches must not be told by what lies beyond it.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from auxseg.prediction.nodule_look import to_input

WIDTHS_MM = (14.0, 28.0, 56.0)
SIZE_PX = 24
NUM_PLANES = 5


def choose_planes(first, last):
    """Returns the slices of the planes from `first` to `last`, int [NUM_PLANES]; some twice where there are fewer."""
    return np.round(np.linspace(first, last, NUM_PLANES)).astype(int)


def cut_views(planes, centre_yx, spacing_yx_mm, *, matrix=None):
    """Returns the views, float32 [views, planes, SIZE_PX, SIZE_PX] in HU; edges are mirrored.

    Args:
        planes: float32 [planes, H, W] in HU.
        centre_yx: row and column of the candidate.
        spacing_yx_mm: distance of rows and columns.
        matrix: [2, 2] that turns, mirrors or scales the views; None for the identity.
    """
    matrix = np.eye(2) if matrix is None else np.asarray(matrix)
    views = []
    for width in WIDTHS_MM:
        step = width / SIZE_PX / np.asarray(spacing_yx_mm)
        # A pixel of the view is the mean of what it covers.
        covered = [max(1, int(round(s))) for s in step]
        view_matrix = matrix * step[:, None]
        offset = np.asarray(centre_yx) - view_matrix @ np.full(2, (SIZE_PX - 1) / 2.0)
        size = (SIZE_PX, SIZE_PX)
        for plane in planes:
            smooth = (
                plane if max(covered) == 1 else scipy.ndimage.uniform_filter(plane, covered, mode="mirror")
            )
            views.append(
                scipy.ndimage.affine_transform(
                    smooth, view_matrix, offset, size, np.float32, order=1, mode="mirror"
                )
            )
    return np.stack(views).reshape(len(WIDTHS_MM), len(planes), SIZE_PX, SIZE_PX)


def candidate_views(read, candidate, spacing_zyx_mm):
    """Returns what the network judges of a `nodule_candidates.Candidate`, float32 [views, planes, H, W] in [0, 1].

    Args:
        read: index of a slice -> [H, W] in HU.
        candidate: from `nodule_candidates.find_candidates`.
        spacing_zyx_mm: distances of slices, rows, columns.
    """
    slices = choose_planes(candidate.box[0].start, candidate.box[0].stop - 1)
    planes, centre = cut_around(
        [read(index) for index in slices], candidate.centre_zyx[1:], spacing_zyx_mm[1:]
    )
    return to_input(cut_views(planes, centre, spacing_zyx_mm[1:]))


def cut_around(images, centre_yx, spacing_yx_mm):
    """Returns (planes float32 [n, h, w] around a place, just wide enough for the views; the place in them)."""
    windows = []
    for place, spacing, length in zip(centre_yx, spacing_yx_mm, images[0].shape, strict=True):
        reach = int(np.ceil(0.85 * WIDTHS_MM[-1] / spacing)) + 2
        start = max(0, int(place) - reach)
        windows.append(slice(start, min(length, int(place) + reach + 1)))
    planes = np.stack([np.asarray(image[tuple(windows)], np.float32) for image in images])
    return planes, tuple(place - window.start for place, window in zip(centre_yx, windows, strict=True))
