"""Describes a scan or a label map: geometry, values, anatomy, sides, meanings of the labels."""

from __future__ import annotations

import dataclasses
import tempfile

import numpy as np

from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.ct import checks, scans
from auxseg.ct.checks import ERROR, INFO, WARNING, Finding
from auxseg.ct.geometry import index_to_mm

NUM_SLICES = 24
"""Slices of a scan that are looked at."""
_MAX_LABELS = 32
_LUNA16_MEANINGS = {
    0: "background",
    3: "left lung",
    4: "right lung",
    5: "trachea and main bronchi (no nodule)",
}
_OWN_MEANINGS = {value: name.replace("_", " ") for value, name in enumerate(CLASS_NAMES)}


@dataclasses.dataclass(frozen=True)
class Examination:
    """What was found in one thing.

    Attributes:
        title: which.
        facts: (name, value) as text, in order.
        findings: problems and remarks.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]


def examine_source(source):
    """Returns the `Examination` of one scan or label map; what cannot be opened is one error in it."""
    with tempfile.TemporaryDirectory(prefix="auxseg-") as scratch:
        try:
            scan = scans.open_scan(source, scratch)
            return _examine_scan(scan)
        except InputError as error:
            return Examination(
                f"{source.name} ({source.path})", (), (Finding(ERROR, "unusable", str(error)),)
            )


def _examine_scan(scan):
    title = f"{scan.name} ({scan.path})"
    facts = [("format", f"{scan.kind}, values {scan.dtype}"), *describe_geometry(scan)]
    values = find_label_values(scan)
    if values is not None:
        more, findings = examine_labels(scan, values)
        own = [one for one in scan.findings if one.code != "constant-slices"]  # a label map has empty ones
        return Examination(title, (*facts, *more), (*own, *findings))
    indices = checks.pick_slices(scan.num_slices, NUM_SLICES)
    images = np.concatenate([scan.read(int(k), int(k) + 1) for k in indices])
    spacing = scan.geometry.spacing_zyx_mm[1:] if scan.has_geometry else None
    findings = checks.check_scan(images, spacing_yx_mm=spacing, native_dtype=scan.dtype)
    findings = checks.without_known(findings, scan.findings)
    facts += describe_values(images)
    if not any(finding.severity == ERROR for finding in findings):
        more, remarks = describe_anatomy(images, spacing)
        facts, findings = facts + more, findings + remarks
    return Examination(title, tuple(facts), (*scan.findings, *findings))


def describe_geometry(scan):
    """Returns facts about the grid: size, spacing, orientation, place."""
    stored, axes, flips = scan.stored, scan.orientation.axes, scan.orientation.flips
    names = axis_directions(stored)
    turned = [f"{'xyz'[axis]}{' reversed' if flip else ''}" for axis, flip in zip(axes, flips)]
    plain = axes == (0, 1, 2) and not any(flips)
    ends = index_to_mm(stored, [(0, 0, 0), [n - 1 for n in stored.size_xyz]])
    corners = " to ".join("(" + ", ".join(f"{v:.1f}" for v in end) + ")" for end in ends)
    return [
        ("size", f"{' x '.join(map(str, stored.size_xyz))} voxels, {scan.num_slices} transverse slices"),
        ("spacing", " x ".join(f"{v:.4g}" for v in stored.spacing_xyz_mm) + " mm"
         if scan.has_geometry else "not stated"),
        ("orientation", f"stored axes run towards {names}; " + (
            "as the network sees them" if plain else f"the network sees {', '.join(turned)}")),
        ("corners", f"{corners} mm (LPS)" if scan.has_geometry else "not stated"),
    ]  # fmt: skip


def axis_directions(geometry):
    """Returns where each stored axis runs to, such as 'L, P, S' (left, posterior, superior)."""
    matrix = np.reshape(geometry.direction, (3, 3))
    names = []
    for column in matrix.T:
        row = int(np.argmax(np.abs(column)))
        names.append(("LPS" if column[row] > 0 else "RAI")[row])
    return ", ".join(names)


def describe_values(images):
    """Returns facts about the range of values."""
    low, median, high = np.percentile(images, (1, 50, 99))
    return [
        ("HU", f"{images.min()} to {images.max()}; 1 %, 50 %, 99 %: {low:.0f}, {median:.0f}, {high:.0f}"),
        ("air", f"{np.mean(images < -800):.0%} of the pixels below -800 HU"),
    ]


def describe_anatomy(images, spacing_yx_mm):
    """Returns (facts, findings) about what thresholds see of a chest, and on which side."""
    spacing = spacing_yx_mm or (350.0 / images.shape[2],) * 2
    views = [checks.measure_anatomy(image, spacing) for image in images]
    lung = sum(view.lung_mm2 for view in views)
    left = sum(view.left_mm2 for view in views) / max(lung, 1.0)
    share = max(view.lung_mm2 / view.body_mm2 for view in views if view.body_mm2)
    offsets = [view.bone_offset_mm for view in views if np.isfinite(view.bone_offset_mm)]
    facts = [
        ("chest", f"lungs by thresholds cover up to {share:.0%} of the body"),
        (
            "left/right",
            f"{left:.0%} of the lungs lie on the patient's left, {1 - left:.0%} on the right (usual: 45/55)",
        ),
    ]
    if offsets:
        side = "behind" if np.median(offsets) > 0 else "in front of"
        facts.append(("front/back", f"bones lie {abs(np.median(offsets)):.0f} mm {side} the body's middle"))
    if len(images) > 4 and left > 0.58:
        text = (
            f"the left lung looks larger than the right ({left:.0%}): the scan may be mirrored, or a "
            "lung be diseased"
        )
        return facts, [Finding(WARNING, "sides", text)]
    return facts, []


def find_label_values(scan):
    """Returns the values of a label map, or None where the scan looks like an image."""
    values = set()
    for index in checks.pick_slices(scan.num_slices, NUM_SLICES):
        values |= set(np.unique(scan.read(int(index), int(index) + 1)).tolist())
        if len(values) > _MAX_LABELS or min(values) < 0:
            return None
    return sorted(values)


def choose_meanings(values):
    """Returns ({value: meaning}, whose values they are) of a label map's values."""
    if set(values) <= set(_LUNA16_MEANINGS) and set(values) & {4, 5}:
        return _LUNA16_MEANINGS, "LUNA16's seg-lungs-LUNA16"
    if set(values) <= set(_OWN_MEANINGS) and 1 in values:
        return _OWN_MEANINGS, "auxseg's classes"
    return {0: "background"}, "values of unknown meaning"


def examine_labels(scan, values):
    """Returns (facts, findings) of a label map: each value's meaning, volume and place, and the sides."""
    counts, centres = measure_labels(scan)
    meanings, whose = choose_meanings(counts)
    matrix = np.reshape(scan.stored.direction, (3, 3)) * scan.stored.spacing_xyz_mm
    voxel_ml = abs(np.linalg.det(matrix)) / 1000.0
    facts = [("label map", f"values {', '.join(map(str, counts))}: {whose}")]
    for value, count in counts.items():
        place = ", ".join(f"{v:.0f}" for v in centres[value])
        text = f"{meanings.get(value, 'meaning unknown')}: {count} voxels"
        text += f", {count * voxel_ml:.1f} mL, centre ({place}) mm" if value and scan.has_geometry else ""
        facts.append((f"value {value}", text))
    return facts, _check_sides(meanings, centres)


def measure_labels(scan):
    """Returns ({value: voxels}, {value: LPS centre in mm}), reading a slice at a time."""
    counts, sums = {}, {}
    for index in range(scan.num_slices):
        mask = scan.read(index, index + 1)[0]
        for value in np.unique(mask).tolist():
            rows, columns = np.nonzero(mask == value)
            counts[value] = counts.get(value, 0) + rows.size
            total = np.array([columns.sum(), rows.sum(), index * rows.size], float)
            sums[value] = sums.get(value, 0.0) + total
    counts = dict(sorted(counts.items()))
    return counts, {value: index_to_mm(scan.geometry, sums[value] / counts[value]) for value in counts}


def _check_sides(meanings, centres):
    named = {meanings.get(value): centre for value, centre in centres.items()}
    if not {"left lung", "right lung"} <= named.keys():
        return (
            [Finding(WARNING, "one-lung", "the values of the two lungs are not both there")]
            if len(meanings) > 1
            else []
        )
    left, right = named["left lung"][0], named["right lung"][0]
    if left > right:
        text = f"left lung lies on the patient's left (x {left:.0f} mm, right lung x {right:.0f} mm)"
        return [Finding(INFO, "sides", text)]
    text = (
        f"left and right are exchanged: the 'left lung' lies at x {left:.0f} mm, the 'right lung' at "
        f"{right:.0f} mm, and +x is the patient's left; check the direction matrix or the values"
    )
    return [Finding(ERROR, "sides", text)]
