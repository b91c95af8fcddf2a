"""MetaImage headers (`.mhd`, `.mha`): what is known to be sound becomes `Voxels`, everything else is refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct.geometry import Geometry
from auxseg.ct.headers import decode_line, find_beside
from auxseg.ct.voxels import Voxels

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_MAX_LINES, _MAX_LINE = 200, 4096


def read_voxels(path):
    """Returns the `Voxels` that a MetaImage file describes.

    Two dimensions are one slice; a fourth of one entry is none.

    Raises:
        InputError: it is no MetaImage header, or one of more than a plain volume of numbers.
    """
    fields, header_bytes = _read_fields(path)
    try:
        return _create_voxels(path, fields, header_bytes)
    except (KeyError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"scan file: the header {path} cannot be understood: {reason}") from error


def _read_fields(path):
    """Returns (the `key = value` lines up to ElementDataFile, bytes of the header)."""
    fields = {}
    with open(path, "rb") as file:
        for line in itertools.islice(iter(lambda: file.readline(_MAX_LINE), b""), _MAX_LINES):
            key, found, value = decode_line(line).partition("=")
            key = key.strip()
            if found and key in fields and fields[key] != value.strip():
                raise InputError(f"scan file: {path} is no MetaImage header: it has {key[:40]} twice")
            if found:
                fields[key] = value.strip()
            if key == "ElementDataFile":
                return fields, file.tell()
    raise InputError(f"scan file: {path} is no MetaImage header: it names no ElementDataFile")


def _create_voxels(path, fields, header_bytes):
    num_dims = int(fields["NDims"])
    if num_dims not in (2, 3, 4):
        raise ValueError(f"NDims is {num_dims}, expected 3")
    if fields.get("ObjectType", "Image") != "Image" or not _flag(fields, "BinaryData", "True"):
        raise ValueError("it is no binary image (ObjectType, BinaryData)")
    if int(fields.get("ElementNumberOfChannels", 1)) != 1:
        raise ValueError(f"it has {fields['ElementNumberOfChannels'][:9]} values a voxel, expected one")
    scale = [
        float(fields.get(f"ElementToIntensityFunction{name}", default))
        for name, default in (("Slope", 1), ("Offset", 0))
    ]
    if scale != [1.0, 0.0]:
        raise ValueError("it scales its values (ElementToIntensityFunction); store them in HU")
    kind = np.dtype(_TYPES[fields["ElementType"]])
    order = ">" if _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB") else "<"
    geometry, known = _read_geometry(fields, num_dims)
    packed = _flag(fields, "CompressedData")
    data, offset = _find_data(path, fields["ElementDataFile"], header_bytes)
    voxels = Voxels(
        path, data, offset, kind.newbyteorder(order), "zlib" if packed else "raw", geometry, known
    )
    if packed:
        stated = fields.get("CompressedDataSize")
        return dataclasses.replace(voxels, packed_bytes=None if stated is None else int(stated))
    return _skip(voxels, int(fields.get("HeaderSize", 0)))


def _flag(fields, name, default="False"):
    return fields.get(name, default)[:1] in ("T", "t", "1")


def _find_data(path, name, header_bytes):
    """Returns (file of the voxels, where they begin)."""
    if name == "LOCAL":
        return path, header_bytes
    if name == "LIST" or ("%" in name and not (path.parent / name).is_file()):
        raise InputError(
            f"scan file: {path} spreads its voxels over several files ({name[:80]}); store it as one file"
        )
    return find_beside(path, name), 0


def _skip(voxels, header_size):
    """Returns the voxels behind a header of their own in their file; -1: they are its end."""
    if header_size == -1:
        offset = os.path.getsize(voxels.path) - voxels.num_bytes
    else:
        offset = voxels.offset + header_size
    if header_size < -1 or offset < 0:
        raise ValueError(f"HeaderSize is {header_size}, and there are fewer bytes")
    return dataclasses.replace(voxels, offset=offset)


def _read_geometry(fields, num_dims):
    """Returns (`Geometry`, whether the spacing is stated)."""
    size = _numbers(fields, ("DimSize",), num_dims, int)
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), num_dims) or [1.0] * num_dims
    origin = _numbers(fields, ("Offset", "Position", "Origin"), num_dims) or [0.0] * num_dims
    matrix = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), num_dims**2)
    if size is None or min(size) < 1 or (num_dims == 4 and size[3] != 1):
        raise ValueError(f"DimSize is {fields.get('DimSize', '')[:40]!r}, expected three numbers above 0")
    axes = np.eye(num_dims) if matrix is None else np.reshape(matrix, (num_dims, num_dims))
    direction = np.eye(3)
    used = min(num_dims, 3)
    direction[:used, :used] = axes[:used, :used].T  # a row of the file is an axis, a column of ours
    fill = [1, 1.0, 0.0] if num_dims == 2 else [None] * 3
    size, spacing, origin = (
        [*one[:used], *([more] * (3 - used))] for one, more in zip((size, spacing, origin), fill)
    )
    if not np.allclose(np.linalg.norm(direction, axis=0), 1, atol=0.01):
        raise ValueError("the rows of its TransformMatrix have not the length 1")
    known = "ElementSpacing" in fields or "ElementSize" in fields
    return Geometry(tuple(size), tuple(spacing), tuple(origin), tuple(direction.ravel().tolist())), known


def _numbers(fields, names, count, kind=float):
    """Returns the numbers of the first field of some names that is there, None where none is."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        return None
    values = [kind(word) for word in fields[name].split()]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} is {fields[name][:60]!r}, expected {count} numbers")
    return values
