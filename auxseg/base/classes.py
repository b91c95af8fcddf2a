"""The words that all other files share.

Letters are fixed throughout: N examples, D slices, H rows, W columns, C classes or channels.
"""

from __future__ import annotations

CLASS_NAMES = ("background", "left_lung", "right_lung", "nodule")
"""Class names by mask value; left and right are the patient's."""
LEFT, RIGHT, NODULE = (CLASS_NAMES.index(name) for name in ("left_lung", "right_lung", "nodule"))
COLOURS = {"left_lung": (220, 50, 47), "right_lung": (64, 160, 43), "nodule": (38, 110, 235)}
"""Overlay colours; as in the paper's figures: left lung red, right lung green, nodule blue."""
