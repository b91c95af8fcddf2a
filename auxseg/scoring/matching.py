"""Nodules as objects: reference and predicted ones matched by overlap, by size."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

MIN_OBJECT_IOU = 0.1
"""Below it a predicted component is no hit: half a dozen stray pixels do not find a nodule."""
STRATA = ("under 6 mm", "6-10 mm", "over 10 mm", "unknown size")


def bounding_box(mask):
    """Returns two slices around the True pixels of bool [H, W]; empty ones where there is none."""
    spans = [np.flatnonzero(mask.any(1 - axis)) for axis in (0, 1)]
    return tuple(slice(span[0], span[-1] + 1) if len(span) else slice(0, 0) for span in spans)


def match_objects(*, prediction, reference, spacing_yx_mm, known=None):
    """Returns one mapping for each object: kind ('found', 'missed' or 'false'), size, place and IoU.

    Args:
        prediction: bool [H, W].
        reference: bool [H, W].
        spacing_yx_mm: float64 [2], NaN where unknown: then the stratum is 'unknown size'.
        known: as `find_overlaps`.

    Returns:
        A list, found and missed in the order of the reference's components, then the false ones. Size and
        centre are the reference's, or of a false one its own; iou is that with its partner, 0 without one.
    """
    window = bounding_box(prediction | reference)
    overlaps = find_overlaps(prediction[window], reference[window], None if known is None else known[window])
    partners = match(overlaps)
    taken = {index for index, _ in partners.values()}
    origin = [each.start for each in window]
    found = _describe(overlaps.true_labels, overlaps.true_px, spacing_yx_mm, origin)
    false = _describe(overlaps.given_labels, overlaps.given_px, spacing_yx_mm, origin)
    for index, item in enumerate(found):
        item |= {
            "kind": "found" if index in partners else "missed",
            "iou": partners.get(index, (0, 0.0))[1],
        }
    return found + [
        item | {"kind": "false", "iou": 0.0} for index, item in enumerate(false) if index not in taken
    ]


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """The objects of two masks, 8-connected, and where they lie on each other.

    Attributes:
        true_labels: int32 [H, W], the reference's objects from 1 on, 0 elsewhere.
        given_labels: the same of the prediction.
        true_px: int64 [objects of the reference], pixels of each.
        given_px: int64 [objects of the prediction].
        true: int64 [pairs], indices from 0 of the objects that share pixels.
        given: int64 [pairs].
        shared_px: int64 [pairs].
    """

    true_labels: np.ndarray
    given_labels: np.ndarray
    true_px: np.ndarray
    given_px: np.ndarray
    true: np.ndarray
    given: np.ndarray
    shared_px: np.ndarray


def find_overlaps(prediction, reference, known=None):
    """Returns the Overlaps of two masks, bool [H, W].

    Args:
        prediction: bool [H, W].
        reference: bool [H, W].
        known: bool [H, W]; objects of the prediction are found on all pixels and count by the known ones alone, one
            that lies wholly outside them as nothing. None: all pixels are known.
    """
    eight = np.ones((3, 3))
    true, num_true = ndimage.label(reference, eight)
    given, num_given = ndimage.label(prediction, eight)
    if known is not None:
        given, num_given = _only_known(given, known)
    codes = true.astype(np.int64) * (num_given + 1) + given
    pairs, shared = np.unique(codes[(true > 0) & (given > 0)], return_counts=True)
    rows, columns = np.divmod(pairs, num_given + 1)
    return Overlaps(
        true_labels=true,
        given_labels=given,
        true_px=np.bincount(true.ravel(), minlength=num_true + 1)[1:],
        given_px=np.bincount(given.ravel(), minlength=num_given + 1)[1:],
        true=rows - 1,
        given=columns - 1,
        shared_px=shared,
    )


def _only_known(labels, known):
    """Returns (labels from 1 on without the pixels that are not known, how many are left)."""
    labels = np.where(known, labels, 0)
    kept = np.unique(labels[labels > 0])
    return np.searchsorted(kept, labels) * (labels > 0) + (labels > 0), len(kept)


def match(overlaps, kept=None):
    """Returns {object of the reference: (object of the prediction, IoU)}, one to one, largest IoU first.

    Args:
        overlaps: Overlaps.
        kept: bool [objects of the prediction], those to match; None: all.
    """
    areas = overlaps.true_px[overlaps.true] + overlaps.given_px[overlaps.given]
    ious = overlaps.shared_px / (areas - overlaps.shared_px)
    partners, taken = {}, set()
    for at in np.argsort(-ious, kind="stable"):
        row, column = int(overlaps.true[at]), int(overlaps.given[at])
        if kept is not None and not kept[column]:
            continue
        if ious[at] >= MIN_OBJECT_IOU and row not in partners and column not in taken:
            partners[row] = (column, float(ious[at]))
            taken.add(column)
    return partners


def _describe(labelled, areas, spacing_yx_mm, origin):
    """Returns size and place of each object of int [H, W], in the order of its labels 1 to len(areas)."""
    rows, columns = np.nonzero(labelled)
    labels = labelled[rows, columns]
    centers = [
        np.bincount(labels, axis, len(areas) + 1)[1:] / areas + start
        for axis, start in zip((rows, columns), origin, strict=True)
    ]
    diameters = 2 * np.sqrt(areas / np.pi)
    to_mm = np.sqrt(np.prod(spacing_yx_mm))
    return [
        {
            "stratum": stratum(diameter * to_mm),
            "diameter_mm": float(diameter * to_mm),
            "diameter_px": float(diameter),
            "area_px": int(area),
            "center_y_px": float(y),
            "center_x_px": float(x),
        }
        for area, diameter, y, x in zip(areas, diameters, *centers, strict=True)
    ]


def stratum(diameter_mm):
    """Returns the size class of an equivalent diameter in mm: under 6, 6-10 (both ends included), over 10."""
    if not np.isfinite(diameter_mm):
        return STRATA[3]
    return STRATA[0] if diameter_mm < 6 else STRATA[1] if diameter_mm <= 10 else STRATA[2]
