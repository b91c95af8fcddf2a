"""How sharp a scan is, and how a soft one is made as sharp as what the nodule look was trained on.

The kernel of a reconstruction decides how fine a structure stays. In soft slices the edges of vessels are as blurred as those of
nodules, and the look takes some for nodules. Sharpness is measured in the air of the lungs: what a blur of a millimetre
takes away. It falls with thick slices and with little noise too. A soft scan gets a multiple of that added, an unsharp mask.

That has a price: the look marks less in what is sharpened, false ones and nodules (experiments/results/study_box.md). So
it is done where a scan is softer than four fifths of what the look has seen, and only there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

_BLUR_MM = 1.0
_AIR_HU = -700  # of the lungs; vessels and walls are above
_LEAST_PIXELS = 300  # of air in a slice that is measured
_MOST_SLICES = 24
_MOST_GAIN = 2.0  # few of the crops that the look was trained on would need more
_GAIN_STEP = 0.01
_DEVIATIONS = 1.4826  # standard deviations to a median absolute value, of a normal distribution


class Known(NamedTuple):
    """How sharp what a network was trained on is, in HU.

    Attributes:
        soft_hu: a fifth of it is softer.
        usual_hu: half of it is.
    """

    soft_hu: float
    usual_hu: float


NEVER = Known(0.0, 0.0)
"""No scan is softer."""


def measure(read, inside, spacing_yx_mm):
    """Returns the `Detail` of a scan, from some of its slices.

    Args:
        read: index of a slice -> [H, W] in HU.
        inside: bool [D, H, W], the lungs.
        spacing_yx_mm: distance of rows and of columns.
    """
    holding = np.flatnonzero(inside.any(axis=(1, 2)))
    chosen = np.unique(np.round(np.linspace(0, len(holding) - 1, _MOST_SLICES)).astype(int))
    found = []
    for index in holding[chosen] if len(holding) else ():
        image = read(index).astype(np.float32)
        air = inside[index] & (image < _AIR_HU)
        if np.count_nonzero(air) >= _LEAST_PIXELS:
            fine = take_detail(image, spacing_yx_mm)
            found.append((fine[air], take_detail(fine, spacing_yx_mm)[air]))
    return Detail(found)


class Detail:
    """What a blur takes away from slices of a scan, in the air of its lungs.

    Args:
        slices: (what it takes away, what it takes away from that) float32 [n] of each slice, in HU.
    """

    def __init__(self, slices):
        self._slices = slices

    def sharpness_hu(self, gain=0.0):
        """Returns the standard deviation of the detail after sharpening, in HU; NaN where nothing could be measured."""
        levels = [np.median(np.abs(fine + gain * finer)) for fine, finer in self._slices]
        return float(_DEVIATIONS * np.median(levels)) if levels else float("nan")

    def find_gain(self, known):
        """Returns the gain that makes a soft scan as sharp as is usual, at most `_MOST_GAIN`.

        0.0 where it is not soft, or where nothing could be measured.
        """
        if not self.sharpness_hu() < known.soft_hu:
            return 0.0
        low, high = 0.0, _MOST_GAIN
        while high - low > _GAIN_STEP:
            middle = (low + high) / 2.0
            low, high = (middle, high) if self.sharpness_hu(middle) < known.usual_hu else (low, middle)
        return high


def take_detail(image, spacing_yx_mm):
    """Returns what a blur takes away from an image float32 [H, W]."""
    return image - ndimage.gaussian_filter(image, [_BLUR_MM / mm for mm in spacing_yx_mm])


def sharpen(image, gain, spacing_yx_mm):
    """Returns an image [H, W] with its detail added `gain` times, float32."""
    image = np.asarray(image, np.float32)
    return image + np.float32(gain) * take_detail(image, spacing_yx_mm)


def reader(read, inside, spacing_yx_mm, known):
    """Returns (read, gain): how slices are read, sharpened where the scan is soft, and how much; arguments of `measure`."""
    gain = measure(read, inside, spacing_yx_mm).find_gain(known)
    if not gain:
        return read, gain
    return lambda index: sharpen(read(index), gain, spacing_yx_mm), gain
