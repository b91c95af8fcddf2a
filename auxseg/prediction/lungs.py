"""Clean-up of the lungs of a whole scan, in three dimensions and by what the scan shows.

A network that sees one slice at a time leaves pieces of bowel gas, the trachea, lungs that change sides for a slice,
and edges as coarse as its pixels. Here, in this order: the airway is grown from the trachea and left out; pieces in
three dimensions are kept, moved to the other lung or dropped; the edges move, by millimetres, to where air meets tissue;
holes are filled. Topology is decided on a coarse grid of a few millimetres and applied slice by slice, so that
masks and scan may lie on disk.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.base import disk_arrays
from auxseg.base.classes import LEFT, NODULE, RIGHT
from auxseg.prediction import morphology
from auxseg.prediction.airway import find_airway
from auxseg.prediction.morphology import by_slice

_COARSE_MM = 2.5
_LARGE_SHARE = 0.15  # of the lung: a loose piece that large is a lobe, unless it is gas
_LEAST_SHARE = 0.02  # of the other lung: what is smaller may be a patch of it, where a lung is missing
_GAS_HU = -940  # a loose piece of lower mean HU is gas
_EDGE_MM = 2.5  # by how much an edge may move
_MOST_STEPS = 10
_TISSUE_HU = -400  # half way from lung to tissue: where an edge belongs
_HOLE_MM2 = 400.0  # vessels and nodules are smaller, domes of the diaphragm larger
_THIN_MM = 3.5  # larger cells hold the chest's wall in one or two
_CUT_CELLS = 8  # of the body at an edge of the field: it is cut there
_FULL = np.ones((3, 3, 3), bool)


_WORDS = (
    "outside the body left out",
    "of the airway left out",
    "in loose pieces dropped",
    "given to the other lung",
    "added at the edges",
    "taken from the edges",
    "of holes filled",
    "of nodules outside the lungs dropped",
)


@dataclasses.dataclass(frozen=True)
class Changes:
    """What the clean-up changed, in mL.

    Attributes:
        outside_ml: outside the body.
        airway_ml: of the trachea and bronchi that was marked as lung.
        dropped_ml: in loose pieces.
        moved_ml: in pieces given to the other lung.
        edges_added_ml, edges_removed_ml: at the edges.
        filled_ml: in holes.
        nodules_ml: nodules outside the lungs, dropped.
    """

    outside_ml: float
    airway_ml: float
    dropped_ml: float
    moved_ml: float
    edges_added_ml: float
    edges_removed_ml: float
    filled_ml: float
    nodules_ml: float


def clean(masks, volume, spacing_zyx_mm, shown_yx=(slice(None), slice(None))):
    """Cleans the lungs of a whole scan in place; returns the `Changes`.

    Args:
        masks: uint8 [D, H, W], class indices, canonical; changed. Nodules stay where they are in a lung.
        volume: int16 [D, H, W], HU.
        spacing_zyx_mm: distances of slices, rows and columns.
        shown_yx: rows and columns that the scanner's field holds; beyond them is filled up.
    """
    voxel_ml = float(np.prod(spacing_zyx_mm)) / 1000.0
    grid = create_grid(masks.shape, spacing_zyx_mm)
    nodules = by_slice(_absorb_nodules, masks)
    coarse_hu = grid.sample(volume)
    inside = find_inside(coarse_hu, grid.cells_of(shown_yx), grid.opening(spacing_zyx_mm))
    outside = _keep_inside(masks, grid, inside)
    tree = find_airway(volume, masks, spacing_zyx_mm)
    removed = sum(by_slice(lambda index, mask: _drop(mask, tree.read(index)), range(len(masks)), masks))
    before = grid.sample(masks)
    after = repair_sides(choose_pieces(before, coarse_hu))
    dropped, moved = _apply(masks, grid, after)

    def finish(index, mask):
        free = tree.read(index)
        edges = move_edges(mask, volume[index], free, spacing_zyx_mm[1:])
        disk_arrays.release(volume[index])
        return *edges, fill_holes(mask, free, spacing_zyx_mm[1:])

    counts = np.sum(by_slice(finish, range(len(masks)), masks), axis=0)
    lost = sum(_give_back(mask, places) for mask, places in zip(masks, nodules, strict=True))
    return Changes(
        *(round(float(n) * voxel_ml, 2) for n in (outside, removed, dropped, moved, *counts, lost))
    )


def describe(report):
    """Returns in a line what a clean-up did."""
    parts = [
        f"{ml:.0f} mL {words}"
        for ml, words in zip(dataclasses.astuple(report), _WORDS, strict=True)
        if ml >= 0.5
    ]
    return f"lungs cleaned in 3D: {', '.join(parts) or 'nothing to do'}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every so many-th voxel of a scan.

    Attributes:
        shape_zyx: of the scan.
        steps_zyx: voxels from one to the next.
    """

    shape_zyx: tuple[int, int, int]
    steps_zyx: tuple[int, int, int]

    def sample(self, volume):
        """Returns the voxels in the middle of the cells [d, h, w]."""
        cells = np.array(volume[tuple(slice(step // 2, None, step) for step in self.steps_zyx)])
        disk_arrays.release(volume)
        return cells

    def opening(self, spacing_zyx_mm):
        """Returns the rows and columns of cells, 3 or 1, that an opening spans to rid a slice of thin things."""
        cell_mm = max(step * mm for step, mm in zip(self.steps_zyx[1:], spacing_zyx_mm[1:], strict=True))
        return 3 if cell_mm <= _THIN_MM else 1

    def cells_of(self, part_yx):
        """Returns the slices of cells of some rows and columns."""
        spans = zip(part_yx, self.shape_zyx[1:], self.steps_zyx[1:], strict=True)
        return tuple(
            slice(-(-one.indices(n)[0] // step), one.indices(n)[1] // step) for one, n, step in spans
        )

    def spread(self, cells, index):
        """Returns the cells [h, w] of slice `index` at the slice's size [H, W].

        Args:
            cells: [d, h, w], from `sample` or of its shape.
            index: of the slice.
        """
        plane = cells[min(index // self.steps_zyx[0], len(cells) - 1)]
        for axis in (0, 1):
            step, size = self.steps_zyx[1 + axis], self.shape_zyx[1 + axis]
            places = np.minimum(np.arange(size) // step, plane.shape[axis] - 1)
            plane = np.take(plane, places, axis=axis)
        return plane


def create_grid(shape_zyx, spacing_zyx_mm, cell_mm=_COARSE_MM):
    """Returns the `Grid` with cells of about `cell_mm`, none smaller than a voxel or larger than the scan."""
    steps = (min(max(1, round(cell_mm / mm)), n) for n, mm in zip(shape_zyx, spacing_zyx_mm, strict=True))
    return Grid(tuple(shape_zyx), tuple(steps))


def find_inside(hu, shown_yx, opening):
    """Returns what lies inside the body, bool [d, h, w], by its largest piece of tissue.

    A cell lies inside if it has tissue of the body before and behind it, and on its right and left; where the field
    cuts the body, the field's edge counts as tissue. So lungs stay in whose wall the field cuts off, and what lies between
    the back and the table goes out.

    Args:
        hu: int16 [d, h, w].
        shown_yx: rows and columns that the scanner's field holds.
        opening: rows and columns of cells in which a table's shell and clothes are less than this thick.
    """
    inside = np.zeros(hu.shape, bool)
    view = (slice(None), *shown_yx)
    reach = (0, opening // 2, opening // 2)
    tissue = morphology.grow(morphology.shrink(hu[view] > _TISSUE_HU, reach), reach)
    labels, count = ndimage.label(tissue)
    if not count:
        return np.ones(hu.shape, bool)
    body = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    for plane in body:
        for edge in (plane[0], plane[-1], plane[:, 0], plane[:, -1]):
            edge |= edge.sum() > _CUT_CELLS
    between = [
        np.maximum.accumulate(body, axis) & np.flip(np.maximum.accumulate(np.flip(body, axis), axis), axis)
        for axis in (1, 2)
    ]
    inside[view] = between[0] & between[1]
    return inside


def measure_outside(masks, volume, spacing_zyx_mm, shown_yx=(slice(None), slice(None))):
    """Returns how much of the lungs lies outside the body, in mL; arguments as of `clean`, but nothing is changed."""
    grid = create_grid(masks.shape, spacing_zyx_mm)
    inside = find_inside(grid.sample(volume), grid.cells_of(shown_yx), grid.opening(spacing_zyx_mm))
    return _keep_inside(masks, grid, inside, change=np.array) * float(np.prod(spacing_zyx_mm)) / 1000.0


def _keep_inside(masks, grid, inside, change=np.asarray):
    """Makes what lies outside background in place, or in copies; returns how many voxels were marked."""

    def keep(index, mask):
        return _drop(change(mask), ~grid.spread(inside, index))

    return sum(by_slice(keep, range(grid.shape_zyx[0]), masks))


def _drop(mask, places):
    """Makes what is marked at some places background in place; returns how many pixels were."""
    lost = places & (mask > 0)
    mask[lost] = 0
    return int(lost.sum())


def _absorb_nodules(mask):
    """Makes nodules lung in place where they touch one; returns their rows and columns."""
    nodules = mask == NODULE
    if not nodules.any():
        return None
    labels, count = ndimage.label(nodules, np.ones((3, 3), bool))
    touching = np.zeros((count + 1, NODULE + 1), int)
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        beside = np.roll(mask, (down, right), (0, 1))
        np.add.at(touching, (labels[nodules], beside[nodules]), 1)
    touching[:, [0, NODULE]] = 0
    mask[nodules] = np.where(touching.any(1), touching.argmax(1), 0)[labels[nodules]]
    return np.nonzero(nodules)


def _give_back(mask, places):
    """Marks nodules again where there is lung, in place; returns how many pixels lie in none."""
    if places is None:
        return 0
    inside = mask[places] > 0
    mask[places[0][inside], places[1][inside]] = NODULE
    return int(len(inside) - inside.sum())


def choose_pieces(cells, hu):
    """Returns which lung each cell belongs to, after looking at the pieces of both in three dimensions.

    The largest piece of a lung stays. Another goes to the other lung where it touches that one's largest piece; else it
    stays where it is large and no gas, and is dropped where it is small: bowel gas, a table, noise.

    Args:
        cells: uint8 [d, h, w], 0, 1 left lung, 2 right lung.
        hu: int16 [d, h, w].

    Returns:
        uint8 [d, h, w].
    """
    found = {side: _pieces(cells == side) for side in (LEFT, RIGHT)}
    chosen = np.zeros_like(cells)
    for side, (labels, _, main) in found.items():
        if main:
            chosen[labels == main] = side
    for side, (labels, sizes, main) in found.items():
        if not main:
            continue
        other_labels, other_sizes, other_main = found[LEFT + RIGHT - side]
        is_lung = sizes[main] > _LEAST_SHARE * other_sizes[other_main]
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            if number == main and is_lung:
                continue
            box = tuple(slice(max(one.start - 1, 0), one.stop + 1) for one in box)
            piece = labels[box] == number
            around = morphology.grow(piece, (1, 1, 1))
            if other_main and (around & (other_labels[box] == other_main)).any():
                chosen[box][piece] = LEFT + RIGHT - side
            elif sizes[number] >= _LARGE_SHARE * sizes[main] and hu[box][piece].mean() > _GAS_HU:
                chosen[box][piece] = side
    return chosen


def repair_sides(cells):
    """Returns cells whose lungs do not reach into each other: what a thin bridge ties to the wrong one changes sides.

    An opening cuts each lung down to its core. What it takes off goes to the core that it touches with more faces.

    Args:
        cells: uint8 [d, h, w], 0, 1 left lung, 2 right lung.

    Returns:
        uint8 [d, h, w].
    """
    cores = {side: _core(cells == side) for side in (LEFT, RIGHT)}
    repaired = cells.copy()
    for side, core in cores.items():
        labels, count = ndimage.label((cells == side) & ~core, _FULL)
        own, other = (_count_faces(labels, cores[one], count) for one in (side, LEFT + RIGHT - side))
        repaired[(other > own)[labels]] = LEFT + RIGHT - side
    return repaired


def _core(cells):
    """Returns the largest piece of an opening of cells, bool [d, h, w]."""
    labels, _, main = _pieces(morphology.grow(morphology.shrink(cells, (2, 2, 2)), (2, 2, 2)))
    return (labels == main) & (main > 0)


def _count_faces(labels, core, count):
    """Returns how many faces each piece of `labels` shares with a core, int64 [count + 1]; 0 of the background."""
    faces = np.zeros(count + 1, int)
    for axis in range(labels.ndim):
        for one, other in (((slice(1, None)), slice(None, -1)), (slice(None, -1), slice(1, None))):
            here = tuple(one if k == axis else slice(None) for k in range(labels.ndim))
            there = tuple(other if k == axis else slice(None) for k in range(labels.ndim))
            faces += np.bincount(labels[here][core[there]], minlength=count + 1)
    faces[0] = 0
    return faces


def _pieces(cells):
    """Returns the pieces of cells: labels int32 [d, h, w], their sizes, and the largest (0 where there is none)."""
    labels, count = ndimage.label(cells, _FULL)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes, int(sizes.argmax()) if count else 0


def _apply(masks, grid, cells):
    """Gives each lung voxel the lung of its cell in place, or of the one beside it; returns (dropped, moved).

    A cell is known by its middle alone: an edge reaches into cells beside those of its lung.
    """
    near = {side: morphology.grow(cells == side, (1, 1, 1)) for side in (LEFT, RIGHT)}
    wide = np.where(
        cells > 0, cells, near[LEFT] * np.uint8(LEFT) + near[RIGHT] * np.uint8(RIGHT)
    )  # both: NODULE

    def apply(index, mask):
        lung = mask > 0
        if not lung.any():
            return 0, 0
        sides = grid.spread(wide, index)
        sides = np.where(sides == NODULE, mask, sides) * lung
        changed = lung & (sides != mask)
        lost = int((changed & (sides == 0)).sum())
        mask[:] = sides
        return lost, int(changed.sum()) - lost

    return np.sum(by_slice(apply, range(len(masks)), masks), axis=0)


def move_edges(mask, image, free, spacing_yx_mm):
    """Moves a slice's edges to where air meets tissue, in place; returns pixels (added, taken away).

    By `_EDGE_MM` at most, and step by step: an edge does not jump over the wall between a lung and a bowel.

    Args:
        mask: uint8 [H, W], 0, 1 left lung, 2 right lung; changed.
        image: int16 [H, W] in HU.
        free: bool [H, W], what no lung may take: the airway.
        spacing_yx_mm: distances of rows and columns.
    """
    rows, columns = bounds(mask > 0, margin=8)
    steps = min(int(_EDGE_MM / max(spacing_yx_mm)), _MOST_STEPS)
    if rows is None or not steps:
        return 0, 0
    view, hu = mask[rows, columns], _smooth(image[rows, columns])
    before = int((view > 0).sum())
    open_to_lung = (hu < _TISSUE_HU) & ~free[rows, columns]
    for _ in range(steps):
        view[:] = _grow(view, open_to_lung)
    added = int((view > 0).sum()) - before
    dense = hu > _TISSUE_HU
    lung = view > 0
    for _ in range(-(-steps // 2)):
        lung &= ~(dense & _beside(~lung))
    view[~lung] = 0
    return added, before + added - int(lung.sum())


def bounds(inside, margin):
    """Returns slices of the rows and columns of what is inside, with a margin; (None, None) of nothing."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return None, None
    return tuple(slice(max(some[0] - margin, 0), some[-1] + 1 + margin) for some in (rows, columns))


def _smooth(image):
    """Returns the mean of 3x3 pixels, float32 [H, W]; values below -1024 count as -1024."""
    padded = np.pad(np.maximum(image, -1024).astype(np.float32), 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / np.float32(9)


def _grow(mask, allowed):
    """Returns a mask grown by a pixel, to the four sides, into what is allowed; the larger value wins."""
    grown = mask.copy()
    np.maximum(grown[1:], mask[:-1], out=grown[1:])
    np.maximum(grown[:-1], mask[1:], out=grown[:-1])
    np.maximum(grown[:, 1:], mask[:, :-1], out=grown[:, 1:])
    np.maximum(grown[:, :-1], mask[:, 1:], out=grown[:, :-1])
    return np.where((mask == 0) & allowed, grown, mask)


def _beside(cells):
    """Returns what has one of the cells bool [H, W] beside it, to the four sides."""
    found = np.zeros_like(cells)
    found[1:] |= cells[:-1]
    found[:-1] |= cells[1:]
    found[:, 1:] |= cells[:, :-1]
    found[:, :-1] |= cells[:, 1:]
    return found


def fill_holes(mask, free, spacing_yx_mm):
    """Fills what a lung encloses in a slice, in place; returns the pixels filled.

    Vessels and nodules are so enclosed. What is larger than `_HOLE_MM2`, as the dome of the diaphragm is, stays,
    and so does the airway.

    Args:
        mask: uint8 [H, W], 0, 1 left lung, 2 right lung; changed.
        free: bool [H, W], the airway.
        spacing_yx_mm: distances of rows and columns.
    """
    most = _HOLE_MM2 / float(np.prod(spacing_yx_mm))
    filled = 0
    for side in (LEFT, RIGHT):
        rows, columns = bounds(mask == side, margin=1)
        if rows is None:
            continue
        view = mask[rows, columns]
        labels, count = ndimage.label(view != side)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        sizes[np.unique(edges)] = 0
        holes = (sizes <= most)[labels] & (sizes > 0)[labels] & (view == 0) & ~free[rows, columns]
        view[holes] = side
        filled += int(holes.sum())
    return filled
