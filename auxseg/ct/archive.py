"""Unpacks a zip of a scan, with limits on what it may hold."""

from __future__ import annotations

import pathlib
import stat
import zipfile
import zlib

from auxseg.base.errors import InputError
from auxseg.ct import headers
from auxseg.ct.headers import BLOCK_BYTES


def unpack_zip(path, folder, *, max_bytes=headers.MAX_BYTES):
    """Unpacks a zip into an empty folder.

    Raises:
        InputError: it is damaged, encrypted, larger than `max_bytes`, or has an entry that leads out of the
            folder or is a link.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                _check_entry(entry, path)
            left = max_bytes
            for entry in entries:
                left -= _unpack_entry(archive, entry, folder, left, path)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        raise InputError(f"zip: {path} is damaged or of an unknown kind: {error}; copy it again") from error


def _check_entry(entry, path):
    name = pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0] or "\0" in entry.filename:
        raise InputError(
            f"zip: {path} has an entry that leads out of it, {entry.filename!r}; nothing was unpacked"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"zip: {path} has a link, {entry.filename!r}; nothing was unpacked")
    if entry.flag_bits & 1:
        raise InputError(f"zip: {path} is encrypted; unpack it first")


def _unpack_entry(archive, entry, folder, max_bytes, path):
    """Writes one entry and returns its bytes; the sizes that a zip states are not trusted."""
    target = folder / pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, open(target, "wb") as file:
            while block := packed.read(BLOCK_BYTES):
                written += len(block)
                if written > max_bytes:
                    raise InputError(
                        f"zip: {path} holds more than {headers.MAX_BYTES >> 30} GiB; unpack it first"
                    )
                file.write(block)
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise InputError(f"zip: {path} has two entries in each other's way: {entry.filename!r}") from error
    return written
