"""What is wrong with a scan, found at the border: values that are no HU, and a body part that is no chest.

A finding is one line that says what was found, what was expected and what to do. `predict` stops at the
first error and keeps the warnings with its results; `doctor` prints them all.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.base.errors import InputError

ERROR, WARNING, INFO = "error", "warning", "info"
_LUNG_HU = (-980, -320)
_BODY_HU = -320
_COARSE_MM = 3.0
_PADDING_HU = -900
"""Slices of one value up to this are padding, as resampled scans have it; of a higher one they are no CT."""
_FEW_CONSTANT = 0.05
"""Share of such slices that are only a warning."""
_MAX_LABELS = 24


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line about a scan.

    Attributes:
        severity: 'error' (the scan cannot be used as it is), 'warning' or 'info'.
        code: a short name for tests and tables, such as 'missing-slices'.
        text: what was found, what was expected, what to do.
    """

    severity: str
    code: str
    text: str


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Rough anatomy of one slice, by thresholds alone.

    Attributes:
        body_mm2: area of the largest piece of tissue with all that it encloses.
        lung_mm2: area of enclosed lung-like air, of pieces of at least 2 cm2.
        left_mm2: the part of `lung_mm2` in the columns beyond the body's middle (the patient's left).
        bone_offset_mm: how far the centre of dense bone lies behind the body's centre; NaN without bone.
    """

    body_mm2: float
    lung_mm2: float
    left_mm2: float
    bone_offset_mm: float


def raise_errors(findings, where):
    """Raises the first error among findings as one line.

    Raises:
        InputError: one of them is an error.
    """
    for finding in findings:
        if finding.severity == ERROR:
            raise InputError(f"{finding.text} (in {where})")


def accept_errors(findings):
    """Returns findings with the errors among them as warnings, as --force has it."""
    return [dataclasses.replace(one, severity=WARNING) if one.severity == ERROR else one for one in findings]


def without_known(findings, known):
    """Returns findings except those of a kind that is known already."""
    codes = {one.code for one in known}
    return [one for one in findings if one.code not in codes]


def pick_slices(num_slices, count):
    """Returns at most `count` slice indices, evenly spread, the middle one among them; int [n]."""
    if num_slices <= count:
        return np.arange(num_slices)
    spread = np.linspace(0.1, 0.9, count) * (num_slices - 1)
    return np.unique(np.append(np.rint(spread).astype(int), num_slices // 2))


def check_constant(values, share, what):
    """Returns a finding about slices of one value: padding, or the end of a download that did not finish.

    Args:
        values: the value of each such slice, HU.
        share: how many they are of all, 0.0 to 1.0.
        what: which they are, in words.
    """
    if not len(values) or share == 1.0:
        return []
    is_air = max(values) <= _PADDING_HU
    severity = WARNING if is_air or share <= _FEW_CONSTANT else ERROR
    listed = ", ".join(f"{value:g}" for value in sorted(set(values))[:3])
    text = (
        f"{what} of one value ({listed} HU): no part of the patient; the file may be a copy or a download that did "
        "not finish: compare its size with the original's"
        + (" (predict --force goes on)" if severity == ERROR else "")
    )
    return [Finding(severity, "constant-slices", text)]


def check_scan(images, *, spacing_yx_mm, native_dtype="int16"):
    """Returns the findings about a sample of a scan's slices: values first, then anatomy.

    Args:
        images: int16 [n, H, W] in HU, canonical orientation; slices spread over the scan.
        spacing_yx_mm: pixel size in mm, or None where it is not known (512 columns are taken as 350 mm).
        native_dtype: the type in which the file stores its values.
    """
    flat = [int(one.min()) for one in images if one.min() == one.max()]
    what = f"{len(flat)} of {len(images)} slices looked at are"
    findings = [*check_values(images, native_dtype), *check_constant(flat, len(flat) / len(images), what)]
    if any(finding.severity == ERROR for finding in findings):
        return findings
    spacing = spacing_yx_mm or (350.0 / images.shape[2],) * 2
    return findings + check_anatomy(images, spacing, spacing_yx_mm is not None)


def check_values(images, native_dtype="int16"):
    """Returns the findings about values that are no HU: 8-bit, windowed, scaled, or without intercept.

    Args:
        images: int16 [n, H, W], as read.
        native_dtype: the type in which the file stores its values.
    """
    low, high = int(images.min()), int(images.max())
    has = f"values from {low} to {high}"
    expected = "expected HU (air near -1000, water 0, bone above 300)"
    if low == high:
        return [Finding(ERROR, "constant", f"every pixel is {low}: {expected}; check the export of the scan")]
    if low >= -1 and high <= 1:
        text = f"{has}: scaled to [0, 1] or [-1, 1], {expected}; give the scan before it was normalised"
        return [Finding(ERROR, "normalised", text)]
    if low >= 0 and high < 1024 and (values := np.unique(images)).size <= _MAX_LABELS:
        listed = ", ".join(map(str, values[:8].tolist())) + (", ..." if values.size > 8 else "")
        text = f"a label map: only the values {listed}, {expected}; give the scan that it belongs to"
        return [Finding(ERROR, "label-map", text)]
    if np.dtype(native_dtype).itemsize == 1 or (low >= 0 and high <= 255):
        text = f"8-bit image, {has}, {expected}; export the original CT, not a picture of it"
        return [Finding(ERROR, "8-bit", text)]
    if low >= -10 and _median_tissue(images) > 700:
        text = f"{has}, {expected}; the rescale intercept (mostly -1024) was not applied: apply it"
        return [Finding(ERROR, "no-intercept", text)]
    if low > -700:
        return [_no_air_finding(images, low, high, has, expected)]
    return _clipped_findings(images, low, high)


def _median_tissue(images):
    """Returns the median of the upper half of the values: tissue, where half the picture is air."""
    values = images[:, ::4, ::4].ravel()
    return float(np.median(values[values > np.median(values)])) if values.size else 0.0


def _no_air_finding(images, low, high, has, expected):
    share = float(np.mean(images == low)), float(np.mean(images == high))
    if min(share) > 0.002:
        text = (
            f"already windowed: {share[0]:.0%} of the pixels are exactly {low} and {share[1]:.1%} exactly "
            f"{high}, {expected}; export the original CT"
        )
        return Finding(ERROR, "windowed", text)
    return Finding(ERROR, "no-air", f"{has}: no air, {expected}; this is no CT in HU, or shows no lungs")


def _clipped_findings(images, low, high):
    top = float(np.mean(images == high))
    if high < 300 and top > 0.01:
        text = (
            f"windowed from above: {top:.0%} of the pixels are exactly {high} HU; bone and contrast are "
            "lost, which the network has not seen in training"
        )
        return [Finding(WARNING, "clipped", text)]
    if low > -900:
        return [Finding(WARNING, "air", f"the lowest value is {low} HU, expected air near -1000")]
    return []


def check_anatomy(images, spacing_yx_mm, known_spacing=True):
    """Returns the findings about anatomy: no chest, upside down, mirrored.

    Args:
        images: int16 [n, H, W] in HU, canonical orientation.
        spacing_yx_mm: pixel size.
        known_spacing: whether that is measured, or a guess that no size may be judged by.
    """
    views = [measure_anatomy(image, spacing_yx_mm) for image in images]
    body = max(view.body_mm2 for view in views)
    size = _size_findings(body) if known_spacing else []
    if any(finding.severity == ERROR for finding in size):
        return size
    lung = max(views, key=lambda view: view.lung_mm2)
    share = lung.lung_mm2 / max(body, 1.0)
    if share < 0.06:
        text = (
            f"not a chest: air-filled lungs cover at most {share:.1%} of the body in {len(images)} "
            "slices looked at, expected 6% or more in one of them; give a chest CT (predict --force segments "
            "it all the same)"
        )
        return [Finding(ERROR, "not-a-chest", text)]
    return size + _side_findings(views)


def _size_findings(body_mm2):
    """Returns a finding about a body of a size that no chest has; an error where the unit must be wrong."""
    if body_mm2 == 0 or 1e4 < body_mm2 < 2.5e5:
        return []
    text = f"the body measures {body_mm2 / 100:.3g} cm2 in a slice, expected 100 to 2500; check the spacing"
    if 1e3 < body_mm2 < 2.5e6:
        return [Finding(WARNING, "body-size", text)]
    return [Finding(ERROR, "spacing", f"{text}, its unit may not be mm (predict --force goes on)")]


def _side_findings(views):
    """Returns findings about front and back, from the place of the spine and the ribs."""
    with_lungs = [view for view in views if view.lung_mm2 > 0.06 * max(view.body_mm2, 1.0)]
    offsets = [view.bone_offset_mm for view in with_lungs if np.isfinite(view.bone_offset_mm)]
    if offsets and np.median(offsets) < -15:
        text = (
            f"the bones lie {-np.median(offsets):.0f} mm in front of the body's middle: front and back "
            "(and so left and right) may be exchanged; check the direction matrix, or the rows of an "
            "image without one"
        )
        return [Finding(WARNING, "front-back", text)]
    return []


def measure_anatomy(image, spacing_yx_mm):
    """Returns the `Anatomy` of one slice, measured on a copy averaged to pixels of about 3 mm.

    Args:
        image: int16 [H, W] in HU.
        spacing_yx_mm: pixel size.
    """
    coarse, (height, width) = _coarsen(image, spacing_yx_mm)
    area = height * width
    body = ndimage.binary_fill_holes(_largest(coarse > _BODY_HU))
    air = body & (coarse < _LUNG_HU[1]) & (coarse > _LUNG_HU[0])
    pieces = _pieces(air, 200.0 / area)
    if not body.any():
        return Anatomy(0.0, 0.0, 0.0, np.nan)
    rows, columns = np.nonzero(body)
    middle = (columns.min() + columns.max()) / 2
    left = pieces[:, int(np.ceil(middle)) :]
    bones = np.nonzero(body & (coarse > 250))[0]
    offset = (bones.mean() - (rows.min() + rows.max()) / 2) * height if bones.size >= 4 else np.nan
    return Anatomy(
        float(body.sum() * area), float(pieces.sum() * area), float(left.sum() * area), float(offset)
    )


def _coarsen(image, spacing_yx_mm):
    """Returns the image averaged over whole blocks, float32, and the size of its pixels in mm."""
    steps = [max(1, min(round(_COARSE_MM / mm), n // 8)) for mm, n in zip(spacing_yx_mm, image.shape)]
    rows, columns = (n // step for n, step in zip(image.shape, steps))
    blocks = image[: rows * steps[0], : columns * steps[1]].astype(np.float32)
    blocks = blocks.reshape(rows, steps[0], columns, steps[1]).mean((1, 3))
    return blocks, tuple(mm * step for mm, step in zip(spacing_yx_mm, steps))


def _largest(mask):
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _pieces(mask, min_pixels):
    """Returns a mask without its pieces of fewer pixels."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= max(min_pixels, 4)
    keep[0] = False
    return keep[labels]
