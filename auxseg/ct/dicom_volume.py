"""Makes one volume of a DICOM series: sorts its slices, finds what does not belong, computes the geometry."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import dicom
from auxseg.ct.checks import ERROR, WARNING, Finding
from auxseg.ct.dicom import Frame, Series
from auxseg.ct.geometry import Geometry


@dataclasses.dataclass(frozen=True)
class Volume:
    """A checked series: frames in order, evenly spaced, one orientation.

    Attributes:
        series: the series it comes from.
        frames: by position along the slice normal.
        stored: geometry of the array [frame, row, column]; a tilted gantry makes the third column of the
            direction oblique to the other two.
        tilt_degrees: angle between the line of slice origins and the slice normal.
        findings: what was noticed and is no error.
    """

    series: Series
    frames: tuple[Frame, ...]
    stored: Geometry
    tilt_degrees: float
    findings: tuple[Finding, ...]


def create_volume(series, *, allow_one=True):
    """Returns a series as a checked `Volume`.

    Args:
        series: from `choose_series`.
        allow_one: whether a single image is a volume of one slice.

    Raises:
        InputError: the modality is no CT, or the images make no even stack: pictures of 8 bits, mixed
            orientations or sizes, two acquisitions, missing or unevenly spaced slices.
    """
    where = str(series)
    if series.modality != "CT":
        raise InputError(f"DICOM: {where} is {series.modality!r}, expected 'CT'")
    for problem in series.problems:
        if problem.severity == ERROR:
            raise InputError(f"DICOM: {problem.text}, in {where}")
    frames, findings = _drop_localizers(series)
    _check_alike(frames, where)
    frames, duplicates = _drop_duplicates(_sorted_frames(frames), where)
    if len(frames) == 1 and not allow_one:
        raise InputError(f"DICOM: {where} has one image, expected the slices of a scan")
    stored, tilt = _stack_geometry(frames, where)
    findings += duplicates + [p for p in series.problems if p.severity != ERROR] + _rescale_findings(frames)
    if tilt:
        text = (
            f"gantry tilt of {tilt:.1f} degrees: slices are kept as they are, their places follow "
            "the positions"
        )
        findings.append(Finding(WARNING, "tilt", text))
    return Volume(series, tuple(frames), stored, tilt, tuple(findings))


def _rescale_findings(frames):
    """Returns a finding where slices have rescale slopes and intercepts of their own, as CT seldom has."""
    kinds = {(frame.slope, frame.intercept) for frame in frames}
    if len(kinds) == 1:
        return []
    text = (
        f"{len(kinds)} different rescale slopes and intercepts among {len(frames)} slices, expected one; look "
        "whether neighbouring slices have the same brightness"
    )
    return [Finding(WARNING, "rescale", text)]


def _drop_localizers(series):
    """Returns the frames that are no scout view, and a finding where some were."""
    frames = [frame for frame in series.frames if "LOCALIZER" not in frame.image_type]
    dropped = len(series.frames) - len(frames)
    if not frames:
        raise InputError(f"DICOM: {series} holds scout views (localizers) only; give the axial series")
    findings = [Finding(WARNING, "localizer", f"{dropped} scout views left out")] if dropped else []
    return frames, findings


def _check_alike(frames, where):
    """Raises where frames differ in orientation, size or pixel size, or have no position."""
    missing = [
        frame for frame in frames if None in (frame.position_xyz_mm, frame.orientation, frame.spacing_yx_mm)
    ]
    if missing:
        raise InputError(
            f"DICOM: {len(missing)} of {len(frames)} images have no position, orientation or pixel "
            f"spacing, such as {missing[0].path}, in {where}; export the original CT, not a secondary "
            "capture"
        )
    kinds = {}
    for frame in frames:
        key = (
            frame.size_yx,
            tuple(np.round(frame.orientation, 2) + 0.0),
            tuple(np.round(frame.spacing_yx_mm, 3)),
        )
        kinds.setdefault(key, []).append(frame)
    if len(kinds) > 1:
        parts = [
            f"{len(group)} of {rows}x{columns} along {list(map(float, cosines))} at {float(spacing[0])} mm"
            for ((rows, columns), cosines, spacing), group in kinds.items()
        ]
        raise InputError(f"DICOM: mixed images in {where}: {'; '.join(parts)}; keep one kind in the folder")


def _sorted_frames(frames):
    normal = dicom.normal(frames[0])
    return sorted(
        frames, key=lambda frame: (float(normal @ frame.position_xyz_mm), frame.sop_uid, frame.index)
    )


def _drop_duplicates(frames, where):
    """Returns frames without copies of one another, and a finding where there were any.

    Raises:
        InputError: different images at one position.
    """
    normal = dicom.normal(frames[0])
    kept, num_copies = [frames[0]], 0
    for frame in frames[1:]:
        apart_mm = float(normal @ np.subtract(frame.position_xyz_mm, kept[-1].position_xyz_mm))
        if apart_mm > 0.01:
            kept.append(frame)
            continue
        if not np.array_equal(dicom.read_frame(frame), dicom.read_frame(kept[-1])):
            raise InputError(_several_images_message(frames, frame, where))
        num_copies += 1
    text = f"{num_copies} images are copies of others and were left out"
    return kept, [Finding(WARNING, "duplicates", text)] if num_copies else []


def _several_images_message(frames, frame, where):
    numbers = sorted({one.acquisition for one in frames})
    hint = f" (acquisitions {', '.join(numbers)})" if len(numbers) > 1 else ""
    place = ", ".join(f"{v:.1f}" for v in frame.position_xyz_mm)
    return (
        f"DICOM: different images at one position ({place}) mm{hint}, expected one image a slice, in "
        f"{where}; put each acquisition in a folder of its own"
    )


def _stack_geometry(frames, where):
    """Returns the stored `Geometry` of frames in order and the tilt in degrees (0.0 without)."""
    first, row, column = frames[0], *np.reshape(frames[0].orientation, (2, 3))
    normal = np.cross(row, column)
    positions = np.array([frame.position_xyz_mm for frame in frames])
    heights = positions @ normal
    step_mm, tilt, third = 1.0, 0.0, normal
    if len(frames) > 1:
        _check_even(heights, frames, where)
        way = positions[-1] - positions[0]
        sideways_mm = np.linalg.norm(way - (way @ normal) * normal)
        step_mm = float(heights[-1] - heights[0]) / (len(frames) - 1)
        if sideways_mm > 0.5 * min(first.spacing_yx_mm):
            third = way / np.linalg.norm(way)
            step_mm = float(np.linalg.norm(way)) / (len(frames) - 1)
            tilt = float(np.degrees(np.arccos(np.clip(third @ normal, -1, 1))))
            _check_line(positions, min(first.spacing_yx_mm), where)
    matrix = np.stack([row, column, third], axis=1)
    geometry = Geometry(
        size_xyz=(first.size_yx[1], first.size_yx[0], len(frames)),
        spacing_xyz_mm=(first.spacing_yx_mm[1], first.spacing_yx_mm[0], step_mm),
        origin_xyz_mm=first.position_xyz_mm,
        direction=tuple(float(v) + 0.0 for v in matrix.ravel()),
    )
    return geometry, tilt


def _check_even(heights, frames, where):
    """Raises where the distances between slices differ by more than a tenth."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > max(0.1 * usual, 0.02))
    if not odd.size:
        return
    multiples = steps[odd] / usual
    at = ", ".join(f"{heights[k]:.1f}" for k in odd[:3]) + (", ..." if odd.size > 3 else "")
    if np.all(multiples > 1.5) and np.all(np.abs(multiples - np.rint(multiples)) < 0.1 * multiples):
        missing = int(np.rint(multiples).sum() - odd.size)
        raise InputError(
            f"DICOM: {missing} missing slices: after {at} mm along the normal the next lies more than "
            f"{usual:.3g} mm away, expected every slice of {where}; fetch the whole series again"
        )
    raise InputError(
        f"DICOM: uneven slices: {steps.min():.3g} to {steps.max():.3g} mm apart (first at {at} mm), expected "
        f"{usual:.3g} mm throughout, in {where}; keep one stack of even spacing in the folder"
    )


def _check_line(positions, pixel_mm, where):
    """Raises where slice origins do not lie on one line, to a pixel."""
    line = positions[0] + np.linspace(0, 1, len(positions))[:, None] * (positions[-1] - positions[0])
    apart_mm = np.linalg.norm(positions - line, axis=1).max()
    if apart_mm > pixel_mm + 0.1 * np.linalg.norm(positions[1] - positions[0]):
        raise InputError(
            f"DICOM: slice positions lie up to {apart_mm:.1f} mm off one line, expected a straight stack, in "
            f"{where}; keep one stack in the folder"
        )
