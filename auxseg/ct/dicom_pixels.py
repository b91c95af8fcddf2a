"""Values of DICOM slices in HU, by pydicom; compressed ones in a process of their own (`decode`)."""

from __future__ import annotations

import numpy as np

from auxseg.base.classes import AIR_HU
from auxseg.base.errors import InputError
from auxseg.ct import decode
from auxseg.ct.dicom import errors_named

MAX_HU, MIN_HU = 3071, AIR_HU
"""Range that HU are clipped to: 12 bits, as the scanners give them."""


def read_frame(frame):
    """Returns one slice, int16 [H, W] in HU, rows and columns as stored, clipped to 12 bits.

    Raises:
        InputError: the file is damaged, truncated or compressed in a way that nothing here can undo.
    """
    with errors_named(frame.path):
        stored = _read_stored(frame)
    if stored.shape != frame.size_yx:
        raise InputError(f"DICOM: {frame.path} has pixels of shape {stored.shape}, expected {frame.size_yx}")
    if frame.slope == 1.0 and float(frame.intercept).is_integer():
        hu = stored.astype(np.int32) + int(frame.intercept)
    else:
        hu = np.rint(stored * np.float64(frame.slope) + frame.intercept)
    if frame.padding is not None:
        hu = np.where((stored >= frame.padding[0]) & (stored <= frame.padding[1]), AIR_HU, hu)
    return np.clip(hu, MIN_HU, MAX_HU).astype(np.int16)


def read_sources(volume):
    """Returns the headers of a volume's files without pixels, in the order of the frames.

    One pydicom dataset a frame, or one in all where a single file holds all frames.
    """

    paths = list(dict.fromkeys(frame.path for frame in volume.frames))
    with errors_named(paths[0]):
        return [read_header(path) for path in paths]


def read_header(path):
    """Returns the header of a file without pixels, a pydicom dataset; raises whatever pydicom does."""
    return _read_dataset(path, stop_before_pixels=True)


def _read_dataset(path, **kwargs):
    """Returns a pydicom dataset with its transfer syntax, guessed where the file does not state it."""
    import pydicom

    dataset = pydicom.dcmread(path, force=True, **kwargs)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        uids, implicit, little = pydicom.uid, *dataset.original_encoding
        plain = uids.ImplicitVRLittleEndian if implicit else uids.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if little else uids.ExplicitVRBigEndian
    return dataset


def _read_stored(frame):
    """Returns the stored values of a frame, integer [H, W]."""
    from pydicom.pixels import pixel_array

    if frame.is_compressed:
        return decode.read_stored(frame)
    source = _read_dataset(frame.path) if frame.needs_dataset else frame.path
    return np.asarray(pixel_array(source, index=frame.index, raw=True))
