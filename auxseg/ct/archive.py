"""Unpacks a zip of a scan, with limits on what it may hold."""

from __future__ import annotations

import pathlib
import stat
import zipfile
import zlib

from auxseg.base.errors import InputError
from auxseg.ct import dicom, headers
from auxseg.ct.headers import BLOCK_BYTES

_MAX_RATIO = 150
"""How many times its size a zip may hold: CT shrinks to about a half, a zip bomb to a thousandth."""
_FREE_BYTES = 1 << 28
"""What any zip may hold, however small it is."""
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError)


def may_hold_scan(path):
    """Returns whether a zip may hold a scan, by the names and first bytes of its entries.

    One that cannot be looked into may: opening it says why.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            return any(_may_be_scan(archive, entry) for entry in entries)
    except (*_DAMAGE, OSError, ValueError):
        return True


def _may_be_scan(archive, entry):
    name = entry.filename.lower()
    if name.endswith((*headers.SUFFIXES, ".npz", ".dcm", ".dicom")):
        return True
    if entry.flag_bits & 1:
        return "." not in pathlib.PurePosixPath(name).name
    with archive.open(entry) as packed:
        return dicom.is_dicom_head(packed.read(dicom.HEAD_BYTES))


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
            _check_ratio(entries, path)
            left = max_bytes
            for entry in entries:
                left -= _unpack_entry(archive, entry, folder, left, path)
    except _DAMAGE as error:
        raise InputError(f"zip: {path} is damaged or of an unknown kind: {error}; copy it again") from error


def _check_ratio(entries, path):
    """Raises before anything is written where a zip says that it holds far more than scans shrink to.

    No entry unpacks to more than it says: `zipfile` stops there.
    """
    stated, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if stated > max(_FREE_BYTES, _MAX_RATIO * packed):
        raise InputError(
            f"zip: {path} has {packed / 1e6:.3g} MB and says that it holds {stated / 1e6:.3g} MB, expected up to "
            f"{_MAX_RATIO} times its size; nothing was unpacked"
        )


def _check_entry(entry, path):
    name = pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
    if not name.parts:
        raise InputError(
            f"zip: {path} has an entry that is no name, {entry.filename!r}; nothing was unpacked"
        )
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
