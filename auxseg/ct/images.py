"""CT scans from disk in millimetres and HU, in one orientation whatever the file's own.

Formats: `.mhd`/`.mha`, `.nrrd`/`.nhdr`, and `.nii`/`.nii.gz` by nibabel. Points are in LPS, as in DICOM and
ITK: +x is the patient's left, +y posterior, +z superior.

Canonical orientation: canonical axis x is the stored axis nearest to the patient's right-to-left line and
runs to the left; y runs from anterior to posterior, z from inferior to superior. Arrays are [D, H, W] =
[z, y, x], so rows of a slice run from anterior to posterior and columns from the patient's right to the
left, prone scans included. Only whole axes are swapped and flipped: no voxel is resampled, and a small
rotation (a tilted gantry) stays in the direction matrix.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import shutil
import tempfile

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import headers, metaimage, nifti, nrrd, values
from auxseg.ct import voxels as voxels_lib
from auxseg.ct.geometry import (
    Geometry,
    Orientation,
    direction_matrix,
    find_orientation,
    format_numbers,
    to_canonical,
    to_canonical_geometry,
)


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a scan without reading its voxels.

    Attributes:
        path: the file.
        stored: geometry as the file has it.
        geometry: the same grid in canonical orientation.
        orientation: the way from `stored` to `geometry`.
        voxels: where MetaImage and NRRD have their values, None for NIfTI.
    """

    path: pathlib.Path
    stored: Geometry
    geometry: Geometry
    orientation: Orientation
    voxels: voxels_lib.Voxels | None = None


def read_header(path):
    """Returns the `Header` of a scan file.

    Raises:
        InputError: the file is missing, is no scan, is not three-dimensional, or is shorter or longer than its
            header says (NIfTI: shorter).
    """
    path = headers.check_scan_path(path)
    voxels = None
    with headers.errors_of_system(path):
        if nifti.is_nifti(path):
            headers.check_nifti_size(path)
            stored = check_geometry(nifti.read_geometry(path), path)
        else:
            read = metaimage.read_voxels if path.suffix.lower() in (".mhd", ".mha") else nrrd.read_voxels
            voxels = read(path)
            stored = check_geometry(voxels.stored, path)
            voxels_lib.check_length(voxels)
    orientation = find_orientation(stored)
    return Header(path, stored, to_canonical_geometry(stored, orientation), orientation, voxels)


def read_geometry(path):
    """Returns the canonical `Geometry` of a scan file; errors as `read_header`."""
    return read_header(path).geometry


def read_slice(path, index_z, *, header=None):
    """Returns one axial slice, int16 [H, W] in HU, canonical, without reading the rest of the volume.

    An uncompressed slice takes 1-2 ms. A compressed file is inflated whole: use `read_volume` for many
    slices of one.

    Args:
        path: the scan file.
        index_z: 0-based, from inferior to superior.
        header: `read_header(path)`, where the caller has it already.

    Raises:
        InputError: as `read_header`; `index_z` is outside the scan; the values are no HU.
    """
    header = header or read_header(path)
    _check_slice(header, index_z)
    block = _read_block(header, int(index_z), int(index_z) + 1)
    return _to_hu(block[0], header.path)


def read_slices(path, indices_z, *, header=None):
    """Returns axial slices, int16 [n, H, W] in HU, canonical, in the order asked for.

    One by one where the voxels are stored uncompressed beside an `.mhd`, else from the whole volume.

    Args:
        path: the scan file.
        indices_z: 0-based, from inferior to superior.
        header: `read_header(path)`, where the caller has it already.

    Raises:
        InputError: as `read_slice`.
    """
    header = header or read_header(path)
    indices = [int(index) for index in indices_z]
    if len(indices) == 1 or (indices and _is_plain(header)):
        return np.stack([read_slice(path, index, header=header) for index in indices])
    for index in indices:
        _check_slice(header, index)
    return read_volume(path, header=header)[indices]


def read_volume(path, *, header=None):
    """Returns a whole scan, int16 [D, H, W] in HU, canonical; also for label maps.

    Args:
        path: the scan file.
        header: `read_header(path)`, where the caller has it already.

    Raises:
        InputError: as `read_header`; the values are no HU (not finite, or beyond int16).
    """
    header = header or read_header(path)
    return _to_hu(_read_block(header, 0, header.geometry.size_xyz[2]), header.path)


def write_volume(path, volume, geometry, *, compress=True):
    """Writes an array with its geometry, whole or not at all.

    Args:
        path: ends in one of `SUFFIXES` except `.nhdr`.
        volume: [z, y, x] of `geometry`'s size: a canonical array with a canonical geometry, or
            `from_canonical(array, header.orientation)` with `header.stored`.
        geometry: `Geometry`.
        compress: deflate the voxels where the format can.

    Raises:
        InputError: unknown ending, or the shape is not the geometry's.
    """
    import SimpleITK as sitk

    path = pathlib.Path(path)
    headers.check_suffix(path)
    if volume.shape != geometry.shape_zyx:
        raise InputError(f"volume to write to {path}: shape {volume.shape}, expected {geometry.shape_zyx}")
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(geometry.spacing_xyz_mm)
    image.SetOrigin(geometry.origin_xyz_mm)
    image.SetDirection(geometry.direction)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        sitk.WriteImage(image, str(folder / path.name), useCompression=compress)
        _move_into_place(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_slice(header, index_z):
    num_slices = header.geometry.size_xyz[2]
    if not 0 <= index_z < num_slices:
        raise InputError(f"slice index: got {index_z}, expected 0 to {num_slices - 1}, in {header.path}")


def _is_plain(header):
    """Returns whether a file's voxels lie uncompressed, so that a slice can be read alone."""
    return header.voxels is not None and header.voxels.encoding == "raw"


def _read_block(header, start, stop):
    """Returns the stored values of the canonical slices start to stop, [stop - start, H, W], canonical."""
    axis, flipped = header.orientation.axes[2], header.orientation.flips[2]
    size, first = list(header.stored.size_xyz), [0, 0, 0]
    first[axis] = size[axis] - stop if flipped else start
    size[axis] = stop - start
    if nifti.is_nifti(header.path):
        block = nifti.read_block(header.path, first, size)
    else:
        array = voxels_lib.open_array(header.voxels)
        block = np.array(array[tuple(slice(k, k + n) for k, n in zip(first[::-1], size[::-1]))])
    return to_canonical(block, header.orientation)


def check_geometry(geometry, path):
    """Returns a stored geometry whose numbers make sense.

    Raises:
        InputError: they do not.
    """
    numbers = (*geometry.spacing_xyz_mm, *geometry.origin_xyz_mm, *geometry.direction)
    if not all(map(math.isfinite, numbers)) or min(geometry.spacing_xyz_mm) <= 0:
        raise InputError(
            f"scan file: {path} has spacing {format_numbers(geometry.spacing_xyz_mm)} and origin "
            f"{format_numbers(geometry.origin_xyz_mm)}, expected finite numbers and a spacing above 0 mm; export it again"
        )
    if abs(np.linalg.det(direction_matrix(geometry))) < 0.5:
        raise InputError(
            f"scan file: {path} has a direction matrix, {format_numbers(geometry.direction)}, whose axes are not "
            "independent; export it again"
        )
    return geometry


def _to_hu(array, path):
    if array.dtype == np.int16:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iuf":
        raise InputError(f"scan file: {path} has values of type {array.dtype}, expected numbers")
    low, high = array.min(), array.max()
    if not (-32768 <= low and high <= 32767):  # also False for NaN
        raise InputError(
            f"scan file: {path} has values from {low} to {high}, expected HU (finite, within -32768 to 32767)"
        )
    return np.ascontiguousarray(np.rint(array) if array.dtype.kind == "f" else array).astype(np.int16)


def _move_into_place(folder, path):
    """Moves what was written to its folder: voxel files first, the file that names them last."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(file, path.parent / file.name)


def value_type(header):
    """Returns the values' type by its NumPy name, after a slope and an intercept were applied."""
    return str(_read_block(header, 0, 1).dtype.newbyteorder("="))


def check_values(header, path):
    """Returns the findings about values of a file that are no finite HU; reads all of it."""
    slices = (_read_block(header, k, k + 1) for k in range(header.geometry.size_xyz[2]))
    return values.check_values(slices, np.dtype(value_type(header)), path)


def file_reader(header, path):
    """Returns the `read` of an uncompressed file; errors speak of `path`."""

    def read(start, stop):
        try:
            block = _read_block(header, int(start), int(stop))
        except InputError as error:
            raise InputError(f"scan: {path} is damaged or truncated; copy or export it again") from error
        return np.ascontiguousarray(values.to_hu(block, path))

    return read
