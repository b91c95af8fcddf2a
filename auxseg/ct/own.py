"""Knows the masks that auxseg wrote: they are never taken for scans."""

from __future__ import annotations

import gzip
import zipfile
import zlib

MARK = "auxseg segmentation"
"""What volumes that auxseg wrote say of themselves: NIfTI in descrip, NRRD in content, MetaImage in Comment."""
DONE, CANDIDATES = "prediction.json", "candidates.csv"
"""Beside a mask: what it is, and all candidates for nodules in LUNA16's form."""
_HEAD_BYTES = 2048
_NAMES = ("mask.", "probability_")
_RESULTS = {DONE, CANDIDATES, "measurements.csv", "overview.png", "report.html"}


def is_result(path):
    """Returns whether a file is a table, picture or page that auxseg wrote beside a mask."""
    if path.name in _RESULTS:
        return (path.parent / DONE).exists()
    return path.suffix == ".csv" and (path.stem == "scans" or path.stem.startswith("scans-"))


def is_own(path):
    """Returns whether a volume file is a mask or a probability map by auxseg.

    By its own words, or, for files of older versions, by its name beside a `prediction.json`.

    Args:
        path: pathlib.Path with one of `headers.SUFFIXES`, or an NPZ.
    """
    if path.name.startswith(_NAMES) and (path.parent / DONE).exists():
        return True
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return set(archive.namelist()) == {"mask.npy", "spacing_zyx_mm.npy"}
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            return MARK.encode("ascii") in file.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False
