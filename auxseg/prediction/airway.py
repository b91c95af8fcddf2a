"""The trachea and the main bronchi, grown from the trachea through air, so that no lung takes them.

The trachea is the long narrow piece of air between the lungs near their top, whatever the network called it. From there
the air is followed at a series of thresholds; the highest that does not leak into the lungs counts. Branches that it does not
reach belong to the lung around them, as in LUNA16's masks.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.base import disk_arrays
from auxseg.prediction import morphology

_CELL_MM = 1.5
_MOST_CELL_MM = 3.0  # larger cells do not part a trachea from the lungs
_SEEDS_HU = (-850, -900, -930, -960)  # in turn, until a wall parts the trachea from the lungs
_THRESHOLDS_HU = (-700, -750, -800, -850, -880, -910, -940, -970)
_MOST_ML = 110.0  # of the tree: more is a leak into a lung
_SECTION_MM2 = (40.0, 900.0)  # of a trachea
_LEAST_LENGTH_MM = 20.0
_UPPER = 0.67  # of the lungs' height: the trachea divides below
_MARGIN_MM = 20.0  # around the lungs, to each side


@dataclasses.dataclass(frozen=True)
class Airway:
    """The airway of a scan on a coarse grid.

    Attributes:
        cells: bool [d, h, w].
        steps_zyx: voxels to a cell.
        shape_yx: of a slice.
        volume_ml: of the tree as grown.
    """

    cells: np.ndarray
    steps_zyx: tuple[int, int, int]
    shape_yx: tuple[int, int]
    volume_ml: float

    def read(self, index):
        """Returns bool [H, W]: where slice `index` shows the airway with its wall."""
        plane = self.cells[min(index // self.steps_zyx[0], len(self.cells) - 1)]
        for axis in (0, 1):
            places = np.arange(self.shape_yx[axis]) // self.steps_zyx[1 + axis]
            plane = np.take(plane, np.minimum(places, plane.shape[axis] - 1), axis=axis)
        return plane


def find_airway(volume, masks, spacing_zyx_mm):
    """Returns the `Airway` of a scan; its cells are all False where no trachea was found.

    Args:
        volume: int16 [D, H, W] in HU, canonical.
        masks: uint8 [D, H, W], above 0 where the network marked a lung.
        spacing_zyx_mm: distances of slices, rows and columns.
    """
    shapes = zip(masks.shape, spacing_zyx_mm, strict=True)
    steps = tuple(min(max(1, round(_CELL_MM / mm)), n) for n, mm in shapes)
    hu = _pool(volume, steps)
    lung = (
        np.array(masks[steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1], steps[2] // 2 :: steps[2]]) > 0
    )
    lung = lung[:, : hu.shape[1], : hu.shape[2]]
    cell_mm = tuple(step * mm for step, mm in zip(steps, spacing_zyx_mm, strict=True))
    tree, view = np.zeros(hu.shape, bool), _around(lung, cell_mm)
    seeds = _find_trachea(hu[view], lung[view], cell_mm) if max(cell_mm[1:]) <= _MOST_CELL_MM else None
    if seeds is not None:
        tree[view] = _grow(hu[view], seeds, cell_mm)
    volume_ml = float(tree.sum() * np.prod(cell_mm) / 1000.0)
    return Airway(_with_wall(tree), steps, tuple(masks.shape[1:]), volume_ml)


def _around(lung, cell_mm):
    """Returns the slices, rows and columns of cells that are looked at: all slices, the lungs' rows and columns and a margin."""
    view = [slice(None)]
    for axis in (1, 2):
        places = np.flatnonzero(lung.any(axis=tuple({0, 1, 2} - {axis})))
        reach = int(_MARGIN_MM / cell_mm[axis])
        view.append(slice(max(0, places[0] - reach), places[-1] + 1 + reach) if len(places) else slice(None))
    return tuple(view)


def _pool(volume, steps):
    """Returns the means of cells in the plane of every so many-th slice, float32 [d, h, w]."""
    sz, sy, sx = steps
    height, width = volume.shape[1] // sy * sy, volume.shape[2] // sx * sx

    def pool(index):
        plane = np.maximum(volume[index], -1024)[:height, :width]
        disk_arrays.release(volume[index])
        sums = sum(plane[row::sy].astype(np.float32) for row in range(sy))
        return sum(sums[:, column::sx] for column in range(sx)) / np.float32(sy * sx)

    return np.stack(morphology.by_slice(pool, range(sz // 2, len(volume), sz)))


def _find_trachea(hu, lung, cell_mm):
    """Returns the cells of the trachea, bool [d, h, w], or None.

    It is the longest narrow piece of air away from the slices' edges, in the middle third between the lungs' outer
    sides and in the upper third of their height, at the highest threshold at which a wall parts it from them.
    """
    slices, columns = np.flatnonzero(lung.any((1, 2))), np.flatnonzero(lung.any((0, 1)))
    if not len(slices):
        return None
    low, high = slices[0], slices[-1]
    top = min(len(hu), high + 1 + int(30.0 / cell_mm[0]))
    start = int(low + _UPPER * (high - low))
    middle = np.interp((0.3, 0.7), (0, 1), (columns[0], columns[-1]))
    for threshold in _SEEDS_HU:
        found = _longest_tube(hu[start:top] < threshold, middle, cell_mm)
        if found is not None:
            seeds = np.zeros(hu.shape, bool)
            seeds[start:top] = found
            return seeds
    return None


def _longest_tube(air, middle, cell_mm):
    """Returns the longest piece of air as wide as a trachea, bool [d, h, w], or None.

    Args:
        air: bool [d, h, w].
        middle: columns between which the middle of the piece lies; it touches no edge of a slice.
        cell_mm: distances of slices, rows and columns.
    """
    labels, _ = ndimage.label(air)
    edges = [labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]]
    outside = np.unique(np.concatenate([edge.ravel() for edge in edges]))
    best, best_length = None, _LEAST_LENGTH_MM
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        length = (box[0].stop - box[0].start) * cell_mm[0]
        if length <= best_length or number in outside:
            continue
        section = np.count_nonzero(labels[box] == number) * cell_mm[0] / length * cell_mm[1] * cell_mm[2]
        centre = 0.5 * (box[2].start + box[2].stop)
        if middle[0] <= centre <= middle[1] and _SECTION_MM2[0] <= section <= _SECTION_MM2[1]:
            best, best_length = number, length
    return None if best is None else labels == best


def _grow(hu, seeds, cell_mm):
    """Returns the air that hangs together with the seeds, at the highest threshold that does not leak."""
    most = _MOST_ML * 1000.0 / np.prod(cell_mm)
    for threshold in _THRESHOLDS_HU:
        labels, _ = ndimage.label((hu < threshold) | seeds)
        numbers = np.unique(labels[seeds])
        sizes = np.bincount(labels.ravel())
        if sizes[numbers].sum() <= most:
            return np.isin(labels, numbers)
    return seeds


def _with_wall(tree):
    """Returns a tree a cell thicker all round in the slice: partial volume with its wall looks like lung."""
    return morphology.grow(tree, (0, 1, 1))
