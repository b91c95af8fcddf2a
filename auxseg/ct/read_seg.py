"""Reads DICOM Segmentations (binary, fractional or label maps) onto the grid of the scan that they outline."""

from __future__ import annotations

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct.dicom import errors_named
from auxseg.ct.geometry import Geometry, index_to_mm, mm_to_index

_OFF = 0.3
"""Voxels that a frame may lie off the scan's grid: positions are often rounded."""


def read_referenced(path):
    """Returns the SeriesInstanceUID of the images that a DICOM-SEG refers to, or ''."""
    import pydicom

    with errors_named(path):
        found = pydicom.dcmread(path, stop_before_pixels=True).get("ReferencedSeriesSequence") or [{}]
        return str(found[0].get("SeriesInstanceUID") or "")


def paint(path, canvas, class_of):
    """Paints the segments of a DICOM-SEG.

    Args:
        path: the file.
        canvas: `label_files.Canvas`.
        class_of: as of `label_files.read_labels`; keys are the segment's label, its coded type and its number.

    Raises:
        InputError: the file is damaged, or a frame lies off the grid.
    """
    import pydicom

    with errors_named(path):
        dataset = pydicom.dcmread(path)
        # In a label map, segment 0 is the background.
        segments = {
            int(one.SegmentNumber): _names(one) for one in dataset.SegmentSequence if one.SegmentNumber
        }
        classes = {number: class_of(keys, path) for number, keys in segments.items()}
        for index, pixels in enumerate(_frames(dataset)):
            place, transposed = _find_place(dataset, index, canvas.grid, path)
            for number, inside in _split(dataset, index, pixels):
                if classes.get(number) and inside.any():
                    canvas.paint(place, inside.T if transposed else inside, classes[number])


def _names(segment):
    """Returns what a segment is called: its label, its coded type with side, its number."""
    kind = (segment.get("SegmentedPropertyTypeCodeSequence") or [None])[0]
    meaning = str(kind.get("CodeMeaning", "")) if kind is not None else ""
    side = (
        kind.get("SegmentedPropertyTypeModifierCodeSequence") if kind is not None else None
    ) or segment.get("SegmentedPropertyTypeModifierCodeSequence")
    coded = f"{side[0].get('CodeMeaning', '')} {meaning}" if side else meaning
    names = dict.fromkeys(name for name in (str(segment.get("SegmentLabel", "")), coded) if name)
    return (*names, int(segment.SegmentNumber))


def _frames(dataset):
    """Yields the pixels of each frame, uint8 or uint16 [rows, columns]."""
    from pydicom.pixels import iter_pixels

    if int(dataset.BitsAllocated) != 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(dataset)
        return
    size = int(dataset.Rows) * int(dataset.Columns)
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    for index in range(int(dataset.NumberOfFrames)):
        first = index * size  # a frame need not begin with a byte
        part = packed[first // 8 : (first + size + 7) // 8]
        bits = np.unpackbits(part, bitorder="little")[first % 8 : first % 8 + size]
        yield bits.reshape(int(dataset.Rows), int(dataset.Columns))


def _split(dataset, index, pixels):
    """Yields (segment number, bool [rows, columns]) of a frame."""
    kind = dataset.SegmentationType
    if kind == "LABELMAP":
        for number in np.unique(pixels[pixels > 0]).tolist():
            yield number, pixels == number
        return
    group = _groups(dataset, index, "SegmentIdentificationSequence")
    half = float(dataset.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0.5
    yield int(group.ReferencedSegmentNumber), pixels >= half


def _groups(dataset, index, name):
    """Returns the item of a functional group of a frame: its own, else that of all frames."""
    for groups in (
        dataset.PerFrameFunctionalGroupsSequence[index],
        dataset.SharedFunctionalGroupsSequence[0],
    ):
        if groups.get(name):
            return groups.get(name)[0]
    raise InputError(f"DICOM-SEG: frame {index + 1} has no {name}; export it with the places of its frames")


def _find_place(dataset, index, grid, path):
    """Returns (index into the canvas that gives the frame's plane, whether the frame is transposed there).

    Raises:
        InputError: the frame's pixels are none of the grid's voxels.
    """
    position = _groups(dataset, index, "PlanePositionSequence").ImagePositionPatient
    along = np.array(_groups(dataset, index, "PlaneOrientationSequence").ImageOrientationPatient, float)
    spacing_yx = [float(one) for one in _groups(dataset, index, "PixelMeasuresSequence").PixelSpacing]
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    axes = np.stack([along[:3], along[3:], np.cross(along[:3], along[3:])], axis=1)
    frame = Geometry(
        (columns, rows, 1),
        (spacing_yx[1], spacing_yx[0], 1.0),
        tuple(map(float, position)),
        tuple(axes.ravel()),
    )
    corners = mm_to_index(grid, index_to_mm(frame, [(0, 0, 0), (columns - 1, 0, 0), (0, rows - 1, 0)]))
    whole = np.rint(corners).astype(int)
    inside = (whole >= 0).all() and (whole < grid.size_xyz).all()
    moves = np.abs(whole[1:] - whole[0])
    square = sorted(moves.ravel().tolist())[:4] == [0] * 4 and moves.sum(axis=1).tolist() == [
        columns - 1,
        rows - 1,
    ]
    if not inside or not square or np.abs(corners - whole).max() > _OFF:
        raise InputError(
            f"labels: frame {index + 1} of {path} lies on another grid than its scan: its corner is voxel "
            f"({', '.join(f'{one:.2f}' for one in corners[0])}) of {grid.size_xyz}, of {columns}x{rows} pixels"
        )
    spans = [_span(whole[0, axis], whole[:, axis]) for axis in range(3)]
    column_axis, row_axis = (int(np.argmax(move)) for move in moves)
    return tuple(reversed(spans)), column_axis > row_axis


def _span(start, ends):
    """Returns the voxels along one axis from `start` to the other end, forwards or backwards; one voxel as a number."""
    other = next((int(end) for end in ends if end != start), None)
    if other is None:
        return int(start)
    step = 1 if other > start else -1
    stop = other + step
    return slice(int(start), None if stop < 0 else stop, step)
