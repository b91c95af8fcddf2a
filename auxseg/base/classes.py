"""The words that all other files share.

Letters are fixed throughout: N examples, D slices, H rows, W columns, C classes or channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

CLASS_NAMES = ("background", "left_lung", "right_lung", "nodule")
"""Class names by mask value; left and right are the patient's."""


class Batch(NamedTuple):
    """One batch as the step takes it.

    Attributes:
        images: float32 [N, H, W, 1], HU mapped from the window to [0, 1]; of slabs [N, H, W, slices].
        masks: uint8 or int32 [N, H, W], class indices.
        labels: float32 [N, C], 1.0 where the class has a pixel in the slice.
        weights: float32 [N], 1.0 for an example, 0.0 for padding.
    """

    images: Any
    masks: Any
    labels: Any
    weights: Any


LEFT, RIGHT, NODULE = (CLASS_NAMES.index(name) for name in ("left_lung", "right_lung", "nodule"))
COLOURS = {"left_lung": (220, 50, 47), "right_lung": (64, 160, 43), "nodule": (38, 110, 235)}
"""Overlay colours; as in the paper's figures: left lung red, right lung green, nodule blue."""
