"""Work on whole volumes, sooner: two slices at a time; growing and shrinking by boxes, as SciPy's operators do."""

from __future__ import annotations

import concurrent.futures

import numpy as np

from auxseg.ct import boxes


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
    return _spread(cells, reach, np.logical_or)


def shrink(cells, reach):
    """Returns the cells around which the whole box is filled, bool; outside the volume nothing is. Arguments of `grow`."""
    return _spread(cells, reach, np.logical_and)


def _spread(cells, reach, operator):
    found = cells.astype(bool, copy=False)
    for axis, most in enumerate(reach):
        found = boxes.combine(found, operator, 2 * most + 1, most, axis)
    return found
