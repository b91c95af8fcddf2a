"""Lungs of whole scans against label maps: Dice by side, and what is marked where no lung is.

A label map holds 0 background, 1 left lung, 2 right lung, 9 airway, and 255 where nobody knows: there nothing counts.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from auxseg.base import files
from auxseg.base.classes import LEFT, RIGHT
from auxseg.base.errors import InputError
from auxseg.ct import geometry, images
from auxseg.scoring import components

AIRWAY, UNKNOWN = 9, 255
FAR_MM = 3.0
"""A voxel further from the reference's lungs and airway than this, within its slice, is far outside."""
_SIDES = (("left_ml", LEFT), ("right_ml", RIGHT))
_PIECE_SHARE = 0.002  # of a lung: smaller pieces are not counted
_COLUMNS = ("scan", "z_mm", "x_min", "y_min", "x_max", "y_max")


def read_labels(path, scan, *, shift_yx=(0, 0)):
    """Returns a label map on a scan's canonical grid, uint8 [D, H, W].

    Args:
        path: the map, in any form that `ct.images` reads.
        scan: `ct.scans.Scan`.
        shift_yx: rows and columns to move it by, for maps that lie beside what they outline.

    Raises:
        InputError: it lies on another grid, or has values beyond 0 to 255.
    """
    header = images.read_header(path)
    difference = geometry.geometry_difference(header.geometry, scan.geometry)
    if difference:
        raise InputError(f"labels: {path} lies on another grid than {scan.path}: {difference}")
    labels = images.read_volume(path, header=header)
    if labels.min() < 0 or labels.max() > 255:
        raise InputError(f"labels: {path} has values {labels.min()} to {labels.max()}, expected 0 to 255")
    return np.roll(labels.astype(np.uint8), shift_yx, (1, 2))


def read_boxes(path, name):
    """Returns the rows of one scan in a CSV of boxes in which nothing is known.

    Args:
        path: CSV with the columns scan, z_mm, x_min, y_min, x_max, y_max (pixels from 0, both ends in the box).
        name: of the scan.

    Raises:
        InputError: as `files.read_cells`.
    """
    rows = files.read_cells(path, _COLUMNS, hint="name a CSV of boxes")
    return [row for row in rows if row["scan"] == name]


def find_slice(scan, z_mm):
    """Returns the index of the slice of a scan nearest to a height in mm (LPS)."""
    heights = [geometry.index_to_mm(scan.geometry, (0, 0, k))[2] for k in range(scan.num_slices)]
    return int(np.argmin(np.abs(np.array(heights) - z_mm)))


def leave_out(labels, boxes, scan):
    """Makes boxes of `read_boxes` unknown in a label map uint8 [D, H, W], in place."""
    for row in boxes:
        x_min, y_min, x_max, y_max = (int(float(row[name])) for name in _COLUMNS[2:])
        labels[find_slice(scan, float(row["z_mm"])), y_min : y_max + 1, x_min : x_max + 1] = UNKNOWN


def score_lungs(masks, labels, spacing_zyx_mm):
    """Returns the scores of the lungs of one scan, a dict of numbers.

    Dice is of each lung over the whole scan; a lung that the map lacks has None. `outside_ml` is marked where the map
    has neither lung nor airway, `far_outside_ml` of that what lies further than `FAR_MM` from both; `airway_share` is
    the share of the airway that is marked.

    Args:
        masks: uint8 [D, H, W], class indices; nodules count as lung.
        labels: uint8 [D, H, W].
        spacing_zyx_mm: distances of slices, rows and columns.
    """
    voxel_ml = float(np.prod(spacing_zyx_mm)) / 1000.0
    counts = sum(_count_slice(*pair, spacing_zyx_mm[1:]) for pair in zip(masks, labels, strict=True))
    both, ours, theirs = counts[:6].reshape(3, 2)
    outside, far, missed, swapped, airway, marked = (counts[6:] * voxel_ml).tolist()
    scores = {
        "left_dice": _ratio(2 * both[0], ours[0] + theirs[0]) if theirs[0] else None,
        "right_dice": _ratio(2 * both[1], ours[1] + theirs[1]) if theirs[1] else None,
        **_volumes(masks, voxel_ml),
        "outside_ml": outside,
        "far_outside_ml": far,
        "missed_ml": missed,
        "swapped_ml": swapped,
        "airway_ml": airway,
        "airway_marked_ml": marked,
        "airway_share": _ratio(marked, airway) if airway else None,
    }
    return {**scores, **{name.replace("_ml", "_pieces"): _count_pieces(masks, side) for name, side in _SIDES}}


def _volumes(masks, voxel_ml):
    """Returns the volumes of both lungs, what is unknown included."""
    return {name: float(np.count_nonzero(masks == side) * voxel_ml) for name, side in _SIDES}


def _ratio(part, whole):
    return float(part / whole)


def _count_slice(mask, labels, spacing_yx_mm):
    """Returns voxels of one slice, int64 [12]: in both, ours and theirs by side; outside, far outside, missed,
    on the wrong side, airway, airway marked."""
    known = labels != UNKNOWN
    lung, theirs = (mask > 0) & known, (labels == LEFT) | (labels == RIGHT)
    airway = labels == AIRWAY
    outside = lung & ~theirs & ~airway
    sides = [((mask == side) & known, labels == side) for side in (LEFT, RIGHT)]
    return np.array([
        *(np.count_nonzero(a & b) for a, b in sides), *(np.count_nonzero(a) for a, _ in sides),
        *(np.count_nonzero(b) for _, b in sides), np.count_nonzero(outside),
        _count_far(outside, theirs | airway | ~known, spacing_yx_mm), np.count_nonzero(theirs & ~(mask > 0)),
        np.count_nonzero((sides[0][0] & sides[1][1]) | (sides[1][0] & sides[0][1])),
        np.count_nonzero(airway), np.count_nonzero(airway & lung),
    ], np.int64)  # fmt: skip


def _count_far(outside, theirs, spacing_yx_mm):
    if not outside.any():
        return 0
    if not theirs.any():
        return np.count_nonzero(outside)
    return np.count_nonzero(ndimage.distance_transform_edt(~theirs, spacing_yx_mm)[outside] > FAR_MM)


def _count_pieces(masks, side):
    """Returns in how many pieces of at least 0.2 % a lung lies."""
    pieces = components.find_components(masks, side).pieces
    total = sum(piece.voxels for piece in pieces)
    return sum(piece.voxels >= _PIECE_SHARE * total for piece in pieces)
