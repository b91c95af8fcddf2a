"""NIfTI files, by nibabel: where their voxels lie, what masks carry on of that, and the voxels.

A file places its voxels twice, by the sform (any affine) and the qform (a rotation), each with a code that says what
it refers to, 0 where it says nothing. As nibabel and FSL do, the sform counts where it has a code, else the qform,
else neither: then the axes run to the left, the front and the head. Programs differ in this (ITK prefers the qform
unless the sform's code is 1), so that a mask must carry both, with their codes, as the scan had them.
"""

from __future__ import annotations

import itertools
import struct

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import own
from auxseg.ct.checks import WARNING, Finding
from auxseg.ct.geometry import Geometry, index_to_mm

SUFFIXES = (".nii", ".nii.gz")
SHEAR = 0.02
"""Cosine between two axes up to which they count as meant to stand at right angles, as rounding leaves them."""
_ROUNDING = 1e-4  # of the same cosine, below which nothing is said
_FORMS = (
    "sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
    "qoffset_y", "qoffset_z", "xyzt_units",
)  # fmt: skip
_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_MM = {1: 1000.0, 3: 0.001}
"""Millimetres of a unit by its NIfTI code: metres, micrometres; millimetres where none is said."""


def is_nifti(path):
    """Returns whether a file is one by its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_geometry(path):
    """Returns the `Geometry` of a NIfTI file, which keeps the file's header.

    Axes that are nearly at right angles get the nearest ones that are; others stay as they are, as those of a tilted
    stack do.

    Raises:
        InputError: no NIfTI header, not three dimensions, values that are no numbers.
    """
    header = _read_header(path)
    return _create_geometry(_size(header, path), _placing(header, path)[0], header)


def geometry_of(image):
    """Returns the `Geometry` of a nibabel image, of whatever format; of NIfTI as `read_geometry`.

    Raises:
        InputError: as `read_geometry`.
    """
    import nibabel

    if isinstance(image.header, nibabel.Nifti1Header):
        return _create_geometry(image.shape, _placing(image.header, "image")[0], image.header)
    return _create_geometry(image.shape, _TO_LPS @ image.affine[:3], None)


def _create_geometry(size, affine, header):
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        direction = affine[:, :3] / spacing
    if _shear(direction) < SHEAR:
        left, _, right = np.linalg.svd(direction)
        direction = left @ right
    return Geometry(
        size, tuple(spacing.tolist()), tuple(affine[:, 3].tolist()), tuple(direction.ravel().tolist()), header
    )


def list_findings(geometry):
    """Returns what there is to say of how a NIfTI file places its voxels.

    Args:
        geometry: of `read_geometry`.
    """
    header = geometry.nifti
    affine, which = _placing(header, "")
    found = []
    if which == "neither":
        text = (
            "neither sform nor qform is set: where the patient's left, front and head are is not stated; the axes are "
            "taken to run to the left, the front and the head, and masks say as little as the scan"
        )
        found.append(Finding(WARNING, "no-orientation", text))
    if not np.isfinite(header["scl_slope"]):
        text = (
            f"its scale (scl_slope) is {header['scl_slope']}, no number: values are taken as they are stored"
        )
        found.append(Finding(WARNING, "scale", text))
    other = _qform(header) if which == "sform" and _is_set(header, "qform") else None
    apart_mm = 0.0 if other is None else _distance_mm(affine, other, geometry.size_xyz)
    if not apart_mm <= 0.25 * min(geometry.spacing_xyz_mm):
        text = f"sform and qform place the scan {apart_mm:.3g} mm apart; the sform is used, and masks carry both as they are"
        found.append(Finding(WARNING, "two-places", text))
    shear = _shear(affine[:, :3] / np.linalg.norm(affine[:, :3], axis=0))
    if shear > _ROUNDING:
        text = f"the axes of its {which} are not at right angles (cosine {shear:.2g})"
        text += (
            "; computed with the nearest ones that are, masks carry them as they are" if shear < SHEAR else ""
        )
        found.append(Finding(WARNING, "sheared", text))
    return tuple(found)


def read_block(path, first_xyz, size_xyz):
    """Returns the stored values of a part of a NIfTI file, [z, y, x], after slope and intercept.

    Raises:
        InputError: as `read_geometry`; the file is damaged.
    """
    from nibabel.arrayproxy import ArrayProxy

    header = _read_header(path)
    try:
        slope, intercept = header.get_slope_inter()
        # A slope of 0, or of no finite number, says that values are not scaled.
        scale = (1.0 if slope is None else slope, 0.0 if intercept is None else intercept)
        spec = (_size(header, path), header.get_data_dtype(), int(header.get_data_offset()), *scale)
        values = ArrayProxy(str(path), spec)[
            tuple(slice(first, first + size) for first, size in zip(first_xyz, size_xyz))
        ]
    except (*_unreadable(), IndexError, MemoryError) as error:
        raise InputError(f"scan file: {path} is damaged or incomplete: {_line(error)}") from error
    return values.T


def create_header(geometry, dtype):
    """Returns the 352 bytes before the voxels of a NIfTI-1 file of a grid.

    Sform and qform are those of the file that the grid was read from, with their codes; else both are set.

    Args:
        geometry: `Geometry` as stored.
        dtype: 'uint8' or 'float32'.

    Raises:
        InputError: more than 32,767 voxels along an axis.
    """
    import nibabel

    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(np.dtype(dtype))
    try:
        header.set_data_shape(geometry.size_xyz)
    except _unreadable() as error:
        raise InputError(f"NIfTI: {_line(error)}; use --format=nrrd or mha") from error
    header.set_zooms(geometry.spacing_xyz_mm)
    if geometry.nifti is None:
        affine = _to_affine(geometry)
        header.set_sform(affine, code="scanner")
        header.set_qform(affine, code="scanner")
        header.set_xyzt_units("mm")
    else:
        for name in _FORMS:
            header[name] = geometry.nifti[name]
        header["pixdim"][:4] = geometry.nifti["pixdim"][:4]
    header["descrip"] = own.MARK.encode("ascii")
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 1, 0
    return header.binaryblock + bytes(4)


def crop(header, first_xyz):
    """Returns the header of a part of the grid that begins at voxel `first_xyz`: both forms move along."""
    if header is None or not any(first_xyz):
        return header
    moved = header.copy()
    shift = header.get_sform()[:3, :3] @ first_xyz
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        moved[name][3] += shift[row]
    if (turned := _qform(header)) is not None:
        shift = _TO_LPS @ turned[:, :3] @ first_xyz / _unit_mm(header)
        for row, name in enumerate(("qoffset_x", "qoffset_y", "qoffset_z")):
            moved[name] += shift[row]
    return moved


def _read_header(path):
    """Returns nibabel's header of a NIfTI-1 or NIfTI-2 file, as the file has it: nothing is mended, no extension read."""
    import nibabel
    from nibabel.openers import ImageOpener

    try:
        with ImageOpener(str(path)) as file:
            head = file.read(540)
        sizes = struct.unpack_from("<i", head) + struct.unpack_from(">i", head) if len(head) >= 348 else ()
        size = next((n for n in (348, 540) if n in sizes), None)
        if size is None:
            raise ValueError("its first bytes are no header of one")
        kind = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}[size]
        header = kind(head[:size], check=False)
        if bytes(header["magic"])[:3] != {348: b"n+1", 540: b"n+2"}[size]:
            raise ValueError("it is Analyze's format, or keeps its voxels elsewhere")
        header.get_data_dtype()
        return header
    except _unreadable() as error:
        raise InputError(f"scan file: {path} cannot be read as NIfTI: {_line(error)}") from error


def _unreadable():
    """Returns what nibabel raises of a file that is none."""
    import zlib

    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError
    from nibabel.wrapstruct import WrapStructError

    return (
        ImageFileError, HeaderDataError, HeaderTypeError, WrapStructError, OSError, EOFError, ValueError, KeyError,
        OverflowError, struct.error, zlib.error,
    )  # fmt: skip


def _size(header, path):
    """Returns the voxels along x, y, z; a plane is one slice, and further axes of one entry are none."""
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : count + 1]] if 0 < count < 8 else []
    sizes += [1] * (3 - len(sizes)) if len(sizes) == 2 else []
    kind = header.get_data_dtype()
    if len(sizes) < 3 or min(sizes) < 1 or max(sizes[3:], default=1) > 1:
        raise InputError(
            f"scan file: {path} has {count} dimensions of {sizes} voxels, expected three dimensions of one or more"
        )
    if kind.kind not in "iuf" or int(header["bitpix"]) != 8 * kind.itemsize:
        raise InputError(
            f"scan file: {path} has values of type {kind} in {header['bitpix']} bits, expected one number a voxel"
        )
    return tuple(sizes[:3])


def _is_set(header, form):
    """Returns whether a form says what it refers to: its code is one of NIfTI's, 1 to 5."""
    return 1 <= int(header[f"{form}_code"]) <= 5


def _placing(header, path):
    """Returns (affine [3, 4] from voxels to LPS in mm, 'sform', 'qform' or 'neither')."""
    if _is_set(header, "sform"):
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by who asks
            return _TO_LPS @ header.get_sform()[:3] * _unit_mm(header), "sform"
    if _is_set(header, "qform"):
        affine = _qform(header)
        if affine is None:
            raise InputError(f"scan file: {path} has a qform that is no rotation; export it again")
        return affine, "qform"
    spacing = np.abs(np.asarray(header["pixdim"][1:4], np.float64)) * _unit_mm(header)
    return np.hstack([np.diag(spacing * [1.0, -1.0, 1.0]), np.zeros((3, 1))]), "neither"


def _qform(header):
    """Returns the qform as an affine [3, 4] to LPS in mm, None where it is no rotation."""
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            return _TO_LPS @ header.get_qform()[:3] * _unit_mm(header)
    except _unreadable():
        return None


def _unit_mm(header):
    return _MM.get(int(header["xyzt_units"]) & 7, 1.0)


def _shear(direction):
    """Returns the largest cosine between two of three axes."""
    return float(np.abs(direction.T @ direction - np.eye(3)).max())


def _distance_mm(one, other, size_xyz):
    """Returns how far the corners of a grid lie apart by two affines [3, 4]."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*[(0, n - 1) for n in size_xyz])], float)
    return float(np.linalg.norm(corners @ (one - other).T, axis=-1).max())


def _to_affine(geometry):
    """Returns a grid's affine [4, 4] from voxels to RAS in mm, as NIfTI has it."""
    ends = index_to_mm(geometry, np.vstack([np.zeros(3), np.eye(3)])) @ _TO_LPS
    affine = np.eye(4)
    affine[:3, 3], affine[:3, :3] = ends[0], (ends[1:] - ends[0]).T
    return affine


def _line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__
