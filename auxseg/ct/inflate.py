"""Compressed scan files as plain ones beside them, a stream at a time, and never more than the header says.

A few kilobytes can be inflated to terabytes: what a header promises bounds what is written, and a file that
holds more (or less) than that is refused.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib

import numpy as np

from auxseg.base import npz
from auxseg.base.errors import InputError
from auxseg.ct import headers
from auxseg.ct.headers import MAX_BYTES

_BLOCK = 1 << 20
_SLACK = 1 << 16
"""Bytes beyond what a NIfTI header says that are still unpacked."""


def inflate_nifti(path, scratch):
    """Returns the path of an uncompressed copy in `scratch` of a `.nii.gz`, of any other file its own.

    A copy may be longer than its header says by a little, which `headers.check_nifti` then finds.

    Args:
        path: a file with one of `headers.SUFFIXES`.
        scratch: folder for the copy.

    Raises:
        InputError: the compressed data are damaged, or far longer than the header says.
    """
    if not path.name.lower().endswith(".nii.gz"):
        return path
    try:
        return _inflate_nifti(path, scratch)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"scan: {path} is damaged or truncated: {error}; copy it again") from error


def inflate_npz(path, scratch):
    """Returns {name: array} of an NPZ, numbers memory-mapped from copies in `scratch`, read-only.

    Args:
        path: the file.
        scratch: folder for the copies.

    Raises:
        InputError: it is damaged, no NPZ, or has arrays of objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {
                name.removesuffix(".npy"): _inflate_npy(archive, name, scratch / f"array{number}.npy")
                for number, name in enumerate(names)
            }
    except InputError:
        raise
    except (*npz.UNREADABLE, MemoryError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"NPZ: {path} is damaged or no NPZ of plain arrays: {reason}") from error


def _inflate_npy(archive, name, target):
    with archive.open(name) as packed:
        size = archive.getinfo(name).file_size
        shape, fortran_order, dtype = npz.check_header(packed, name, size, MAX_BYTES)
        num_bytes = size - packed.tell()
        with open(target, "wb") as file:
            np.lib.format.write_array_header_2_0(
                file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": fortran_order,
                       "shape": shape}
            )  # fmt: skip
            written = _copy(packed, file, num_bytes, name)
    if written != num_bytes:
        raise ValueError(f"{name} holds {written} bytes, expected {num_bytes}")
    return np.load(target, mmap_mode="r" if num_bytes else None, allow_pickle=False)


def _copy(stream, file, max_bytes, what):
    """Copies a stream to an open file; returns the bytes. Stops with an error beyond `max_bytes`."""
    written = 0
    while block := stream.read(_BLOCK):
        written += len(block)
        if written > max_bytes:
            raise InputError(
                f"scan: {what} is longer than its header says: more than {max_bytes} bytes of voxels; its "
                "header is damaged or another file's: export it again"
            )
        if written > MAX_BYTES:
            raise InputError(f"scan: {what} holds more than {MAX_BYTES >> 30} GiB; cut it to the chest")
        file.write(block)
    return written


def _inflate_nifti(path, scratch):
    target = scratch / "scan.nii"
    with gzip.open(path) as packed, open(target, "wb") as file:
        head = packed.read(352)
        file.write(head)
        expected = headers.expected_nifti_bytes(head) if len(head) == 352 else 0
        if expected == 0:
            raise InputError(
                f"scan: {path} is no NIfTI file: its first bytes are no header of one; copy or export it again"
            )
        _copy(packed, file, max(0, expected - 352) + _SLACK, path)
    return target
