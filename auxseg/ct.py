"""CT scans from disk in millimetres and HU, in one orientation whatever the file's own.

Formats: `.mhd`/`.mha`, `.nrrd`/`.nhdr`, `.nii`/`.nii.gz`, by SimpleITK. Points are in LPS, as in DICOM and
ITK: +x is the patient's left, +y posterior, +z superior.

Canonical orientation: canonical axis x is the stored axis nearest to the patient's right-to-left line and
runs to the left; y runs from anterior to posterior, z from inferior to superior. Arrays are [D, H, W] =
[z, y, x], so rows of a slice run from anterior to posterior and columns from the patient's right to the
left, prone scans included. Only whole axes are swapped and flipped: no voxel is resampled, and a small
rotation (a tilted gantry) stays in the direction matrix.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import math
import os
import pathlib
import shutil
import struct
import tempfile
import zlib

import numpy as np

from auxseg.base.errors import InputError

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr", ".nii", ".nii.gz")
"""Endings of the scan files that can be read."""
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
"""Direction of a scan whose stored axes are the canonical ones."""
_MET_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a grid of voxels lies in the patient.

    Attributes:
        size_xyz: voxels along each axis.
        spacing_xyz_mm: distance between voxel centres along each axis.
        origin_xyz_mm: LPS position of the centre of voxel (0, 0, 0).
        direction: 3x3 matrix by rows, as SimpleITK has it; column j is the LPS unit vector of axis j.
    """

    size_xyz: tuple[int, int, int]
    spacing_xyz_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, ...] = IDENTITY

    @property
    def shape_zyx(self):
        """Shape of the array: (D, H, W)."""
        return self.size_xyz[::-1]

    @property
    def spacing_zyx_mm(self):
        """Spacing in the order of the array's axes."""
        return self.spacing_xyz_mm[::-1]


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How stored axes become canonical ones.

    Attributes:
        axes: by canonical axis x, y, z: the stored axis (0 for x, 1 for y, 2 for z) that it comes from.
        flips: by canonical axis x, y, z: True where the stored axis runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a scan without reading its voxels.

    Attributes:
        path: the file.
        stored: geometry as the file has it.
        geometry: the same grid in canonical orientation.
        orientation: the way from `stored` to `geometry`.
    """

    path: pathlib.Path
    stored: Geometry
    geometry: Geometry
    orientation: Orientation


def index_to_mm(geometry, index_xyz):
    """Returns LPS positions of (fractional) voxel indices.

    Args:
        geometry: `Geometry`.
        index_xyz: float or int [..., 3], in the order x, y, z; voxel centres at whole numbers.

    Returns:
        float64 [..., 3] in mm.
    """
    scaled = np.asarray(index_xyz, np.float64) * np.asarray(geometry.spacing_xyz_mm)
    return scaled @ direction_matrix(geometry).T + np.asarray(geometry.origin_xyz_mm)


def mm_to_index(geometry, points_xyz_mm):
    """Returns fractional voxel indices of LPS positions; the inverse of `index_to_mm`.

    Args:
        geometry: `Geometry`.
        points_xyz_mm: float [..., 3], LPS.

    Returns:
        float64 [..., 3] in the order x, y, z; may lie outside the grid.
    """
    offset = np.asarray(points_xyz_mm, np.float64) - np.asarray(geometry.origin_xyz_mm)
    return offset @ np.linalg.inv(direction_matrix(geometry)).T / np.asarray(geometry.spacing_xyz_mm)


def find_orientation(geometry):
    """Returns the `Orientation` that brings a grid nearest to the LPS axes.

    Of the 6 orders of the axes, the one with the largest sum of |cosines| to x, y and z; a grid that lies
    between two orders takes the first.
    """
    matrix = direction_matrix(geometry)
    orders = list(itertools.permutations(range(3)))
    closeness = [sum(abs(matrix[row, column]) for row, column in enumerate(order)) for order in orders]
    axes = orders[int(np.argmax(np.round(closeness, 6)))]
    return Orientation(axes, tuple(bool(matrix[row, column] < 0) for row, column in enumerate(axes)))


def to_canonical_geometry(geometry, orientation):
    """Returns the canonical `Geometry` of the same voxels at the same places."""
    axes, flips = list(orientation.axes), np.asarray(orientation.flips)
    size = np.asarray(geometry.size_xyz)
    first = np.zeros(3)
    first[axes] = np.where(flips, size[axes] - 1, 0)
    matrix = direction_matrix(geometry)[:, axes] * np.where(flips, -1.0, 1.0)
    return Geometry(
        size_xyz=tuple(int(n) for n in size[axes]),
        spacing_xyz_mm=tuple(geometry.spacing_xyz_mm[axis] for axis in axes),
        origin_xyz_mm=tuple(float(v) for v in index_to_mm(geometry, first)),
        direction=tuple(float(v) + 0.0 for v in matrix.ravel()),
    )


def to_canonical(volume, orientation):
    """Returns a stored array [z, y, x] in canonical orientation, [D, H, W]; a view, nothing is copied."""
    turned = np.transpose(volume, _array_axes(orientation))
    return turned[_array_flips(orientation)]


def from_canonical(volume, orientation):
    """Returns a canonical array [D, H, W] in the scan's own frame [z, y, x]: undoes `to_canonical`."""
    return np.transpose(volume[_array_flips(orientation)], np.argsort(_array_axes(orientation)))


def geometry_difference(first, second):
    """Returns in words how two grids differ, or '' where they are the same.

    Grids of one size are the same when no corner of one lies more than a quarter of the smallest spacing
    from the same corner of the other: header values are often rounded.
    """
    if first.size_xyz != second.size_xyz:
        return f"size {format_size(first.size_xyz)} and {format_size(second.size_xyz)}"
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in first.size_xyz])))
    apart_mm = np.linalg.norm(index_to_mm(first, corners) - index_to_mm(second, corners), axis=-1).max()
    if apart_mm <= 0.25 * min(first.spacing_xyz_mm):
        return ""
    for name in ("spacing_xyz_mm", "origin_xyz_mm", "direction"):
        values = np.asarray(getattr(first, name)), np.asarray(getattr(second, name))
        if not np.allclose(*values, rtol=1e-4, atol=1e-3):
            return f"{name} {format_numbers(values[0])} and {format_numbers(values[1])}, corners up to {apart_mm:.2f} mm apart"
    return f"corners up to {apart_mm:.2f} mm apart"


def read_header(path):
    """Returns the `Header` of a scan file.

    Raises:
        InputError: the file is missing, is no scan, is not three-dimensional, or is shorter than its header
            says (MetaImage, also longer; NIfTI).
    """
    path = check_scan_path(path)
    if path.suffix.lower() in (".mhd", ".mha"):
        check_metaimage_size(path)
    reader = _open(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti_size(path)
    stored = _stored_geometry(reader, path)
    orientation = find_orientation(stored)
    return Header(path, stored, to_canonical_geometry(stored, orientation), orientation)


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
    axis, flipped = header.orientation.axes[2], header.orientation.flips[2]
    size, index = list(header.stored.size_xyz), [0, 0, 0]
    index[axis] = size[axis] - 1 - int(index_z) if flipped else int(index_z)
    size[axis] = 1
    reader = _open(header.path)
    reader.SetExtractIndex(index)
    reader.SetExtractSize(size)
    block = to_canonical(_execute(reader, header.path), header.orientation)
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
    if len(indices) == 1 or (indices and _is_plain(header.path)):
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
    stored = _execute(_open(header.path), header.path)
    return _to_hu(to_canonical(stored, header.orientation), header.path)


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
    check_suffix(path)
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


def check_scan_path(path):
    """Returns the path of a scan file as `pathlib.Path`.

    Raises:
        InputError: it does not exist, is a folder or has an unknown ending.
    """
    path = pathlib.Path(path)
    check_suffix(path)
    if not path.is_file():
        raise InputError(f"scan file: {path} does not exist or is no file")
    return path


def check_suffix(path):
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"scan file: got {path}, expected a name that ends in {', '.join(SUFFIXES)}")


def direction_matrix(geometry):
    return np.asarray(geometry.direction, np.float64).reshape(3, 3)


def _array_axes(orientation):
    """Order for np.transpose: array axis a of [z, y, x] is the stored axis 2 - a."""
    return tuple(2 - axis for axis in reversed(orientation.axes))


def _array_flips(orientation):
    return tuple(slice(None, None, -1 if flip else 1) for flip in reversed(orientation.flips))


def _check_slice(header, index_z):
    num_slices = header.geometry.size_xyz[2]
    if not 0 <= index_z < num_slices:
        raise InputError(f"slice index: got {index_z}, expected 0 to {num_slices - 1}, in {header.path}")


def _is_plain(path):
    """Returns whether a file's voxels lie uncompressed, so that a slice can be read alone."""
    if path.suffix.lower() not in (".mhd", ".mha"):
        return False
    return read_metaimage_fields(path).get("CompressedData", "False").lower() != "true"


def _open(path):
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"scan file: {path} cannot be read: {_reason(error)}") from error
    return reader


def _execute(reader, path):
    """Returns the stored voxels, [z, y, x]."""
    import SimpleITK as sitk

    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise InputError(f"scan file: {path} is damaged or incomplete: {_reason(error)}") from error


def _reason(error):
    """Returns the last line of an ITK message that says anything, without its C++ preamble."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split("): ", 1)[-1][:200] if lines else "no reason given"


def _stored_geometry(reader, path):
    size = reader.GetSize()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError(
            f"scan file: {path} has size {format_size(size)} with {reader.GetNumberOfComponents()} values a voxel, "
            "expected three dimensions and one value a voxel"
        )
    geometry = Geometry(
        tuple(int(n) for n in size), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
    )
    numbers = (*geometry.spacing_xyz_mm, *geometry.origin_xyz_mm, *geometry.direction)
    if not all(map(math.isfinite, numbers)) or min(geometry.spacing_xyz_mm) <= 0:
        raise InputError(
            f"scan file: {path} has spacing {format_numbers(geometry.spacing_xyz_mm)} and origin "
            f"{format_numbers(geometry.origin_xyz_mm)}, expected finite numbers and a spacing above 0 mm"
        )
    if abs(np.linalg.det(direction_matrix(geometry))) < 0.5:
        raise InputError(f"scan file: {path} has a direction matrix whose axes are not independent")
    return geometry


def find_beside(path, name):
    """Returns the path of the voxel file that a header names.

    Raises:
        InputError: it is not there, or the name leads out of the header's folder.
    """
    data = path.parent / name
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts or not data.is_file():
        raise InputError(f"scan file: {path} names the voxel file {name}, which is not beside it")
    return data


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


def read_metaimage_fields(path):
    """Returns the `key = value` lines of a MetaImage header, up to ElementDataFile."""
    fields = {}
    with open(path, "rb") as file:
        for line in itertools.islice(file, 200):
            key, found, value = line[:4096].decode("latin-1").partition("=")
            if found:
                fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                fields["header_bytes"] = file.tell()
                return fields
    raise InputError(f"scan file: {path} is no MetaImage header: it names no ElementDataFile")


def check_metaimage_size(path):
    """Checks the length of the voxel file: ITK itself reports a short one only while reading its end."""
    fields = read_metaimage_fields(path)
    name = fields["ElementDataFile"]
    if name == "LIST" or "%" in name:
        # ITK fills missing files of a list with whatever, and hands a pattern to C's printf, which crashes.
        raise InputError(
            f"scan file: {path} spreads its voxels over several files ({name}); store it as one file"
        )
    local = name == "LOCAL"
    data = path if local else find_beside(path, name)
    expected = expected_metaimage_bytes(fields, path)
    found = os.path.getsize(data) - (fields["header_bytes"] if local else 0)
    if expected is None or found == expected:
        return
    matter = "truncated" if found < expected else "longer than its header says"
    raise InputError(
        f"scan file: {data} is {matter}: {found} bytes, expected {expected}; copy or download it again"
    )


def expected_metaimage_bytes(fields, path):
    """Returns the length that the header gives the voxel data, or None where it does not say."""
    try:
        if fields.get("CompressedData", "False").lower() == "true":
            return int(fields["CompressedDataSize"]) if "CompressedDataSize" in fields else None
        if int(fields.get("HeaderSize", 0)) < 0:
            return None
        num_voxels = math.prod(int(n) for n in fields["DimSize"].split())
        num_values = int(fields.get("ElementNumberOfChannels", 1))
        return num_voxels * num_values * _MET_BYTES[fields["ElementType"]] + int(fields.get("HeaderSize", 0))
    except (KeyError, ValueError) as error:
        raise InputError(f"scan file: the header {path} cannot be understood: {error!r}") from error


def check_nifti_size(path):
    """Checks the length of a NIfTI file: ITK reads a truncated one without a word."""
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            expected = expected_nifti_bytes(file.read(352))
            found = 352 + _count_bytes(file)
    except (EOFError, OSError, zlib.error, struct.error, ValueError, OverflowError) as error:
        raise InputError(f"scan file: {path} is damaged or truncated: {error}; copy it again") from error
    if found < expected:
        raise InputError(
            f"scan file: {path} is truncated: {found} bytes, expected {expected}; copy or download it again"
        )


def expected_nifti_bytes(head):
    """Returns the length of a NIfTI-1 or NIfTI-2 file from its header, 0 where it is neither."""
    layout = read_nifti_layout(head)
    return 0 if layout is None else layout.offset + layout.num_voxels * layout.bits // 8


@dataclasses.dataclass(frozen=True)
class NiftiLayout:
    """Where the voxels lie in an uncompressed NIfTI file.

    Attributes:
        offset: of the first voxel, bytes.
        num_voxels: how many.
        bits: of a voxel.
        float_dtype: '<f4', '>f8' and so on, '' for other kinds of numbers.
    """

    offset: int
    num_voxels: int
    bits: int
    float_dtype: str


def read_nifti_layout(head):
    """Returns the `NiftiLayout` of the first 352 bytes of a file, None where they are no NIfTI header."""
    for order in "<>":
        if _unpack(order + "i", head, 0) == 348:
            dims = struct.unpack_from(order + "8h", head, 40)
            kind, bits = struct.unpack_from(order + "2h", head, 70)
            offset = _unpack(order + "f", head, 108)
        elif _unpack(order + "i", head, 0) == 540:
            dims = struct.unpack_from(order + "8q", head, 16)
            kind, bits = struct.unpack_from(order + "2h", head, 12)
            offset = _unpack(order + "q", head, 168)
        else:
            continue
        num_voxels = math.prod(max(1, n) for n in dims[1 : dims[0] + 1])
        name = {16: f"{order}f4", 64: f"{order}f8"}.get(kind, "")
        return NiftiLayout(int(offset), num_voxels, bits, name)
    return None


def _unpack(form, head, offset):
    return struct.unpack_from(form, head, offset)[0]


def _count_bytes(file):
    return sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))


def _move_into_place(folder, path):
    """Moves what was written to its folder: voxel files first, the file that names them last."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(file, path.parent / file.name)


def format_size(numbers):
    return "x".join(str(n) for n in numbers)


def format_numbers(numbers):
    return "(" + ", ".join(f"{n:.6g}" for n in numbers) + ")"
