"""Masks of whole scans compared in millimetres, slice by slice: overlap, volumes, surfaces in 3D, nodules as objects.

Memory is that of a few slices and of the surfaces' points, however many slices there are. What either side calls unknown
counts nothing, and in the score of a lung neither does what either side calls a nodule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import spatial

from auxseg.base.classes import LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.scoring import components, matching
from auxseg.scoring.surfaces import TOLERANCES, contour

RULES = (
    "Dice is over the voxels of a whole scan. Surfaces are compared in three dimensions, in mm.",
    "A structure that is missed has Dice 0, and the scan's diagonal as its distance. Nothing is dropped.",
    "A class that only the prediction has makes a false-positive scan: in no mean, counted in a column of its own.",
    "What the reference calls unknown counts nothing. In the score of a lung, neither does what either side calls a nodule.",
    f"A nodule is found by a predicted piece whose overlap with it (IoU) is at least {matching.MIN_OBJECT_IOU:g}, one to one.",
)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        to_mm: int [n, 3] slices, rows and columns -> float64 [n, 3] in mm, x, y, z.
        voxel_mm3: volume of a voxel.
        diagonal_mm: from corner to corner of the scan.
    """

    to_mm: Callable[[np.ndarray], np.ndarray]
    voxel_mm3: float
    diagonal_mm: float


def score_class(prediction, reference, value, grid):
    """Returns the scores of a class in a scan, name -> value; distances in mm, volumes in mL.

    Args:
        prediction: uint8 [D, H, W], class indices and `UNKNOWN`; any array that gives slices.
        reference: the same.
        value: the class.
        grid: `Grid`.
    """
    counts, points = np.zeros(3, np.int64), ([], [])
    parts = [None, None, _split(prediction[0], reference[0], value)]
    for index in range(len(reference)):
        following = index + 1 < len(reference)
        parts = [
            *parts[1:],
            _split(prediction[index + 1], reference[index + 1], value) if following else None,
        ]
        given, true, _ = parts[1]
        counts += [np.count_nonzero(given & true), np.count_nonzero(given), np.count_nonzero(true)]
        for which in (0, 1):
            rows, columns = np.nonzero(_surface(parts, which))
            points[which].append(np.stack([np.full(len(rows), index), rows, columns], axis=1))
    both, given, true = counts.tolist()
    status = {(True, True): "both", (False, True): "missed", (True, False): "false positive"}.get(
        (given > 0, true > 0), "absent"
    )
    ml = grid.voxel_mm3 / 1000.0
    return {
        "status": status,
        "dice": 2.0 * both / (given + true) if true else np.nan,
        **_surface_scores(*(np.concatenate(each) for each in points), grid),
        "volume_ml": given * ml,
        "reference_ml": true * ml,
        "volume_error_ml": (given - true) * ml,
    }


def _split(prediction, reference, value):
    """Returns (predicted, true, unknown) of a slice, bool [H, W]; neither has an unknown pixel."""
    left_out = (UNKNOWN,) if value not in (LEFT, RIGHT) else (UNKNOWN, NODULE)
    unknown = np.isin(reference, left_out) | np.isin(prediction, left_out)
    return (prediction == value) & ~unknown, (reference == value) & ~unknown, unknown


def _surface(parts, which):
    """Returns the voxels of the middle slice with a neighbour outside, of 6; beside what is unknown is no surface.

    Args:
        parts: `_split` of three slices, None beyond the scan.
        which: 0 for the prediction, 1 for the reference.
    """
    mask, unknown = parts[1][which], parts[1][2]
    if not mask.any():
        return mask
    covered = np.ones_like(mask)
    for part in (parts[0], parts[2]):
        covered &= False if part is None else part[which] | part[2]
    return mask & (contour(mask | unknown) | ~covered)


def _surface_scores(given, true, grid):
    """Returns HD95, ASSD and surface Dice of two sets of surface voxels, int [n, 3]."""
    names = [f"surface_dice_{tolerance}mm" for tolerance in TOLERANCES]
    if not len(true):
        return dict.fromkeys([*names, "hd95_mm", "assd_mm"], np.nan)
    if not len(given):
        return dict.fromkeys(names, 0.0) | dict.fromkeys(("hd95_mm", "assd_mm"), grid.diagonal_mm)
    places = [grid.to_mm(each) for each in (given, true)]
    trees = [spatial.cKDTree(each, balanced_tree=False, compact_nodes=False) for each in places]
    forward, backward = trees[1].query(places[0])[0], trees[0].query(places[1])[0]
    apart = np.concatenate([forward, backward])
    near = [float(np.mean(apart <= tolerance + 1e-9)) for tolerance in TOLERANCES]
    return dict(zip(names, near)) | {
        "hd95_mm": float(max(np.percentile(forward, 95), np.percentile(backward, 95))),
        "assd_mm": float(apart.mean()),
    }


def match_nodules(prediction, reference, grid):
    """Returns a row for each nodule: found and missed ones by size, then false ones; pieces connect through slices.

    Args:
        prediction: uint8 [D, H, W], class indices and `UNKNOWN`.
        reference: the same.
        grid: `Grid`.
    """
    given, true = (components.find_components(masks, NODULE) for masks in (prediction, reference))
    overlaps = _find_overlaps(given, true, prediction, reference)
    partners = matching.match(overlaps)
    rows = [
        _describe(piece, grid)
        | {"kind": "found" if at in partners else "missed", "iou": partners.get(at, (0, 0.0))[1]}
        for at, piece in enumerate(true.pieces)
    ]
    taken = {at for at, _ in partners.values()}
    return rows + [
        _describe(piece, grid) | {"kind": "false", "iou": 0.0}
        for at, piece in enumerate(given.pieces)
        if at not in taken and overlaps.given_px[at]
    ]


def _find_overlaps(given, true, prediction, reference):
    """Returns the `matching.Overlaps` of pieces in three dimensions; predicted ones count by their known voxels."""
    known_px, shared = np.zeros(len(given.pieces), np.int64), {}
    for index in range(len(reference)):
        if not given.numbers[index].any():
            continue
        of_given, of_true = given.read(prediction, index), true.read(reference, index)
        of_given = np.where(reference[index] == UNKNOWN, 0, of_given)
        known_px += np.bincount(of_given.ravel(), minlength=len(given.pieces) + 1)[1:]
        both = (of_given > 0) & (of_true > 0)
        codes = of_true[both].astype(np.int64) * (len(given.pieces) + 1) + of_given[both]
        for code, count in zip(*np.unique(codes, return_counts=True)):
            shared[int(code)] = shared.get(int(code), 0) + int(count)
    pairs = np.array(sorted(shared), np.int64)
    which_true, which_given = np.divmod(pairs, len(given.pieces) + 1)
    return matching.Overlaps(
        true_labels=None,
        given_labels=None,
        true_px=np.array([piece.voxels for piece in true.pieces], np.int64),
        given_px=known_px,
        true=which_true - 1,
        given=which_given - 1,
        shared_px=np.array([shared[code] for code in pairs.tolist()], np.int64),
    )


def _describe(piece, grid):
    """Returns size and place of a piece; its diameter is that of a ball of its volume."""
    volume_mm3 = piece.voxels * grid.voxel_mm3
    diameter_mm = float((6.0 * volume_mm3 / np.pi) ** (1 / 3))
    place = grid.to_mm(np.array([piece.centre_zyx]))[0]
    return {
        "diameter_mm": diameter_mm,
        "stratum": matching.stratum(diameter_mm),
        "volume_mm3": volume_mm3,
        **dict(zip(("x_mm", "y_mm", "z_mm"), place.tolist())),
    }
