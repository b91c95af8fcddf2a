"""Where in a scan the body lies, so that the field of view does not matter to what is seen of it.

The body is the largest piece in three dimensions of what is denser than fat is, after an opening that takes away
the table's shell, clothes and tubes. Some slices, spread over the scan, say it at full resolution: a scan
with more air around it gives the same box.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.base.classes import AIR_HU
from auxseg.ct import boxes

_TISSUE_HU = -400
_OPENING_MM = 6.0  # a table's shell and a blanket's folds are thinner, the wall of the chest is not
_MARGIN = 0.02  # of the longer side, on each side
_NUM_SLICES = 32
_MIN_SHARE = (
    0.2  # of the slices must reach a row or column for the box to hold it: shoulders and arms need not
)


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of rows and columns; it may reach beyond the slice.

    Attributes:
        start_yx: first row and column, perhaps below 0.
        size_yx: rows and columns.
    """

    start_yx: tuple[int, int]
    size_yx: tuple[int, int]

    def cut(self, images):
        """Returns what the box shows of int16 [..., H, W] in HU, [..., *size_yx]; air beyond the slice."""
        filled = np.full((*images.shape[:-2], *self.size_yx), AIR_HU, images.dtype)
        inner, outer = self._overlap(images.shape[-2:])
        filled[..., inner[0], inner[1]] = images[..., outer[0], outer[1]]
        return filled

    def cut_mask(self, masks):
        """Returns what the box shows of classes [..., H, W]; 0, background, beyond the slice."""
        filled = np.zeros((*masks.shape[:-2], *self.size_yx), masks.dtype)
        inner, outer = self._overlap(masks.shape[-2:])
        filled[..., inner[0], inner[1]] = masks[..., outer[0], outer[1]]
        return filled

    def paste(self, parts, shape_yx):
        """Returns masks [..., *size_yx] of the box as masks of whole slices [..., *shape_yx], 0 outside it."""
        whole = np.zeros((*parts.shape[:-2], *shape_yx), parts.dtype)
        inner, outer = self._overlap(shape_yx)
        whole[..., outer[0], outer[1]] = parts[..., inner[0], inner[1]]
        return whole

    def shown(self, shape_yx):
        """Returns the rows and columns of the box, as slices, that lie within a slice of a size."""
        return tuple(self._overlap(shape_yx)[0])

    def _overlap(self, shape_yx):
        """Returns the rows and columns that box and slice share, as slices of the box and of the slice."""
        inner, outer = [], []
        for start, size, length in zip(self.start_yx, self.size_yx, shape_yx, strict=True):
            low, high = max(start, 0), max(min(start + size, length), max(start, 0))
            inner.append(slice(low - start, high - start))
            outer.append(slice(low, high))
        return inner, outer


def find_body(read, num_slices, spacing_yx_mm):
    """Returns the square `Box` around the body in a scan, or None where there is no body.

    It is as high as wide in mm and has a margin of 2 % on each side of the body's longer side, for cropped fields and
    wide ones alike. Rows and columns that only few slices reach (shoulders, arms, a tube) may be left out.

    Args:
        read: (start, stop) -> int16 [stop - start, H, W] in HU.
        num_slices: of the scan.
        spacing_yx_mm: distance of rows and of columns in mm.
    """
    indices = np.unique(np.linspace(0, num_slices - 1, min(num_slices, _NUM_SLICES)).round().astype(int))
    tissue = np.stack([_open(read(int(k), int(k) + 1)[0] > _TISSUE_HU, spacing_yx_mm) for k in indices])
    labels, count = ndimage.label(tissue)
    if not count:
        return None
    # Slice by slice, which stays in the processor's cache.
    largest = 1 + sum(np.bincount(one.ravel(), minlength=count + 1) for one in labels)[1:].argmax()
    bodies = [one == largest for one in labels]
    least = max(1, round(_MIN_SHARE * len(indices)))
    spans = [
        np.flatnonzero(sum(body.any(axis).astype(int) for body in bodies) >= least)[[0, -1]]
        for axis in (1, 0)
    ]
    return _square(spans, spacing_yx_mm)


def _open(tissue, spacing_yx_mm):
    """Returns bool [H, W] without what is thinner than `_OPENING_MM` in rows or columns."""
    opened = tissue
    size = [max(1, round(_OPENING_MM / mm)) for mm in spacing_yx_mm]
    for axis, length in enumerate(size):
        opened = boxes.combine(opened, np.logical_and, length, length // 2, axis)
    # An even filter shifts by half a pixel; its mirror image shifts back.
    for axis, length in enumerate(size):
        opened = boxes.combine(opened, np.logical_or, length, (length - 1) // 2, axis)
    return opened


def _square(spans, spacing_yx_mm):
    """Returns the square `Box` around the first and last row and column of the body."""
    sides_mm = [(high - low + 1) * mm for (low, high), mm in zip(spans, spacing_yx_mm, strict=True)]
    side_mm = max(sides_mm) * (1.0 + 2.0 * _MARGIN)
    size = [round(side_mm / mm) for mm in spacing_yx_mm]
    start = [int(low + high + 1 - n) // 2 for (low, high), n in zip(spans, size, strict=True)]
    return Box(tuple(start), tuple(size))
