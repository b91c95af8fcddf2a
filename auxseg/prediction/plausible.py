"""Whether what was found can be: what no chest has is warned of, in volumes, pieces, places, HU and number of nodules."""

from __future__ import annotations

import numpy as np

from auxseg.base import disk_arrays
from auxseg.base.classes import CLASS_NAMES, LEFT, NODULE, RIGHT
from auxseg.ct.checks import WARNING, Finding
from auxseg.prediction import lungs
from auxseg.scoring import components

_LUNG_ML = (300.0, 5000.0)
_MOST_RATIO = 2.5  # of one lung to the other
_CUT_SHARE = 0.25  # of its largest area, in the first or last slice
_PIECE_SHARE = 0.02  # of the lung: smaller pieces are not counted
_MOST_CLIPPED = 0.10
_MEAN_HU = (-930.0, -550.0)
_MOST_NODULES = 10
_THICKEST_MM = 4.0  # of slices from which the look for nodules learnt what is none, with a margin
_MOST_OUTSIDE = 0.05  # of both lungs, outside the body


def check_lungs(masks, volume, voxel_ml):
    """Returns the findings about the lungs of a whole scan.

    Args:
        masks: uint8 [D, H, W], class indices; nodules count as no lung.
        volume: int16 [D, H, W] in HU.
        voxel_ml: volume of a voxel.
    """
    areas = {side: np.array([(mask == side).sum() for mask in masks]) for side in (LEFT, RIGHT)}
    texts = [*_check_volumes({side: float(area.sum()) * voxel_ml for side, area in areas.items()})]
    texts += _check_ends(sum(areas.values()))
    texts += _check_pieces(masks)
    texts += _check_values(masks, volume)
    return [Finding(WARNING, code, text) for code, text in texts]


def check_outside(masks, outside_ml, voxel_ml, *, left_out):
    """Returns the findings about lung that was marked outside the body.

    Args:
        masks: uint8 [D, H, W], class indices, after the clean-up.
        outside_ml: that was marked there.
        voxel_ml: volume of a voxel.
        left_out: whether the clean-up left it out.
    """
    lungs_ml = sum(int(_is_lung(mask).sum()) for mask in masks) * voxel_ml
    if outside_ml <= _MOST_OUTSIDE * lungs_ml:
        return []
    end = (
        "and was left out; look whether lung is missing" if left_out else "as it stays without --clean_lungs"
    )
    text = f"{outside_ml:.0f} mL of lung was marked outside the body, {end}"
    return [Finding(WARNING, "outside", text)]


def check_nodules(count):
    """Returns the findings about the number of nodules in a whole scan."""
    if count <= _MOST_NODULES:
        return []
    text = f"{count} nodules were marked; more than {_MOST_NODULES} are rare, and many may be false"
    return [Finding(WARNING, "many-nodules", text)]


def check_thickness(step_mm):
    """Returns the findings about slices so far apart, in mm, that the look for nodules takes vessels for some."""
    if step_mm <= _THICKEST_MM:
        return []
    text = (
        f"slices lie {step_mm:g} mm apart: there vessels look like nodules, and nodules are missed; "
        "take a series of thinner slices of this scan, if there is one"
    )
    return [Finding(WARNING, "thick-slices", text)]


def check_sharpness(gain):
    """Returns the findings about a scan that was sharpened for the nodule look, its detail added `gain` times (0.0: not)."""
    if not gain:
        return []
    text = (
        f"a soft scan (its kernel, thick slices or little noise): for the nodule network it was sharpened, its detail added "
        f"{gain:.1f} times, and nodules may be missed; take a series of a sharper kernel of it, if there is one"
    )
    return [Finding(WARNING, "soft-scan", text)]


def _name(side):
    return CLASS_NAMES[side].replace("_", " ")


def _check_volumes(lungs_ml):
    """Yields codes and texts about volumes that no lung has, and lungs too unlike."""
    low, high = _LUNG_ML
    for side, ml in lungs_ml.items():
        if ml and not low <= ml <= high:
            yield (
                "volume",
                f"the {_name(side)} has {ml:.0f} mL, expected {low:.0f} to {high:.0f} mL in an adult",
            )
    smaller, larger = sorted(lungs_ml, key=lungs_ml.get)
    if lungs_ml[smaller] and lungs_ml[larger] > _MOST_RATIO * lungs_ml[smaller]:
        ratio = lungs_ml[larger] / lungs_ml[smaller]
        yield "unlike-lungs", f"the {_name(larger)} is {ratio:.1f} times as large as the {_name(smaller)}"


def _check_ends(areas):
    """Returns codes and texts about lungs that the scan does not show to their ends."""
    largest = areas.max(initial=0)
    cut = [
        name
        for name, area in (("lowest", areas[0]), ("highest", areas[-1]))
        if area > _CUT_SHARE * largest > 0
    ]
    return [
        ("cut-off", f"the lungs reach the {name} slice: the scan does not show all of them") for name in cut
    ]


def _check_pieces(masks):
    """Yields codes and texts about lungs in several pieces; nodules may part a lung, so they do not count."""
    seen = np.zeros(masks.shape[1:], bool)
    for mask in masks:
        seen |= mask > 0
    rows, columns = lungs.bounds(seen, margin=0)
    if rows is None:
        return
    shown = masks[:, rows, columns]
    for side in (LEFT, RIGHT):
        pieces = components.find_components(shown, side).pieces
        total = sum(piece.voxels for piece in pieces)
        large = [piece for piece in pieces if piece.voxels > _PIECE_SHARE * total]
        if len(large) > 1:
            yield "pieces", f"the {_name(side)} lies in {len(large)} pieces"


def _check_values(masks, volume):
    """Yields codes and texts about the HU of the lungs, by every fourth row and column."""
    found = []
    for image, mask in zip(volume, masks, strict=True):
        found.append(image[::4, ::4][_is_lung(mask[::4, ::4])])
        disk_arrays.release(image)
    values = np.concatenate(found)
    if not len(values):
        return
    mean, clipped = float(values.mean()), float((values <= -1024).mean())
    low, high = _MEAN_HU
    if not low <= mean <= high:
        yield "lung-hu", f"the lungs have {mean:.0f} HU on average, expected {low:.0f} to {high:.0f} HU"
    if clipped > _MOST_CLIPPED:
        yield "clipped", f"{clipped:.0%} of the lungs' pixels are at -1024 HU or below: values were cut off"


def _is_lung(mask):
    return (mask > 0) & (mask < NODULE)
