"""Makes one volume of a DICOM series: finds what belongs together, sorts it, computes the geometry.

What a network can segment is made a volume, with a finding for whatever is doubtful. Findings that are errors
stop a scan unless --force is given; only what cannot be a volume at all raises.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.ct import stacks
from auxseg.ct.checks import ERROR, WARNING, Finding
from auxseg.ct.dicom import Frame, Series, normal
from auxseg.ct.geometry import Geometry
from auxseg.ct.slice_line import fit_line

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A series as a stack of slices, in order.

    Attributes:
        series: the series it comes from.
        frames: the images that exist, by position along the slice normal.
        places: the plane of `stored` that each frame is; planes without one are missing slices.
        stored: geometry of the array [plane, row, column]; a tilted gantry makes the third column of the
            direction oblique to the other two.
        tilt_degrees: angle between the line of slice origins and the slice normal.
        widths_mm: thickness that each plane stands for, float64 [planes], None where all are alike.
        has_geometry: False where the pixel size is not known.
        findings: what was noticed; an error among them stops a scan unless --force is given.
    """

    series: Series
    frames: tuple[Frame, ...]
    places: tuple[int, ...]
    stored: Geometry
    tilt_degrees: float
    widths_mm: np.ndarray | None
    has_geometry: bool
    findings: tuple[Finding, ...]


def create_volume(series):
    """Returns a series as a `Volume`.

    Args:
        series: `dicom.Series` with frames.

    Raises:
        InputError: the images can be no stack: colour pictures.
    """
    where = str(series)
    findings = [*_modality_findings(series), *_prefixed(series.problems, where)]
    frames, more = stacks.drop_localizers(series)
    frames, pictures = stacks.drop_pictures(frames, where)
    frames, placed, has_geometry = _give_places(frames, where)
    findings += more + _prefixed(pictures, where) + placed
    frames, mixed = stacks.keep_one_kind(frames, where)
    frames, doubled = stacks.keep_one_a_place(frames, where)
    line, frames, uneven = _fit_frames(frames, where)
    findings += [*mixed, *doubled, *uneven, *line.findings, *_rescale_findings(frames)]
    if line.tilt_degrees:
        text = (
            f"gantry tilt of {line.tilt_degrees:.1f} degrees: slices are kept as they are, their places follow "
            "the positions; a NIfTI mask says so in its sform alone, which some readers pass over: --format=nrrd "
            "or mha"
        )
        findings.append(Finding(WARNING, "tilt", text))
    return Volume(
        series, tuple(frames), tuple(int(k) for k in line.places), _create_geometry(frames[0], line),
        line.tilt_degrees, line.widths_mm, has_geometry, tuple(findings),
    )  # fmt: skip


def _modality_findings(series):
    if series.modality == "CT":
        return []
    if series.modality:
        text = f"DICOM: {series} is {series.modality!r}, expected 'CT' (predict --force goes on)"
        return [Finding(ERROR, "modality", text)]
    return [Finding(WARNING, "modality", f"{series} does not say that it is CT: taken as one")]


def _prefixed(problems, where):
    return [
        dataclasses.replace(one, text=f"DICOM: {one.text.removeprefix('DICOM: ')}, in {where}")
        if one.severity == ERROR
        else one
        for one in problems
    ]


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


def _has_place(frame):
    return None not in (frame.position_xyz_mm, frame.orientation, frame.spacing_yx_mm)


def _give_places(frames, where):
    """Returns (frames with a place, findings, whether the pixel size is known).

    A few images without a place among others are left out; where none has one, what there is takes its part:
    SliceLocation, else the image number, and the axes of a transverse slice.
    """
    placed = [frame for frame in frames if _has_place(frame)]
    without = len(frames) - len(placed)
    if not without:
        return frames, [], True
    if len(placed) > without:
        text = f"{without} images without a position, orientation or pixel spacing left out, of {where}"
        return placed, [Finding(WARNING, "no-position", text)], True
    findings = []
    located = all(frame.location_mm is not None for frame in frames)
    if not all(frame.position_xyz_mm for frame in frames):
        source = "SliceLocation" if located else "the image numbers"
        text = (
            f"DICOM: {where}: {without} of {len(frames)} images have no position (ImagePositionPatient), such as "
            f"{frames[0].path}; slices are ordered by {source}; export the original CT"
        )
        severity = WARNING if located or len(frames) == 1 else ERROR
        findings.append(
            Finding(
                severity, "no-position", text + ("" if severity == WARNING else " (predict --force goes on)")
            )
        )
    if not all(frame.orientation for frame in frames):
        text = f"{where}: no orientation (ImageOrientationPatient): taken as transverse, head first, supine"
        findings.append(Finding(WARNING, "no-orientation", text))
    spacing, unknown = _find_spacing(frames, where)
    findings += unknown
    given = [_give_place(frame, rank, located, spacing) for rank, frame in enumerate(_by_number(frames))]
    return given, findings, not any(one.severity == ERROR for one in unknown)


def _by_number(frames):
    return sorted(frames, key=lambda frame: (frame.number, frame.sop_uid, frame.index))


def _find_spacing(frames, where):
    """Returns (pixel size for images without one, findings)."""
    if all(frame.spacing_yx_mm for frame in frames):
        return None, []
    columns = frames[0].size_yx[1]
    if frames[0].field_mm:
        mm = frames[0].field_mm / columns
        text = f"{where}: no pixel spacing: {mm:.3g} mm by the ReconstructionDiameter"
        return (mm, mm), [Finding(WARNING, "no-spacing", text)]
    text = (
        f"DICOM: {where}: images have no pixel spacing, such as {frames[0].path}; export the original CT, not a "
        "secondary capture (predict --force goes on, without millimetres)"
    )
    return (1.0, 1.0), [Finding(ERROR, "no-spacing", text)]


def _give_place(frame, rank, located, spacing):
    height = frame.location_mm if located else rank * (frame.step_mm or 1.0)
    orientation = frame.orientation or AXIAL
    across = np.cross(orientation[:3], orientation[3:])
    return dataclasses.replace(
        frame,
        position_xyz_mm=frame.position_xyz_mm or tuple(float(v) for v in height * across),
        orientation=orientation,
        spacing_yx_mm=frame.spacing_yx_mm or spacing,
    )


def _fit_frames(frames, where):
    """Returns (their `Line`, frames, findings); of two interleaved acquisitions one is kept."""
    line = _fit(frames, where)
    groups = {}
    for frame in frames:
        groups.setdefault(frame.acquisition, []).append(frame)
    if line.widths_mm is None or len(groups) == 1:
        return line, frames, []
    best = max(groups.values(), key=len)
    alone = _fit(best, where)
    span = np.ptp(stacks.find_heights(best)) / np.ptp(stacks.find_heights(frames))
    if alone.widths_mm is not None or alone.findings or span < 0.75:
        return line, frames, []
    text = (
        f"several acquisitions between one another in {where}: number {best[0].acquisition!r} with {len(best)} "
        f"images is segmented, {len(frames) - len(best)} images are left out"
    )
    return alone, best, [Finding(WARNING, "acquisitions", text)]


def _fit(frames, where):
    positions = [frame.position_xyz_mm for frame in frames]
    pixel_mm = min(frames[0].spacing_yx_mm)
    return fit_line(positions, normal(frames[0]), pixel_mm, where, lone_step_mm=frames[0].step_mm or 1.0)


def _create_geometry(first, line):
    row, column = np.reshape(first.orientation, (2, 3))
    matrix = np.stack([row, column, line.third], axis=1)
    return Geometry(
        size_xyz=(first.size_yx[1], first.size_yx[0], int(line.places[-1]) + 1),
        spacing_xyz_mm=(first.spacing_yx_mm[1], first.spacing_yx_mm[0], line.step_mm),
        origin_xyz_mm=line.origin_xyz_mm,
        direction=tuple(float(v) + 0.0 for v in matrix.ravel()),
    )
