"""The words that all other files share.

Letters are fixed throughout: N examples, D slices, H rows, W columns, C classes or channels.
"""

from __future__ import annotations

CLASS_NAMES = ("background", "left_lung", "right_lung", "nodule")
"""Class names by mask value; left and right are the patient's."""
LEFT, RIGHT, NODULE = (CLASS_NAMES.index(name) for name in ("left_lung", "right_lung", "nodule"))
COLOURS = {"left_lung": "#d6303a", "right_lung": "#1f9d55", "nodule": "#2563eb"}
"""As in the paper's figures: left lung red, right lung green, nodule blue."""
DIFFERENCE_COLOUR = "#f5c400"
"""Where two masks differ: yellow, as in the paper's figures."""
AIR_HU = -1024
"""The least HU that means anything: scanners write this or less outside their field of view."""


def to_rgb(colour):
    """Returns (red, green, blue), each 0 to 255, of a colour such as '#d6303a'."""
    return tuple(bytes.fromhex(colour.removeprefix("#")))
