"""NPZ files that may come from strangers: no objects, no more bytes than the headers say and than are
allowed.

`numpy.load` takes the memory that a header claims before it looks at the data, and a few kilobytes can be
inflated to any size; both are looked at here before anything is read.
"""

import math
import zipfile
import zlib

import numpy as np

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    SyntaxError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a damaged or forged file raises."""


def read_npz(file, *, most_bytes):
    """Returns {name: array} of an NPZ file.

    Args:
        file: path, or a binary file.
        most_bytes: of all arrays together.

    Raises: One of `UNREADABLE`: damaged, arrays of Python objects, or larger than `most_bytes` or than the
        headers say.
    """
    with zipfile.ZipFile(file) as archive:
        left = most_bytes
        for entry in archive.infolist():
            left -= _check_entry(archive, entry, left)
    if hasattr(file, "seek"):
        file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def check_header(file, name, num_bytes, most_bytes):
    """Returns (shape, whether in Fortran's order, dtype) of an array, after reading its header alone.

    Args:
        file: a binary file at the beginning of a `.npy`.
        name: of the array, for the message.
        num_bytes: of the whole `.npy`, as the archive has it.
        most_bytes: that it may have.

    Raises:
        ValueError: it holds Python objects, or another number of bytes than its header says or is allowed.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"{name} is of version {version} of NumPy's format, expected 1.0 or 2.0")
    shape, is_fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never unpickled")
    expected = math.prod(shape) * dtype.itemsize
    if num_bytes > most_bytes:
        raise ValueError(f"{name} holds {num_bytes} bytes, expected at most {most_bytes}")
    if num_bytes - file.tell() != expected:
        raise ValueError(f"{name} holds {num_bytes - file.tell()} bytes, its header says {expected}")
    return shape, is_fortran, dtype


def _check_entry(archive, entry, most_bytes):
    with archive.open(entry) as file:
        check_header(file, entry.filename, entry.file_size, most_bytes)
    return entry.file_size
