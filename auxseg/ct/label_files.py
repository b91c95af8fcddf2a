"""Labels that other software wrote, as classes on the grid of their scan: images, DICOM-SEG, RTSTRUCT.

A label file is an image of values, a DICOM Segmentation, an RT Structure Set, or a folder of images with one structure
each, as TotalSegmentator writes them. What a value or a name means is asked for (`class_of`); this file only knows where
things lie. Where structures overlap, a nodule lies over what is unknown, and that over a lung.
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np

from auxseg.base.classes import LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.base.disk_arrays import create_array
from auxseg.base.errors import InputError
from auxseg.ct import dicom, find, geometry, headers, read_rtstruct, read_seg, scans

KINDS = {"SEG": read_seg, "RTSTRUCT": read_rtstruct}
"""DICOM modalities that hold labels, and who reads them."""
_UNSET = -1


class Canvas:
    """Classes on a grid, painted one structure at a time.

    Attributes:
        grid: canonical `geometry.Geometry`.
        array: uint8 [D, H, W], 0 where nothing was painted.
    """

    _RANKS = {0: 0, LEFT: 1, RIGHT: 1, UNKNOWN: 2, NODULE: 3}

    def __init__(self, grid, array):
        self.grid, self.array = grid, array
        self._rank = np.zeros(256, np.uint8)
        self._rank[list(self._RANKS)] = list(self._RANKS.values())

    def paint(self, place, inside, value):
        """Gives a class to pixels of a plane.

        Args:
            place: index into `array` that gives the plane, a view [h, w].
            inside: bool [h, w].
            value: the class.
        """
        plane = self.array[place]
        plane[inside & (self._rank[plane] <= self._rank[value])] = value


def read_labels(path, grid, scratch, class_of):
    """Returns the classes of labels on a scan's grid, uint8 [D, H, W] in a file, canonical.

    Args:
        path: one label file or folder, or several that belong together.
        grid: canonical `geometry.Geometry` of the scan.
        scratch: folder for temporary files, which must outlive the array.
        class_of: (keys, path) -> class, None for a structure that is left out; keys are the names of a structure, the
            telling one first, and its value.

    Raises:
        InputError: (also of `class_of`) a file cannot be read, or lies on another grid.
    """
    paths = [path] if isinstance(path, pathlib.Path) else list(path)
    canvas = Canvas(grid, create_array(pathlib.Path(scratch) / "labels.npy", np.uint8, grid.shape_zyx))
    for one in paths:
        if one.is_dir():
            for file in list_structures(one):
                value = class_of((stem(file),), file)
                if value:
                    _paint_image(
                        canvas, file, scratch, lambda keys, path, value=value: value if keys[0] else 0
                    )
        elif is_image(one):
            _paint_image(canvas, one, scratch, class_of)
        else:
            KINDS[read_modality(one)].paint(one, canvas, class_of)
    return canvas.array


def is_image(path):
    """Returns whether a file is an image by its name."""
    return path.name.lower().endswith(headers.SUFFIXES)


def stem(path):
    """Returns a file's name without the ending that says its format."""
    endings = sorted((*headers.SUFFIXES, ".dcm", ".dicom"), key=len, reverse=True)
    ending = next((one for one in endings if path.name.lower().endswith(one)), "")
    return path.name[: len(path.name) - len(ending)]


def list_structures(folder):
    """Returns the images of a folder that holds one structure a file, sorted by name."""
    return sorted(file for file in folder.iterdir() if is_image(file) and not file.name.startswith("."))


def read_modality(path):
    """Returns the modality of a DICOM file that holds labels, one of `KINDS`; '' of any other file."""
    try:
        if not dicom.is_dicom(path):
            return ""
        found = dicom.read_file(path)
    except (InputError, OSError):
        return ""
    return found.modality if found is not None and found.modality in KINDS else ""


def read_referenced(path):
    """Returns the SeriesInstanceUID of the images that a DICOM label file was drawn on, '' where none is stated."""
    return KINDS[read_modality(path)].read_referenced(path) if path.is_file() and read_modality(path) else ""


def _paint_image(canvas, path, scratch, class_of):
    with tempfile.TemporaryDirectory(dir=scratch) as inner:
        image = scans.open_scan(find.Source(stem(path), path, "file"), inner)
        difference = geometry.geometry_difference(image.geometry, canvas.grid)
        if difference:
            raise InputError(f"labels: {path} lies on another grid than its scan: {difference}")
        classes = np.full(1 << 16, _UNSET, np.int16)  # by value, negative ones at the end
        for index in range(image.num_slices):
            values = image.read(index, index + 1)[0]
            found = classes[values]
            if (found == _UNSET).any():
                for value in np.unique(values[found == _UNSET]).tolist():
                    classes[value] = class_of((value,), path) or 0
                found = classes[values]
            for value in (LEFT, RIGHT, UNKNOWN, NODULE):
                inside = found == value
                if inside.any():
                    canvas.paint(index, inside, value)
