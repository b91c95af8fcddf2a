"""NRRD headers (`.nrrd`, `.nhdr`): what is known to be sound becomes `Voxels`, everything else is refused."""

from __future__ import annotations

import dataclasses
import math
import os
import re

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct.checks import WARNING, Finding
from auxseg.ct.geometry import Geometry
from auxseg.ct.headers import decode_line, find_beside
from auxseg.ct.voxels import Voxels

_TYPES = {
    "i1": "signed char, int8, int8_t", "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t", "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float", "f8": "double",
}  # fmt: skip
_KINDS = {name: kind for kind, names in _TYPES.items() for name in names.split(", ")}
_SPACES = {"left-posterior-superior": (1, 1), "lps": (1, 1), "right-anterior-superior": (-1, -1), "ras": (-1, -1),
           "left-anterior-superior": (1, -1), "las": (1, -1)}  # fmt: skip
"""Signs of x and y to LPS."""
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_IGNORED = set(
    "content number units labels kinds centers centerings thicknesses min max oldmin oldmax sampleunits blocksize "
    "spaceunits measurementframe axismaxs".split()
)
_KNOWN = _IGNORED | set(
    "type dimension sizes encoding endian space spacedimension spacedirections spaceorigin spacings axismins datafile "
    "lineskip byteskip".split()
)
_MAX_LINES, _MAX_LINE = 1000, 1 << 16


def read_voxels(path):
    """Returns the `Voxels` that an NRRD file describes.

    Axes of one entry are passed over where there are more than three; two are one slice.

    Raises:
        InputError: it is no NRRD header, or one of more than a plain volume of numbers.
    """
    try:
        fields, header_bytes = _read_fields(path)
        return _create_voxels(path, fields, header_bytes)
    except (KeyError, ValueError, OverflowError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{error} is missing or unknown" if isinstance(error, KeyError) else str(error)
        raise InputError(f"scan file: the header {path} cannot be understood: {reason[:200]}") from error


def _read_fields(path):
    """Returns ({field: value}, names without spaces and in small letters; bytes of the header)."""
    fields = {}
    with open(path, "rb") as file:
        if not re.fullmatch(rb"NRRD000[1-6]\r?\n", file.readline(_MAX_LINE)):
            raise ValueError("its first line is not that of NRRD")
        for _ in range(_MAX_LINES):
            line = file.readline(_MAX_LINE)
            if not line.strip():
                if not line and path.suffix.lower() != ".nhdr":
                    raise ValueError("its header has no end")
                return fields, file.tell()
            text = decode_line(line).strip()
            name, found, value = text.partition(":")
            if text.startswith("#") or value.startswith("="):
                continue  # a comment, or a key of the user's
            name = re.sub(r"[\s_-]", "", name).lower()
            if not found or name not in _KNOWN or name in fields:
                raise ValueError(f"the line {text[:60]!r} is unknown or there twice")
            fields[name] = value.strip()
    raise ValueError("its header has no end")


def _create_voxels(path, fields, header_bytes):
    sizes = [int(word) for word in fields["sizes"].split()]
    if int(fields["dimension"]) != len(sizes) or not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise ValueError(
            f"it has {fields['dimension'][:9]} dimensions of {fields['sizes'][:40]} voxels, expected three"
        )
    geometry, known, findings = _read_geometry(fields, sizes)
    kind = np.dtype(_KINDS[fields["type"].lower()])
    order = {"little": "<", "big": ">"}[fields["endian"].lower()] if kind.itemsize > 1 else "<"
    encoding = _ENCODINGS[fields["encoding"].lower()]
    name = fields.get("datafile")
    if name and (name.split()[0] == "LIST" or (len(name.split()) > 1 and not (path.parent / name).is_file())):
        raise InputError(f"scan: {path} spreads its voxels over several files; store it as one plain NRRD")
    data, offset = (find_beside(path, name), 0) if name else (path, header_bytes)
    voxels = Voxels(path, data, offset, kind.newbyteorder(order), encoding, geometry, known, findings)
    return _skip(voxels, int(fields.get("lineskip", 0)), int(fields.get("byteskip", 0)))


def _skip(voxels, lines, skipped):
    """Returns the voxels behind lines and bytes of another header; -1: they are the end of the file."""
    if not lines and not skipped:
        return voxels
    if voxels.encoding != "raw" or lines < 0 or skipped < -1:
        raise ValueError("it hides packed voxels behind other bytes (line skip, byte skip)")
    with open(voxels.path, "rb") as file:
        file.seek(voxels.offset)
        for _ in range(min(lines, _MAX_LINES)):
            file.readline(_MAX_LINE)
        offset = file.tell() + skipped
    if skipped == -1:
        offset = os.path.getsize(voxels.path) - voxels.num_bytes
    if offset < 0:
        raise ValueError("it has fewer bytes of voxels than its header says")
    return dataclasses.replace(voxels, offset=offset)


def _read_geometry(fields, sizes):
    """Returns (`Geometry`, whether the spacing is stated, findings)."""
    axes, known = _read_axes(fields, len(sizes))
    if len(sizes) == 4:
        extra = next((k for k, (size, axis) in enumerate(zip(sizes, axes)) if size == 1 and axis is None), 3)
        if sizes[extra] != 1:
            raise ValueError(f"it has four dimensions of {fields['sizes'][:40]} voxels, expected three")
        axes, sizes = axes[:extra] + axes[extra + 1 :], sizes[:extra] + sizes[extra + 1 :]
    if any(axis is None for axis in axes):
        raise ValueError("an axis of the image lies nowhere in space (space directions: none)")
    if len(sizes) == 2:
        across = np.cross(axes[0], axes[1])
        axes, sizes = [*axes, across / np.linalg.norm(across)], [*sizes, 1]
    space = fields.get("space", "").lower()
    signs = np.array([*_SPACES.get(space, (1, 1)), 1])
    matrix = np.stack(axes, axis=1) * signs[:, None]
    spacing = np.linalg.norm(matrix, axis=0)
    if not spacing.all():
        raise ValueError("an axis of the image has no length (space directions)")
    origin = _read_origin(fields, len(sizes), spacing) * signs
    geometry = Geometry(
        tuple(sizes),
        tuple(spacing.tolist()),
        tuple(origin.tolist()),
        tuple((matrix / spacing).ravel().tolist()),
    )
    return geometry, known, () if space in _SPACES else (_no_space(space),)


def _no_space(space):
    said = f"says {space[:40]!r}" if space else "does not say"
    text = f"NRRD {said} in which space it lies: its axes are taken as left, posterior, superior"
    return Finding(WARNING, "no-orientation", text)


def _read_axes(fields, count):
    """Returns (one vector [3] an axis in mm or None, whether the spacing is stated)."""
    if "spacedirections" in fields:
        words = re.findall(r"\([^()]*\)|none", fields["spacedirections"])
        axes = [None if word == "none" else _vector(word) for word in words]
        if len(axes) != count:
            raise ValueError(
                f"space directions are {fields['spacedirections'][:60]!r}, expected {count} vectors"
            )
        return axes, True
    spacings = [float(word) for word in fields.get("spacings", " ".join(["1"] * count)).split()]
    if len(spacings) != count:
        raise ValueError(f"spacings are {fields['spacings'][:60]!r}, expected {count} numbers")
    axes = [np.eye(3)[k] * mm if math.isfinite(mm) and k < 3 else None for k, mm in enumerate(spacings)]
    return axes, "spacings" in fields


def _read_origin(fields, count, spacing):
    if "spaceorigin" in fields:
        return _vector(fields["spaceorigin"])
    mins = [float(word) for word in fields.get("axismins", "").split()][:3]
    if len(mins) != min(count, 3) or not np.isfinite(mins).all():
        return np.zeros(3)
    first = np.array([*mins, *[0.0] * (3 - len(mins))])
    # A cell begins at its axis' least value, its centre lies half a cell further.
    return first if "node" in fields.get("centerings", "") else first + spacing / 2


def _vector(word):
    numbers = [float(part) for part in word.strip("() ").split(",")]
    if len(numbers) not in (2, 3) or not np.isfinite(numbers).all():
        raise ValueError(f"got the vector {word[:40]!r}, expected three numbers")
    return np.array([*numbers, *[0.0] * (3 - len(numbers))])
