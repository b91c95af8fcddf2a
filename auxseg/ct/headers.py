"""Checks headers against the file before a library reads the voxels."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import math
import os
import pathlib
import re
import struct
import zlib

import numpy as np

from auxseg.base.errors import InputError

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr", ".nii", ".nii.gz")
"""Endings of the scan files that can be read."""
_MET_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip


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


def find_beside(path, name):
    """Returns the path of the voxel file that a header names.

    Raises:
        InputError: it is not there, or the name leads out of the header's folder.
    """
    data = path.parent / name
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts or not data.is_file():
        raise InputError(f"scan file: {path} names the voxel file {name}, which is not beside it")
    return data


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


MAX_BYTES = 32 * 2**30
"""What the files of one scan may hold together, unpacked."""
NIFTI_SLACK = (1 << 16) + 352
"""Bytes that a NIfTI file may have between header and voxels (extensions)."""


def header_lines(file, is_last, may_end=False):
    """Returns the text lines at the start of a binary file, up to the one for which `is_last` holds.

    With `may_end` the end of the file ends the header too.
    """
    lines = []
    while len(lines) < 500:
        line = file.readline(4096)
        if not line:
            break
        lines.append(line.decode("latin-1").rstrip("\r\n"))
        if is_last(lines[-1]):
            return lines
    if may_end and lines and len(lines) < 500:
        return lines
    raise ValueError("its header has no end")


def expected_nrrd_bytes(fields):
    sizes = [int(n) for n in fields.get("sizes", "").split()]
    return max(0, int(np.prod(sizes, dtype=object))) * _nrrd_bytes(fields.get("type", ""))


def check_nrrd_length(fields, found, path):
    expected = expected_nrrd_bytes(fields)
    if expected == 0 or found != expected:
        raise InputError(
            f"scan: {path} holds {found} bytes of voxels, its header says {expected} "
            f"({fields.get('sizes')} of type {fields.get('type')!r}); copy or export it again"
        )


def _nrrd_bytes(name):
    """Returns the bytes of a value of an NRRD type by any of its names ('unsigned short int', 'uint16_t')."""
    sized = re.fullmatch(r"u?int(8|16|32|64)(_t)?", name)
    if sized:
        return int(sized[1]) // 8
    words = name.replace("uchar", "char").replace("ushort", "short").replace("longlong", "long").split()
    sizes = {
        "char": 1,
        "short": 2,
        "long": 8,
        "ulonglong": 8,
        "ulong": 8,
        "float": 4,
        "double": 8,
        "int": 4,
        "uint": 4,
    }
    return next((sizes[kind] for kind in sizes if kind in words), 0)


BLOCK_BYTES = 1 << 20


def check_nifti(path):
    """Raises where a NIfTI file is longer than its header says, or has values that are not finite.

    The header of a longer file is then another's. What is not finite must be looked for in the file itself,
    since ITK turns it into 0 HU, which is tissue. MetaImage and NRRD are checked by `ct`, `inflate` and on
    reading.
    """
    if path.suffix.lower() != ".nii":
        return
    with open(path, "rb") as file:
        head = file.read(352)
    layout = read_nifti_layout(head)
    if layout is None:
        raise InputError(f"scan: {path} is no NIfTI file: its header is none; copy or export it again")
    extra = os.path.getsize(path) - expected_nifti_bytes(head)
    if layout.offset < 352 or not 0 <= extra <= NIFTI_SLACK:
        raise InputError(
            f"scan: {path} is {extra} bytes longer than its header says, expected a header and voxels; "
            "its header is damaged or another file's: export it again"
        )
    if layout.float_dtype:
        _check_finite(path, layout)


def _check_finite(path, layout):
    values = np.memmap(path, layout.float_dtype, "r", layout.offset, (layout.num_voxels,))
    for start in range(0, layout.num_voxels, BLOCK_BYTES):
        count = int((~np.isfinite(values[start : start + BLOCK_BYTES])).sum())
        if count:
            raise InputError(
                f"scan: {path} has {count} or more values that are not finite, expected HU; outside the "
                "field of view write -1024"
            )
