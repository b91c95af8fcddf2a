"""Arrays that lie in a file: made with their room taken, and given back to the system where nobody needs them for now."""

from __future__ import annotations

import mmap
import os

import numpy as np


def create_array(path, dtype, shape):
    """Returns a new array of zeros that lies in a file, with all of its room on the disk taken.

    Without that a disk that fills up later ends the process by a signal, in the middle of a write.

    Args:
        path: of the .npy file.
        dtype: of the array.
        shape: of the array.

    Raises:
        OSError: there is no room.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array


def release(part):
    """Gives the memory of a part of an array back to the system, where the array lies in a file; its values stay there.

    Without that a process holds all that it has ever read or written of its arrays, and looks as large as a whole scan.

    Args:
        part: contiguous part of an array; one in memory stays as it is. None of a copy-on-write map, which would lose its changes.
    """
    base = part
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = part.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first, last = (
        -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE,
        (begin + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE,
    )
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)
