"""A scan that lies in memory as a `Scan`: a NumPy array, a SimpleITK image, or a nibabel image."""

from __future__ import annotations

import pathlib
import sys

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import images, nifti, scans
from auxseg.ct.geometry import IDENTITY, Geometry

NAME = pathlib.Path("image")
"""What messages call a scan without a file."""


def open_array(image, *, spacing_mm=None, direction=None):
    """Returns the `Scan` of an image in memory; nothing is written.

    Args:
        image: HU [slices, rows, columns], or [rows, columns] of one slice, in whatever NumPy takes as an array; or
            a three-dimensional image of SimpleITK or nibabel, which has its own grid.
        spacing_mm: of an array: distance of slices, of rows and of columns; None: not known.
        direction: of an array: 3x3 as of SimpleITK; its columns are the directions in the patient (x to the left,
            y to the back, z to the head) in which columns, rows and slices count up. None: these three.

    Raises:
        InputError: not three dimensions, values that are no numbers or are scaled to 1, a grid that cannot be.
    """
    read = _read_sitk if _is_sitk(image) else _read_nibabel if _is_nibabel(image) else None
    if read is not None and (spacing_mm is not None or direction is not None):
        raise InputError("spacing_mm, direction: given with an image that has its own grid; leave them out")
    array, grid = read(image) if read else _read_array(image, spacing_mm, direction)
    scans.check_scaled(array, NAME)
    known = read is not None or spacing_mm is not None
    findings = nifti.list_findings(grid) if grid.nifti is not None else ()
    if read is None and direction is None:
        findings = scans.check_axes(array.shape)
    grid = images.check_geometry(grid, NAME)
    return scans.create_scan("image", NAME, type(image).__name__, array, grid, known, findings)


def _is_sitk(image):
    """Returns whether it is an image of SimpleITK; where nobody imported that, it is none."""
    return "SimpleITK" in sys.modules and isinstance(image, sys.modules["SimpleITK"].Image)


def _is_nibabel(image):
    return "nibabel" in sys.modules and isinstance(image, sys.modules["nibabel"].spatialimages.SpatialImage)


def _read_array(image, spacing_mm, direction):
    """Returns (array [D, H, W], `Geometry`) of what NumPy takes as an array."""
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array
    _check_array(array.shape, array.dtype)
    spacing = _check_numbers("spacing_mm", spacing_mm, 3) if spacing_mm is not None else (1.0, 1.0, 1.0)
    matrix = _check_numbers("direction", direction, 9) if direction is not None else IDENTITY
    return array, Geometry(array.shape[::-1], spacing[::-1], (0.0, 0.0, 0.0), matrix)


def _read_sitk(image):
    import SimpleITK as sitk

    array = sitk.GetArrayViewFromImage(image)
    _check_array(array.shape, array.dtype)
    return array, Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _read_nibabel(image):
    _check_array(image.shape, image.get_data_dtype())
    return np.asanyarray(image.dataobj).T, nifti.geometry_of(image)


def _check_array(shape, dtype):
    if len(shape) != 3 or not all(shape) or dtype.kind not in "iuf":
        raise InputError(
            f"image: got {dtype} of shape {tuple(shape)}, expected numbers in HU [slices, rows, columns]"
        )


def _check_numbers(name, given, count):
    """Returns finite numbers, a tuple of floats.

    Raises:
        InputError: they are not as many, or no numbers.
    """
    try:
        values = np.asarray(given, np.float64).ravel()
    except (TypeError, ValueError):
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"{name}: got {' '.join(repr(given).split())}, expected {count} numbers")
    return tuple(values.tolist())
