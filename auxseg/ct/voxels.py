"""Voxels of one file: where they lie, of which type, and how they are packed. MetaImage and NRRD say so here.

Their headers are read by `metaimage` and `nrrd` and the values without ITK, which ends the process on some headers.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import os
import pathlib
import zlib

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct.checks import Finding
from auxseg.ct.geometry import Geometry

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Voxels:
    """Values of a scan in a file.

    Attributes:
        header: the file that describes them, for messages.
        path: the file that holds them, perhaps the same.
        offset: byte at which they begin.
        dtype: of a value, with its byte order.
        encoding: 'raw', 'zlib', 'gzip' or 'bzip2'.
        stored: their grid.
        has_geometry: False where the header gives no spacing.
        findings: what is doubtful in the header.
        packed_bytes: length of packed values, None where the header does not say.
    """

    header: pathlib.Path
    path: pathlib.Path
    offset: int
    dtype: np.dtype
    encoding: str
    stored: Geometry
    has_geometry: bool = True
    findings: tuple[Finding, ...] = ()
    packed_bytes: int | None = None

    @property
    def num_bytes(self):
        """Bytes of the values, unpacked."""
        return int(np.prod(self.stored.size_xyz, dtype=object)) * self.dtype.itemsize


def check_length(voxels):
    """Raises where a file of values is shorter or longer than its header says.

    Raises:
        InputError: it is.
    """
    found = os.path.getsize(voxels.path) - voxels.offset
    expected = voxels.num_bytes if voxels.encoding == "raw" else voxels.packed_bytes
    if expected is None or found == expected:
        return
    matter = "truncated" if found < expected else "longer than its header says"
    raise InputError(
        f"scan file: {voxels.path} is {matter}: {found} bytes, expected {expected}; copy or download it again"
    )


def open_array(voxels):
    """Returns all values [z, y, x] as an array: of a plain file on disk, of a packed one in memory, read-only.

    Raises:
        InputError: the file is damaged, or of another length than its header says.
    """
    if voxels.encoding == "raw":
        check_length(voxels)
        return np.memmap(voxels.path, voxels.dtype, "r", voxels.offset, voxels.stored.shape_zyx)
    target = io.BytesIO()
    unpack(voxels, target)
    return np.frombuffer(target.getbuffer(), voxels.dtype).reshape(voxels.stored.shape_zyx)


def unpack(voxels, target):
    """Writes the unpacked values to an open binary file.

    Raises:
        InputError: the packed data are damaged, or of another length than the header says.
    """
    try:
        with open(voxels.path, "rb") as file:
            file.seek(voxels.offset)
            written = _copy(_open_stream(file, voxels.encoding), target, voxels)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"scan: {voxels.header} is damaged or truncated: {error}; copy it again") from error
    except OSError as error:
        if error.errno:
            raise
        raise InputError(f"scan: {voxels.header} is damaged or truncated: {error}; copy it again") from error
    if written != voxels.num_bytes:
        raise InputError(
            f"scan: {voxels.header} holds {written} bytes of voxels, its header says {voxels.num_bytes}; copy or "
            "export it again"
        )


def to_plain(voxels, path):
    """Returns the `Voxels` unpacked to a file, or themselves where they are not packed; errors as `unpack`."""
    if voxels.encoding == "raw":
        return voxels
    with open(path, "wb") as file:
        unpack(voxels, file)
    return dataclasses.replace(voxels, path=pathlib.Path(path), offset=0, encoding="raw", packed_bytes=None)


def _copy(stream, target, voxels):
    """Copies no more than the header says, so that a few kilobytes never become gigabytes."""
    written = 0
    while block := stream.read(_BLOCK):
        written += len(block)
        if written > voxels.num_bytes:
            raise InputError(
                f"scan: {voxels.header} is longer than its header says: more than {voxels.num_bytes} bytes of voxels; "
                "its header is damaged or another file's: export it again"
            )
        target.write(block)
    if isinstance(stream, _ZlibStream) and not stream.inflater.eof:
        raise ValueError("the compressed voxels end too early")
    return written


def _open_stream(file, encoding):
    if encoding == "zlib":
        return _ZlibStream(file)
    return gzip.open(file) if encoding == "gzip" else bz2.open(file)


class _ZlibStream:
    """Reads the inflated bytes of a zlib stream, as `gzip.open` does those of a gzip file."""

    def __init__(self, packed):
        self.packed, self.inflater, self.left = packed, zlib.decompressobj(), b""

    def read(self, size):
        """Returns up to `size` bytes, none at the end of either stream."""
        while not self.inflater.eof:
            block = self.left or self.packed.read(_BLOCK)
            if not block:
                return b""
            data = self.inflater.decompress(block, size)
            self.left = self.inflater.unconsumed_tail
            if data:
                return data
        return b""
