"""The nodule look: which pixels inside the lungs are nodule, at the scan's own resolution, slice by slice.

The network is an `AuxUNet` with two classes (nodule or not), without squeeze-and-excitation, whose means over a
whole image would differ between the windows it is trained on and the slices it is run on.
"""

from __future__ import annotations

import numpy as np

from auxseg.models.settings import Settings
from auxseg.prediction import morphology

CLOSE_MM = 10.0
"""Notches of the lungs up to twice this wide are looked at: nodules at the pleura are missing in masks of lungs."""
MARGIN_MM = 2.0
WINDOW_HU = (-1000.0, 400.0)
BOX_STEP = 32
"""Rows and columns that the network runs on are filled up to a multiple of it."""


def network_settings(lowering, *, base_width=16, depth=4):
    """Returns the `settings.Settings` of the look."""
    return Settings(
        base_width=base_width, depth=depth, num_classes=2, separable=True, se=False, se_ratio=8, aux=False,
        aux_width=128, dtype="float32", bn_momentum=0.99, bn_epsilon=1e-3, lowering=lowering,
    )  # fmt: skip


def find_region(lungs, spacing_yx_mm):
    """Returns where nodules are looked for, bool [D, H, W]: the lungs, closed slice by slice, and a margin.

    Args:
        lungs: bool [D, H, W].
        spacing_yx_mm: distance of rows and of columns.
    """
    parts = np.array_split(lungs, max(1, len(lungs) // 16))
    return np.concatenate(morphology.by_slice(lambda part: _find_region(part, spacing_yx_mm), parts))


def _find_region(lungs, spacing_yx_mm):
    close, margin = ((0, *(max(1, round(mm / s)) for s in spacing_yx_mm)) for mm in (CLOSE_MM, MARGIN_MM))
    closed = morphology.shrink(morphology.grow(lungs, close), close)
    return morphology.grow(closed | lungs, margin)


def find_box(region):
    """Returns (slices with region int [n], row slice, column slice) that hold all of it; all empty without one."""
    chosen = np.flatnonzero(region.any(axis=(1, 2)))
    seen = region.any(axis=0)
    return chosen, *(_extent(np.flatnonzero(seen.any(axis=axis))) for axis in (1, 0))


def _extent(places):
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def to_input(image_hu):
    """Returns float32 in [0, 1] of HU, clipped to `WINDOW_HU`."""
    low, high = WINDOW_HU
    return np.clip((np.asarray(image_hu, np.float32) - low) / (high - low), 0.0, 1.0)


def mark(read, region, forward, *, batch_size=4):
    """Returns the probability of nodule, uint8 [D, H, W] of 255ths; 0 outside the region.

    Args:
        read: index of a slice -> int16 or float32 [H, W] in HU.
        region: bool [D, H, W] from `find_region`.
        forward: float32 [N, rows, columns, 1] in [0, 1] -> probability float32 [N, rows, columns].
        batch_size: slices at a time.
    """
    marked = np.zeros(region.shape, np.uint8)
    chosen, rows, columns = find_box(region)
    height, width = (part.stop - part.start for part in (rows, columns))
    padding = ((0, 0), (0, -height % BOX_STEP), (0, -width % BOX_STEP))

    def finish(part, found):
        found = np.asarray(found)[: len(part), :height, :width]
        marked[part, rows, columns] = np.round(255.0 * found).astype(np.uint8)

    before = None  # computed while the next slices are made ready
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        images = np.stack([to_input(read(index)[rows, columns]) for index in part])
        images = np.pad(np.pad(images, padding, mode="edge"), ((0, batch_size - len(part)), (0, 0), (0, 0)))
        here = part, forward(images[..., None])
        if before is not None:
            finish(*before)
        before = here
    if before is not None:
        finish(*before)
    marked *= region
    return marked
