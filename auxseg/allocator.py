"""Keeps the host's large temporary arrays in the process, which on Linux is most of their cost.

A training step on the CPU allocates and frees gigabytes of temporaries. By default glibc takes each from the
kernel and gives it back, and every page of it is faulted in and cleared again at the next step. With the
settings here freed memory stays in the heap and is used again as it is. Other C libraries are left alone.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory():
    """Returns whether glibc's malloc was told to keep freed memory; call it before the first computation."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 << 20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
