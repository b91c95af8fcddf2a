"""Reads RT Structure Sets: closed contours in mm as pixels of the scan that they were drawn on.

A pixel is inside where its centre is, by the even-odd rule over all contours of a structure on a slice: so a contour
within another is a hole, and a hole may also be cut out by one contour that runs in and out again (a keyhole). A
centre that lies on a contour is inside, as it was for software that draws contours through the outermost pixels.
"""

from __future__ import annotations

import collections

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct.dicom import errors_named
from auxseg.ct.geometry import mm_to_index

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_NEAR = 0.01
"""Pixels from a contour within which a centre lies on it: coordinates are rounded to a hundredth of a millimetre."""
_FLAT = 0.5
"""Slices that a contour may span."""


def read_referenced(path):
    """Returns the SeriesInstanceUID of the images that an RTSTRUCT refers to, or ''."""
    import pydicom

    with errors_named(path):
        item = pydicom.dcmread(path, specific_tags=["ReferencedFrameOfReferenceSequence"])
        for name in (
            "ReferencedFrameOfReferenceSequence",
            "RTReferencedStudySequence",
            "RTReferencedSeriesSequence",
        ):
            item = (item.get(name) or [{}])[0]
        return str(item.get("SeriesInstanceUID") or "")


def paint(path, canvas, class_of):
    """Paints the structures of an RTSTRUCT.

    Args:
        path: the file.
        canvas: `label_files.Canvas`.
        class_of: as of `label_files.read_labels`; keys are the structure's name and its number.

    Raises:
        InputError: the file is damaged, or a contour lies outside the scan or across its slices.
    """
    import pydicom

    with errors_named(path):
        dataset = pydicom.dcmread(path)
        contours = {
            int(one.ReferencedROINumber): one.get("ContourSequence") or []
            for one in dataset.ROIContourSequence
        }
        for roi in dataset.StructureSetROISequence:
            name, number = str(roi.get("ROIName", "")), int(roi.ROINumber)
            value = class_of((name, number), path)
            if value:
                where = f"structure {name!r} of {path}"
                for index, polygons in _by_slice(contours.get(number, []), canvas.grid, where).items():
                    canvas.paint(index, fill(polygons, canvas.grid.shape_zyx[1:]), value)


def _by_slice(contours, grid, where):
    """Returns {slice: its contours, float64 [points, 2] in columns and rows}.

    Of several planes that are nearest to one slice, the nearest is taken.
    """
    planes = collections.defaultdict(list)
    for contour in contours:
        if str(contour.get("ContourGeometricType", "")) not in _CLOSED or not contour.get("ContourData"):
            continue
        points = mm_to_index(grid, np.array(contour.ContourData, float).reshape(-1, 3))
        if np.ptp(points[:, 2]) > _FLAT:
            raise InputError(
                f"labels: {where} has a contour that runs through several slices; draw it on transverse ones"
            )
        planes[round(float(points[:, 2].mean()), 2)].append(points[:, :2])
    chosen = {}
    for z in sorted(planes, key=lambda z: abs(z - np.rint(z))):
        index = int(np.rint(z))
        if not 0 <= index < grid.size_xyz[2]:
            raise InputError(
                f"labels: {where} has a contour at slice {z:.1f}, outside its scan of {grid.size_xyz[2]} slices"
            )
        chosen.setdefault(index, planes[z])
    return chosen


def fill(polygons, shape_yx):
    """Returns which pixel centres lie in closed polygons, or on them: bool [H, W].

    Args:
        polygons: float [points, 2] each, columns and rows of their corners.
        shape_yx: rows and columns.
    """
    ends = [np.stack([corners, np.roll(corners, -1, axis=0)], axis=1) for corners in polygons]
    edges = np.concatenate(ends)  # [edges, 2 ends, 2]
    spans = [
        _crossed(edges, shift) for shift in (_NEAR, -_NEAR)
    ]  # just below and just above each row of centres
    spans.append(_along_rows(edges))
    rows, first, last = np.concatenate(spans, axis=1)
    height, width = shape_yx
    starts = np.clip(np.ceil(first - _NEAR), 0, width).astype(int)
    stops = np.clip(np.floor(last + _NEAR) + 1, 0, width).astype(int)
    kept = (rows >= 0) & (rows < height) & (stops > starts)
    steps = np.zeros((height, width + 1), np.int32)
    np.add.at(steps, (rows[kept].astype(int), starts[kept]), 1)
    np.add.at(steps, (rows[kept].astype(int), stops[kept]), -1)
    return np.cumsum(steps, axis=1)[:, :-1] > 0


def _crossed(edges, shift):
    """Returns rows, first and last columns [3, spans] that lie inside along lines `shift` below the rows' centres."""
    y = np.sort(edges[:, :, 1] - shift, axis=1)
    first = np.ceil(y[:, 0]).astype(int)
    counts = np.ceil(y[:, 1]).astype(int) - first
    which = np.repeat(np.arange(len(edges)), counts)
    rows = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    (x1, y1), (x2, y2) = edges[which, 0].T, edges[which, 1].T
    columns = x1 + (x2 - x1) * (rows + shift - y1) / (y2 - y1)
    order = np.lexsort((columns, rows))
    pairs = np.stack([rows[order], columns[order]])
    return np.stack([pairs[0, ::2], pairs[1, ::2], pairs[1, 1::2]])


def _along_rows(edges):
    """Returns rows, first and last columns [3, spans] of edges that run along a row of centres."""
    y = edges[:, :, 1]
    flat = (np.abs(y - np.rint(y)) <= _NEAR).all(axis=1) & (np.abs(y[:, 0] - y[:, 1]) <= _NEAR)
    columns = np.sort(edges[flat, :, 0], axis=1)
    return np.stack([np.rint(y[flat, 0]), columns[:, 0], columns[:, 1]])
