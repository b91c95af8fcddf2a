"""Runs of neighbouring cells combined along an axis: what erosion and dilation by a box are made of."""

from __future__ import annotations

import numpy as np


def combine(cells, operator, length, before, axis):
    """Returns each cell combined with those beside it, bool of the same shape.

    Beyond the cells nothing is. It doubles what is combined until it is long enough, which is several times as fast as SciPy's
    filters.

    Args:
        cells: bool, of any number of axes.
        operator: `np.logical_and` or `np.logical_or`.
        length: of the run that is combined, in cells.
        before: cells of it that lie before the one that gets the result.
        axis: along which it runs.
    """
    cells = np.moveaxis(cells, axis, 0)
    found = np.zeros_like(cells, bool, shape=(len(cells) + length - 1, *cells.shape[1:]))
    found[before : before + len(cells)] = cells
    done = 1
    while done < length:
        step = min(done, length - done)
        found = operator(found[:-step], found[step:])
        done += step
    return np.moveaxis(found, 0, axis)
