"""A picture of a scan with the lungs found and where they differ from a label map: axial and coronal slices."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from auxseg.base.classes import LEFT, RIGHT
from auxseg.evaluation.whole_scans import AIRWAY, UNKNOWN

_WINDOW_HU = (-1100, 200)
_COLOURS = ("#d62728", "#17becf", "#ffdd00", "#e377c2")  # outside, missed, wrong side, airway


def draw_scan(path, scan, masks, labels):
    """Writes a PNG: above the lungs found, below red what is outside, cyan missed, yellow the wrong side, pink airway.

    Args:
        path: the file.
        scan: `scans.Scan`.
        masks: uint8 [D, H, W], class indices.
        labels: uint8 [D, H, W], the label map.
    """
    spacing = scan.geometry.spacing_zyx_mm
    volume = scan.read(0, scan.num_slices)
    wrong = _differences(masks, labels)
    slices = np.flatnonzero((masks > 0).any((1, 2)))
    levels = np.rint(np.linspace(slices[0], slices[-1], 6)[[0, 1, 2, 4, 5]]).astype(int)
    rows = np.flatnonzero((masks > 0).any((0, 2)))
    fronts = np.rint(np.linspace(rows[0], rows[-1], 5)[1:4]).astype(int)
    figure, axes = plt.subplots(2, 8, figsize=(32, 8))
    for column, k in enumerate(levels):
        _show(axes[0, column], volume[k], np.where(masks[k] > 0, masks[k], 0), 1.0, f"slice {k}")
        _show(axes[1, column], volume[k], wrong[k], 1.0, "", differences=True)
    for column, y in enumerate(fronts, start=5):
        ratio = spacing[0] / spacing[2]
        _show(axes[0, column], volume[::-1, y], masks[::-1, y], ratio, f"row {y}")
        _show(axes[1, column], volume[::-1, y], wrong[::-1, y], ratio, "", differences=True)
    figure.tight_layout()
    figure.savefig(path, dpi=50)
    plt.close(figure)


def _differences(masks, labels):
    lung, theirs = masks > 0, (labels == LEFT) | (labels == RIGHT)
    wrong = np.zeros(masks.shape, np.uint8)
    wrong[lung & ~theirs] = 1
    wrong[theirs & ~lung] = 2
    wrong[lung & theirs & (masks != labels)] = 3
    wrong[lung & (labels == AIRWAY)] = 4
    wrong[labels == UNKNOWN] = 0
    return wrong


def _show(axis, image, overlay, ratio, title, differences=False):
    low, high = _WINDOW_HU
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=ratio)
    colours = matplotlib.colors.ListedColormap(_COLOURS) if differences else "jet"
    shown = np.ma.masked_equal(overlay, 0)
    axis.imshow(shown, cmap=colours, vmin=1, vmax=4, alpha=0.6 if differences else 0.3, aspect=ratio,
                interpolation="nearest")  # fmt: skip
    axis.set_title(title)
    axis.axis("off")
