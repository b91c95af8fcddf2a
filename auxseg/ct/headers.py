"""Checks headers against the file before a library reads the voxels."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import math
import os
import pathlib
import re
import struct
import zlib

from auxseg.base.errors import InputError
from auxseg.base.files import FULL_DISK
from auxseg.ct.checks import ERROR, Finding

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr", ".nii", ".nii.gz")
"""Endings of the scan files that can be read."""


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
    data = _locate(path, name)
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts or not data.is_file():
        raise InputError(f"scan file: {path} names the voxel file {name}, which is not beside it")
    return data


def _locate(path, name):
    """Returns the path of a file that a header names; on the disk its name may be in Latin-1."""
    try:
        old = path.parent / os.fsdecode(name.encode("latin-1"))
    except UnicodeEncodeError:
        return path.parent / name
    return old if os.path.isfile(old) else path.parent / name


def decode_line(line):
    """Returns a line as text; names of files may be in UTF-8 or in Latin-1."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


@contextlib.contextmanager
def errors_of_system(path):
    """Lets what the system says of a file (no permission, a failing disk) be no fault of the file.

    That a disk is full is said of a copy of the file, and is for those to tell who chose its place.
    """
    try:
        yield
    except OSError as error:
        if not error.errno or error.errno in FULL_DISK:
            raise
        raise InputError(
            f"scan file: {path} cannot be read: {error.strerror}; check its permissions and the disk"
        ) from error


def check_nifti_size(path):
    """Checks the length of a NIfTI file: ITK reads a truncated one without a word."""
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            expected = expected_nifti_bytes(file.read(352))
            found = 352 + _count_bytes(file)
    except (EOFError, OSError, zlib.error, struct.error, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
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
    """

    offset: int
    num_voxels: int
    bits: int


def read_nifti_layout(head):
    """Returns the `NiftiLayout` of the first 352 bytes of a file, None where they are no NIfTI header."""
    for order in "<>":
        if _unpack(order + "i", head, 0) == 348:
            dims = struct.unpack_from(order + "8h", head, 40)
            bits = struct.unpack_from(order + "h", head, 72)[0]
            offset = _unpack(order + "f", head, 108)
        elif _unpack(order + "i", head, 0) == 540:
            dims = struct.unpack_from(order + "8q", head, 16)
            bits = struct.unpack_from(order + "h", head, 14)[0]
            offset = _unpack(order + "q", head, 168)
        else:
            continue
        num_voxels = math.prod(max(1, n) for n in dims[1 : dims[0] + 1])
        return NiftiLayout(int(offset), num_voxels, bits)
    return None


def _unpack(form, head, offset):
    return struct.unpack_from(form, head, offset)[0]


def _count_bytes(file):
    return sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))


MAX_BYTES = 32 * 2**30
"""What the files of one scan may hold together, unpacked."""
BLOCK_BYTES = 1 << 20


def check_nifti(path):
    """Returns the findings about the length of a plain NIfTI file: a longer one may have another's header.

    Raises:
        InputError: it is none.
    """
    if path.suffix.lower() != ".nii":
        return []
    with open(path, "rb") as file:
        head = file.read(352)
    layout = read_nifti_layout(head)
    if layout is None or layout.offset < 352:
        raise InputError(
            f"scan: {path} is no NIfTI file: its first bytes are no header of one; copy or export it again"
        )
    extra = os.path.getsize(path) - expected_nifti_bytes(head)
    if not extra:
        return []
    text = (
        f"scan: {path} is {extra} bytes longer than its header says, expected a header and voxels; its header is "
        "damaged or another file's: export it again (predict --force goes on)"
    )
    return [Finding(ERROR, "length", text)]


def find_voxel_files(path):
    """Returns the paths of the voxel files that a MetaImage or NRRD header names; none where it has its own."""
    suffix = path.suffix.lower()
    if suffix not in (".mhd", ".nhdr") or not path.is_file():
        return []
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return []
    pattern = rb"^ElementDataFile\s*=\s*(.+?)\s*$" if suffix == ".mhd" else rb"^data ?file:\s*(.+?)\s*$"
    names = re.findall(pattern, head, re.MULTILINE | re.IGNORECASE)
    return [_locate(path, decode_line(name)) for name in names]
