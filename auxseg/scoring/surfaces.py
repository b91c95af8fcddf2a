"""Distances between surfaces, in millimetres."""

from __future__ import annotations

import numpy as np
from scipy import spatial

TOLERANCES = (1, 2)
"""Of the surface Dice: mm, or pixels where the spacing is unknown."""


def surface_scores(*, prediction, reference, spacing_yx_mm, size_yx=None, unknown=None):
    """Returns HD95, ASSD and surface Dice, in mm where the spacing is known, else in pixels.

    Both sets of names are always there; the one that does not apply is NaN.

    Args:
        prediction: bool [H, W].
        reference: bool [H, W].
        spacing_yx_mm: float64 [2], NaN where unknown.
        size_yx: rows and columns of the whole image, where the masks are cut out of it; its diagonal is the
            worst distance.
        unknown: bool [H, W], as `contour`; neither mask has a pixel there.
    """
    known = bool(np.all(np.isfinite(spacing_yx_mm)))
    unit, other = ("mm", "px") if known else ("px", "mm")
    scale = spacing_yx_mm if known else np.ones(2)
    hd95, assd, surface_dice = _surface_values(
        prediction, reference, scale, size_yx or reference.shape, unknown
    )
    nan = float("nan")
    scores = {f"hd95_{unit}": hd95, f"assd_{unit}": assd, f"hd95_{other}": nan, f"assd_{other}": nan}
    for tolerance, value in zip(TOLERANCES, surface_dice, strict=True):
        scores |= {f"surface_dice_{tolerance}{unit}": value, f"surface_dice_{tolerance}{other}": nan}
    return scores


def _surface_values(prediction, reference, scale, size_yx, unknown):
    if not reference.any():
        return float("nan"), float("nan"), (float("nan"),) * len(TOLERANCES)
    if not prediction.any():
        worst = float(np.hypot(*(np.asarray(size_yx) * scale)))
        return worst, worst, (0.0,) * len(TOLERANCES)
    forward, backward = surface_distances(
        prediction=prediction, reference=reference, spacing_yx=scale, unknown=unknown
    )
    hd95 = float(max(np.percentile(forward, 95), np.percentile(backward, 95)))
    both = np.concatenate([forward, backward])
    return hd95, float(both.mean()), tuple(float(np.mean(both <= each + 1e-9)) for each in TOLERANCES)


def surface_distances(*, prediction, reference, spacing_yx, unknown=None):
    """Returns the distances from each contour pixel of the prediction to the reference's contour, and back.

    Args:
        prediction: bool [H, W] with at least one True.
        reference: bool [H, W] with at least one True.
        spacing_yx: two floats; the distances have their unit.
        unknown: bool [H, W], as `contour`.

    Returns:
        Two float64 arrays, as long as the contours.
    """
    points = [np.argwhere(contour(mask, unknown)) * spacing_yx for mask in (prediction, reference)]
    trees = [spatial.cKDTree(each, balanced_tree=False, compact_nodes=False) for each in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def contour(mask, unknown=None):
    """Returns bool [H, W]: pixels of a mask with a 4-neighbour outside it or beyond the image.

    Args:
        mask: bool [H, W].
        unknown: bool [H, W], pixels that might be the mask's: beside them is no contour, unless there is none else.
    """
    if unknown is not None and unknown.any():
        edge = contour(mask | unknown) & mask
        if edge.any():
            return edge
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
