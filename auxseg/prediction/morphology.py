"""Growing and shrinking of boolean volumes by boxes, axis by axis: what binary operators of SciPy give, several times sooner."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


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
