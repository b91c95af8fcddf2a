"""Work on whole volumes, sooner: two slices at a time; growing and shrinking by boxes, axis by axis, as SciPy's operators do."""

from __future__ import annotations

import concurrent.futures

import numpy as np
from scipy import ndimage


def by_slice(function, *values):
    """Returns a list of what a function gives for each slice, two slices at a time; arguments as of `map`."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, *values))


def grow(cells, reach):
    """Returns what lies within a box of some cells, bool of the same shape.

    Args:
        cells: bool, of any number of axes.
        reach: cells of the box to either side, one number an axis.
    """
    return _spread(cells, reach, ndimage.maximum_filter1d)


def shrink(cells, reach):
    """Returns the cells around which the whole box is filled, bool; outside the volume nothing is. Arguments of `grow`."""
    return _spread(cells, reach, ndimage.minimum_filter1d)


def _spread(cells, reach, filter_1d):
    found = cells.view(np.uint8) if cells.dtype == bool else cells.astype(np.uint8)
    for axis, most in enumerate(reach):
        if most:
            found = filter_1d(found, 2 * most + 1, axis=axis, mode="constant")
    return found.astype(bool)
