"""Clean-up of a predicted mask, off by default, and its connected components; slice by slice.

Everything works on masks that are indexed by slice and never needs more than two slices in memory, so that
a mask may lie on disk. Pieces hang together 8-connected within a slice and, between slices, where they share
a pixel.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.base.classes import BOTH_LUNGS, CLASS_NAMES, LEFT, NODULE, RIGHT, value_of
from auxseg.base.errors import InputError

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclasses.dataclass(frozen=True)
class CleanUp:
    """Which clean-up to apply; all off by default.

    Attributes:
        largest_components: keep the largest piece of each lung; the others become background.
        fill_holes: background that a lung (with its nodules) encloses in a slice becomes that lung.
        min_nodule_mm: nodules whose equivalent diameter in their largest slice is smaller become lung or
            background, whichever surrounds them.
        min_nodule_px: the same in pixels, for scans whose pixel size is not known.
    """

    largest_components: bool = False
    fill_holes: bool = False
    min_nodule_mm: float = 0.0
    min_nodule_px: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.min_nodule_mm < 100.0:
            raise InputError(f"--min_nodule_mm: got {self.min_nodule_mm}, expected 0 (off) to 100 mm")


@dataclasses.dataclass(frozen=True)
class Component:
    """One connected piece of a class.

    Attributes:
        voxels: how many.
        centre_zyx: mean index, in slices, rows and columns.
        largest_slice: the slice in which it covers the most pixels.
        largest_pixels: how many it covers there.
        slices: first and last slice.
    """

    voxels: int
    centre_zyx: tuple[float, float, float]
    largest_slice: int
    largest_pixels: int
    slices: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Components:
    """The connected pieces of one class, largest first.

    Attributes:
        value: the class.
        pieces: one entry a piece.
        numbers: by slice: int32 [labels + 1], the piece's index + 1 of every label that
            `scipy.ndimage.label` gives in the slice; 0 for background.
    """

    value: int
    pieces: tuple[Component, ...]
    numbers: tuple[np.ndarray, ...]

    def read(self, masks, index):
        """Returns int32 [H, W] of slice `index`: the index + 1 of the piece at each pixel, 0 elsewhere."""
        labels, _ = ndimage.label(masks[index] == self.value, _EIGHT_NEIGHBOURS)
        return self.numbers[index][labels]


def find_components(masks, value):
    """Returns the `Components` of a class.

    Args:
        masks: uint8, indexed by slice, each [H, W].
        value: the class.
    """
    roots, stats, starts = _find_labels(masks, value)
    return _gather(value, roots, stats, starts)


def _find_labels(masks, value):
    """Returns what every label of every slice belongs to and measures, and where the labels of a slice begin.

    Labels are counted through the slices; 0 is background.

    Returns:
        int64 [labels + 1], the label that stands for its piece; a list as long, `_slice_stats` (None of
        background); a list with each slice's first label.
    """
    parents, stats, starts, before = [0], [None], [], None
    for index in range(len(masks)):
        chosen, first = masks[index] == value, len(parents)
        starts.append(first)
        if not chosen.any():
            before = None
            continue
        labels, count = ndimage.label(chosen, _EIGHT_NEIGHBOURS)
        parents += range(first, first + count)
        stats += _slice_stats(labels, count, index)
        labels[chosen] += first - 1
        if before is not None:
            _join(parents, before, labels)
        before = labels
    return np.array([_root(parents, one) for one in range(len(parents))]), stats, starts


def _slice_stats(labels, count, index):
    """Returns by label: pixels, sums of slice, row and column indices, the slice."""
    rows, columns = np.nonzero(labels)
    values = labels[rows, columns]
    pixels = np.bincount(values)[1:]  # every label has a pixel
    sums = [np.bincount(values, axis)[1:] for axis in (rows, columns)]
    return [(int(n), n * index, y, x, index) for n, y, x in zip(pixels, *sums)]


def _join(parents, before, labels):
    """Joins labels of neighbouring slices that share a pixel; runs of one pair count once, which is fast."""
    both = np.minimum(before, labels) > 0
    pairs = before[both].astype(np.int64) * len(parents) + labels[both]
    for pair in np.unique(pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]).tolist():
        one, other = (_root(parents, label) for label in divmod(pair, len(parents)))
        parents[max(one, other)] = min(one, other)


def _root(parents, label):
    while parents[label] != label:
        parents[label] = parents[parents[label]]
        label = parents[label]
    return label


def _gather(value, roots, stats, starts):
    pieces = {}
    for label in range(1, len(roots)):
        pieces.setdefault(int(roots[label]), []).append(stats[label])
    found = {root: _create_component(parts) for root, parts in pieces.items()}
    order = sorted(found, key=lambda root: (-found[root].voxels, root))
    numbers = np.zeros(len(roots), np.int32)
    numbers[order] = np.arange(1, len(order) + 1)
    numbers = numbers[roots]  # a piece's own root is one of its labels
    ends = [*starts[1:], len(roots)]
    by_slice = tuple(np.append(np.int32(0), numbers[a:b]) for a, b in zip(starts, ends))
    return Components(value, tuple(found[root] for root in order), by_slice)


def _create_component(parts):
    pixels, *sums, slices = (np.array(column) for column in zip(*parts))
    areas = np.bincount(slices - slices.min(), pixels)
    return Component(
        voxels=int(pixels.sum()),
        centre_zyx=tuple(float(one.sum() / pixels.sum()) for one in sums),
        largest_slice=int(np.argmax(areas) + slices.min()),
        largest_pixels=int(areas.max()),
        slices=(int(slices.min()), int(slices.max())),
    )


def equivalent_diameter(area):
    """Returns the diameter of the circle of an area, in the area's unit; float64, of the areas' shape."""
    return 2.0 * np.sqrt(area / np.pi)


def clean(masks, options, *, pixel_mm2, classes=CLASS_NAMES):
    """Applies the clean-up that is on, in place, and returns voxels changed by each step.

    Args:
        masks: uint8 [D, H, W], class indices; changed.
        options: `CleanUp`.
        pixel_mm2: area of a pixel, NaN where it is not known.
        classes: names by mask value.

    Returns:
        {name of the step: voxels changed}, in the order applied, only of steps that are on.

    Raises:
        InputError: a minimum size in mm for a scan whose pixel size is not known.
    """
    changed, nodule = {}, value_of("nodule", classes)
    lungs = [value_of(name, classes) for name in ("left_lung", "right_lung", BOTH_LUNGS) if name in classes]
    if options.largest_components:
        changed["largest_components"] = sum(keep_largest(masks, value) for value in lungs)
    if options.fill_holes:
        changed["fill_holes"] = sum(fill_holes(masks, value, nodule=nodule) for value in lungs)
    if options.min_nodule_px and not np.isfinite(pixel_mm2):
        changed["min_nodule_px"] = drop_small_nodules(masks, options.min_nodule_px, 1.0, nodule=nodule)
    elif options.min_nodule_mm:
        if not np.isfinite(pixel_mm2):
            raise InputError("--min_nodule_mm: the scan has no pixel size in mm; give one, or leave it off")
        changed["min_nodule_mm"] = drop_small_nodules(masks, options.min_nodule_mm, pixel_mm2, nodule=nodule)
    return changed


def keep_largest(masks, value):
    """Makes all but the largest piece of a class background, in place; returns the voxels changed."""
    components = find_components(masks, value)
    if len(components.pieces) < 2:
        return 0
    for index in range(len(masks)):
        masks[index][components.read(masks, index) > 1] = 0
    return sum(piece.voxels for piece in components.pieces[1:])


def fill_holes(masks, value, *, nodule=NODULE):
    """Fills background enclosed within a slice by a lung and nodules, in place; returns the voxels changed."""
    changed = 0
    for index in range(len(masks)):
        mask = masks[index]
        if not (mask == value).any():
            continue
        own = (mask == value) | _touching_nodules(mask, value, nodule)
        holes = ndimage.binary_fill_holes(own) & (mask == 0)
        mask[holes] = value
        changed += int(holes.sum())
    return changed


def _touching_nodules(mask, value, nodule):
    """Returns the nodules of a slice that touch a lung, so that one at its edge does not open a hole."""
    labels, _ = ndimage.label(mask == nodule, _EIGHT_NEIGHBOURS)
    touching = np.unique(labels[ndimage.binary_dilation(mask == value, _EIGHT_NEIGHBOURS)])
    return np.isin(labels, touching[touching > 0])


def drop_small_nodules(masks, min_mm, pixel_mm2, *, nodule=NODULE):
    """Gives nodules below a diameter to what surrounds them, in place; returns the voxels changed.

    Thousands of them cost little more than one.

    Args:
        masks: uint8 [D, H, W]; changed.
        min_mm: smallest equivalent diameter, in the nodule's largest slice, to keep.
        pixel_mm2: area of a pixel.
        nodule: value of nodules.
    """
    roots, stats, starts = _find_labels(masks, nodule)
    small = _is_small(roots, stats, len(masks), min_mm, pixel_mm2)
    changed = 0
    for index in np.unique([stats[label][-1] for label in np.flatnonzero(small)]).tolist():
        mask, end = masks[index], [*starts, len(roots)][index + 1]
        labels, _ = ndimage.label(mask == nodule, _EIGHT_NEIGHBOURS)
        own = np.append(0, np.where(small, roots, 0)[starts[index] : end])[labels]
        rows, columns = np.nonzero(own)
        mask[rows, columns] = _surrounding_classes(mask, own, nodule)[own[rows, columns]]
        changed += len(rows)
    return changed


def _is_small(roots, stats, num_slices, min_mm, pixel_mm2):
    """Returns bool [labels + 1], of `_find_labels`: whether the piece is below a diameter in its largest slice."""
    if len(roots) == 1:
        return np.zeros(1, bool)
    pixels, slices = np.array([(each[0], each[-1]) for each in stats[1:]]).T
    areas = np.bincount(roots[1:] * num_slices + slices, pixels, minlength=len(roots) * num_slices)
    largest = areas.reshape(-1, num_slices).max(axis=1)
    return np.append(False, equivalent_diameter(largest * pixel_mm2)[roots[1:]] < min_mm)


def _surrounding_classes(mask, pieces, nodule):
    """Returns the most frequent other class in the ring of one pixel around each piece, int64 [largest number + 1].

    0 where there is no ring, and the lowest of equally frequent ones. A pixel beside a piece is no nodule, for
    then it would be of the piece: none has to wait for another.

    Args:
        mask: uint8 [H, W].
        pieces: int [H, W], numbers of pieces of the class nodule, each with all its pixels; 0 elsewhere.
        nodule: its value.
    """
    height, width = mask.shape
    rows, columns = np.nonzero(pieces)
    around = []
    for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        ring = inside.copy()
        ring[inside] = mask[y[inside], x[inside]] != nodule
        around.append(pieces[rows, columns][ring].astype(np.int64) * mask.size + y[ring] * width + x[ring])
    numbers, places = np.divmod(np.unique(np.concatenate(around)), mask.size)
    num_values = int(mask.max(initial=0)) + 1
    counts = np.bincount(
        numbers * num_values + mask.ravel()[places], minlength=(int(pieces.max(initial=0)) + 1) * num_values
    )
    return counts.reshape(-1, num_values).argmax(axis=1)


def surrounding_lung(mask, piece, lungs=(LEFT, RIGHT)):
    """Returns the lung, among the values `lungs`, with the most pixels in a ring of three pixels around a piece; 0
    where there is none."""
    ring = ndimage.binary_dilation(piece, _EIGHT_NEIGHBOURS, iterations=3) & ~piece
    counts = [np.count_nonzero(mask[ring] == value) for value in lungs]
    return lungs[int(np.argmax(counts))] if any(counts) else 0
