"""Which slices of a scan are cases (`data.slices`), and how they are handed on, in every layout."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

SLICES = ("middle", "nodule", "lung", "all")
"""Choices of `data.slices`.

'middle': slice n // 2 of each scan (3.3).
'nodule': every slice that a nodule crosses, and for each scan as many of its lung slices without one, drawn
    by a seed that is the series UID. Scans without a nodule have no slice.
'lung': all slices with lung.
'all': all slices.
"""


def name_of_size(size_yx):
    """Returns a size as part of a name: '320x320', or 'own' for None."""
    return "own" if size_yx is None else f"{size_yx[0]}x{size_yx[1]}"


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice before resizing.

    Attributes:
        index_z: 0-based, canonical.
        image: int16 [H, W] in HU.
        mask: uint8 [H, W], class indices.
        spacing_zyx_mm: of the scan, before resizing.
        num_nodules: nodules that cross the slice, -1 where not known.
    """

    index_z: int
    image: np.ndarray
    mask: np.ndarray
    spacing_zyx_mm: tuple[float, float, float]
    num_nodules: int


def choose_slices(lung, with_nodule, slices, uid):
    """Returns the rising indices of the slices to read of a scan.

    Args:
        lung: bool [D], which slices show lung.
        with_nodule: rising indices of the slices that a nodule crosses.
        slices: one of `SLICES` but 'middle'.
        uid: of the scan, the seed of what is drawn.
    """
    if slices == "all":
        return list(range(len(lung)))
    if slices == "lung":
        return np.flatnonzero(lung).tolist()
    without = np.setdiff1d(np.flatnonzero(lung), with_nodule)
    rng = np.random.default_rng(zlib.crc32(uid.encode()))
    drawn = rng.permutation(without)[: len(with_nodule)]
    return sorted([*with_nodule, *drawn.tolist()])


@dataclasses.dataclass(frozen=True)
class Images:
    """The slices of an open scan, for what reads more of it than its cases.

    Attributes:
        num_slices: of the scan.
        spacing_mm: between them; NaN where unknown.
        read: (index, canonical) -> int16 [H, W] in HU, of the rows and columns of its cases before resizing.
    """

    num_slices: int
    spacing_mm: float
    read: Callable[[int], np.ndarray]
