"""Compressed scan files as plain ones beside them, a stream at a time, and never more than the header says.

A few kilobytes can be inflated to terabytes: what a header promises bounds what is written, and a file that
holds more (or less) than that is refused.
"""

from __future__ import annotations

import bz2
import gzip
import os
import zipfile
import zlib

import numpy as np

from auxseg.base import npz
from auxseg.base.errors import InputError
from auxseg.ct import headers
from auxseg.ct.headers import MAX_BYTES, NIFTI_SLACK

_BLOCK = 1 << 20


def inflate(path, scratch):
    """Returns the path of an uncompressed copy in `scratch`, or `path` itself where nothing is compressed.

    Args:
        path: a file with one of `headers.SUFFIXES`.
        scratch: folder for the copy.

    Raises:
        InputError: the compressed data are damaged, truncated, or of another length than the header says.
    """
    name = path.name.lower()
    headers.check_scan_path(path)
    try:
        if name.endswith(".nii.gz"):
            return _inflate_nifti(path, scratch)
        if name.endswith((".mhd", ".mha")):
            return _inflate_metaimage(path, scratch)
        if name.endswith((".nrrd", ".nhdr")):
            return _inflate_nrrd(path, scratch)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"scan: {path} is damaged or truncated: {error}; copy it again") from error
    return path


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
            raise InputError(f"scan: {path} is no NIfTI file: its header is none; copy or export it again")
        _copy(packed, file, max(0, expected - 352) + NIFTI_SLACK, path)
    return target


def _inflate_metaimage(path, scratch):
    with open(path, "rb") as file:
        lines = headers.header_lines(file, lambda line: line.partition("=")[0].strip() == "ElementDataFile")
        fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
        if fields.get("CompressedData", "False").lower() != "true":
            return path
        local = fields["ElementDataFile"] == "LOCAL"
        data = path if local else headers.find_beside(path, fields["ElementDataFile"])
        expected = headers.expected_metaimage_bytes(
            {**fields, "CompressedData": "False", "HeaderSize": 0}, path
        )
        with open(data, "rb") as packed:
            packed.seek(file.tell() if local else 0)
            _inflate_zlib(packed, scratch / "scan.raw", expected, path)
    dropped = ("CompressedData", "CompressedDataSize", "ElementDataFile", "HeaderSize")
    kept = [line for line in lines if line.partition("=")[0].strip() not in dropped]
    plain = scratch / "scan.mhd"
    plain.write_text(
        "\n".join([*kept, "CompressedData = False", "ElementDataFile = scan.raw", ""]), "latin-1"
    )
    return plain


def _inflate_zlib(packed, target, max_bytes, path):
    stream = _ZlibStream(packed)
    with open(target, "wb") as file:
        _copy(stream, file, max_bytes, path)
    if not stream.inflater.eof:
        raise ValueError("the compressed voxels end too early")


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


def _inflate_nrrd(path, scratch):
    """Returns an uncompressed NRRD, header and voxels in one file, after checking the voxels' length."""
    with open(path, "rb") as file:
        lines = headers.header_lines(file, lambda line: not line.strip(), path.suffix.lower() == ".nhdr")
        fields = {
            key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)
        }
        encoding = fields.get("encoding", "raw").lower()
        name = fields.get("data file", fields.get("datafile"))
        skips = {fields.get(key, "0") for key in ("line skip", "lineskip", "byte skip", "byteskip")}
        if (name and (len(name.split()) > 1 or name == "LIST")) or skips != {"0"}:
            raise InputError(
                f"scan: {path} spreads or hides its voxels (data file, skip); store it as one plain NRRD"
            )
        data = headers.find_beside(path, name) if name else path
        opener = {"raw": open, "gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}.get(
            encoding
        )
        if opener is None:
            raise InputError(f"scan: {path} has the encoding {encoding!r}, expected raw, gzip or bzip2")
        if encoding == "raw":
            found = os.path.getsize(data) - (0 if name else file.tell())
            headers.check_nrrd_length(fields, found, path)
            return path
        raw = scratch / "scan.raw"
        with open(data, "rb") as packed:
            packed.seek(0 if name else file.tell())
            with opener(packed) as stream, open(raw, "wb") as target:
                _copy(stream, target, headers.expected_nrrd_bytes(fields), path)
    headers.check_nrrd_length(fields, os.path.getsize(raw), path)
    dropped = ("encoding", "data file", "datafile")
    kept = [line for line in lines if line.strip() and line.partition(":")[0].strip().lower() not in dropped]
    plain = scratch / "scan.nhdr"
    plain.write_text("\n".join([*kept, "encoding: raw", "data file: scan.raw", "", ""]), "latin-1")
    return plain
