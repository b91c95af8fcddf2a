"""Writes volumes with their exact geometry: NIfTI, NRRD, MetaImage, NPZ."""

from __future__ import annotations

import contextlib
import gzip
import pathlib
import zlib

import numpy as np

from auxseg.base import files
from auxseg.base.errors import InputError, check_choice
from auxseg.ct import nifti, own
from auxseg.ct.geometry import Geometry, from_canonical, index_to_mm

VOLUME_FORMATS = ("nii.gz", "nii", "nrrd", "mha", "npz")
FORMATS = (*VOLUME_FORMATS, "dicom-seg")
"""Choices of --format."""


def crop_geometry(scan, start, stop):
    """Returns the stored `Geometry` of the canonical slices start to stop of a scan."""
    axis, flipped = scan.orientation.axes[2], scan.orientation.flips[2]
    size, first = list(scan.stored.size_xyz), [0, 0, 0]
    first[axis] = size[axis] - stop if flipped else start
    size[axis] = stop - start
    origin = tuple(float(v) for v in index_to_mm(scan.stored, first))
    header = nifti.crop(scan.stored.nifti, first)
    return Geometry(tuple(size), scan.stored.spacing_xyz_mm, origin, scan.stored.direction, header)


def check_format(name, scan):
    """Returns the format if a scan can be written in it.

    Raises:
        InputError: unknown; DICOM-SEG without a DICOM input that it can refer to, or without highdicom.
    """
    check_choice("--format", name, FORMATS)
    if name == "dicom-seg":
        if scan.volume is None:
            raise InputError(
                f"--format=dicom-seg: needs a DICOM input to refer to, got {scan.kind}: {scan.path}"
            )
        try:
            import highdicom  # noqa: F401
        except ImportError as error:
            raise InputError("--format=dicom-seg: needs highdicom: pip install highdicom") from error
        from auxseg.ct import dicom_seg

        dicom_seg.check_dicom_seg(scan)
    return name


def is_orthogonal(geometry):
    """Returns whether the axes of a grid stand at right angles, to a thousandth."""
    matrix = np.reshape(geometry.direction, (3, 3))
    return bool(np.abs(matrix.T @ matrix - np.eye(3)).max() < 1e-3)


def write_volume(path, slices, geometry, dtype):
    """Writes a volume from its slices, whole or not at all, compressed where the format can.

    Args:
        path: ends in one of `VOLUME_FORMATS`.
        slices: iterable of [rows, columns] in the order of the stored third axis.
        geometry: `geometry.Geometry` as stored.
        dtype: 'uint8' or 'float32'.
    """
    name = pathlib.Path(path).name
    slices = (np.ascontiguousarray(one, np.dtype(dtype).newbyteorder("<")) for one in slices)
    with files.write_whole(path) as file:
        if name.endswith((".nii.gz", ".nii")):
            _write_nifti(file, slices, geometry, dtype, name.endswith(".gz"))
        elif name.endswith(".nrrd"):
            _write_nrrd(file, slices, geometry, dtype)
        elif name.endswith(".mha"):
            _write_metaimage(file, slices, geometry, dtype)
        else:
            np.savez_compressed(file, mask=np.stack(list(slices)), spacing_zyx_mm=geometry.spacing_zyx_mm)


def _gzip(file):
    return gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0)


def _write_nifti(file, slices, geometry, dtype, compressed):
    with _gzip(file) if compressed else contextlib.nullcontext(file) as stream:
        stream.write(nifti.create_header(geometry, dtype))
        for one in slices:
            stream.write(one.tobytes())


def _write_nrrd(file, slices, geometry, dtype):
    matrix = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_xyz_mm
    directions = " ".join(_nrrd_vector(column) for column in matrix.T)
    lines = [
        "NRRD0004", f"content: {own.MARK}", f"type: {'unsigned char' if dtype == 'uint8' else 'float'}", "dimension: 3",
        "space: left-posterior-superior", f"sizes: {' '.join(map(str, geometry.size_xyz))}",
        f"space directions: {directions}", "kinds: domain domain domain", "endian: little", "encoding: gzip",
        f"space origin: {_nrrd_vector(geometry.origin_xyz_mm)}", "", "",
    ]  # fmt: skip
    file.write("\n".join(lines).encode("ascii"))
    with _gzip(file) as stream:
        for one in slices:
            stream.write(one.tobytes())


def _nrrd_vector(values):
    return "(" + ",".join(repr(float(v)) for v in values) + ")"


def _write_metaimage(file, slices, geometry, dtype):
    """Writes the header with room for the compressed size, the voxels, then the size."""
    columns = np.reshape(geometry.direction, (3, 3)).T.ravel()
    lines = [
        "ObjectType = Image", f"Comment = {own.MARK}", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "CompressedData = True", f"CompressedDataSize = {'':20}", f"TransformMatrix = {_words(columns)}",
        f"Offset = {_words(geometry.origin_xyz_mm)}", "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_words(geometry.spacing_xyz_mm)}", f"DimSize = {_words(geometry.size_xyz)}",
        f"ElementType = {'MET_UCHAR' if dtype == 'uint8' else 'MET_FLOAT'}", "ElementDataFile = LOCAL", "",
    ]  # fmt: skip
    head = "\n".join(lines).encode("ascii")
    file.write(head)
    packer, written = zlib.compressobj(4), 0
    for one in slices:
        written += file.write(packer.compress(one.tobytes()))
    written += file.write(packer.flush())
    place = head.index(b"CompressedDataSize = ") + len(b"CompressedDataSize = ")
    file.seek(place)
    file.write(f"{written:<20}".encode("ascii"))


def _words(values):
    return " ".join(repr(v) for v in np.asarray(values).tolist())


def write_mask(path, masks, scan, start, stop):
    """Writes a canonical mask in the scan's own frame, in a volume format.

    Args:
        path: ends in one of `VOLUME_FORMATS`.
        masks: uint8 [stop - start, H, W], canonical.
        scan: `scans.Scan`.
        start, stop: the slices that the mask covers.
    """
    stored = from_canonical(masks, scan.orientation)
    write_volume(path, stored, crop_geometry(scan, start, stop), "uint8")
