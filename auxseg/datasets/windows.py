"""Square windows for the nodule look: cut from crops or scans at their own resolution, moved and made uncertain.

Everything that could tell a crop from a scan by other means than its content is given to both: the place in the
window, the scale, the scale of the HU (of crops it is known to a fifth), noise, and 8-bit steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.ndimage

LUNG_HU = -850.0
"""Where the HU scale of a crop is sure: its estimate rests on lung, and errs above it."""


class Ranges(NamedTuple):
    """How far windows are changed; each is to either side.

    Attributes:
        shift_px: of the window's centre from the point of interest.
        scale: share of the size.
        degrees: of turning.
        hu_scale: share of the distance from `LUNG_HU`.
        offset_hu: added.
        noise_hu: the largest standard deviation of the noise that is added.
        step_hu: the widest step of values, as of images of 8 bits.
    """

    shift_px: int = 28
    scale: float = 0.2
    degrees: float = 20.0
    hu_scale: float = 0.2
    offset_hu: float = 40.0
    noise_hu: float = 30.0
    step_hu: float = 12.0


def draw_window(generator, planes, centre_yx, *, size, ranges, enlarge=1.0):
    """Returns a window as the network is trained on it: (image float32 in HU, other planes float32), [size, size] each.

    Turned, scaled, shifted and mirrored at random, then its HU are made uncertain. Edges are mirrored.

    Args:
        generator: NumPy generator, which everything is drawn from.
        planes: image in HU first, then targets from 0 to 1, each float32 [H, W].
        centre_yx: rows and columns of the point of interest.
        size: pixels.
        ranges: `Ranges`.
        enlarge: how many times larger everything is shown.
    """
    matrix = _draw_matrix(generator, ranges) / enlarge
    shift = generator.uniform(-ranges.shift_px, ranges.shift_px, 2) / enlarge
    middle = (size - 1) / 2.0
    offset = np.asarray(centre_yx) + shift - matrix @ (middle, middle)
    moved = [
        scipy.ndimage.affine_transform(
            plane, matrix, offset, (size, size), np.float32, order=1, mode="mirror"
        )
        for plane in planes
    ]
    return blur_scale(generator, moved[0], ranges), *moved[1:]


def blur_scale(generator, image_hu, ranges):
    """Returns an image whose HU scale, offset, noise and steps are drawn; float32, same shape."""
    scale = np.exp(generator.uniform(-1.0, 1.0) * np.log1p(ranges.hu_scale))
    offset = generator.uniform(-ranges.offset_hu, ranges.offset_hu)
    noise = generator.uniform(0.0, ranges.noise_hu)
    step = generator.uniform(1.0, ranges.step_hu)
    image = LUNG_HU + (image_hu - LUNG_HU) * scale + offset
    image = image + noise * generator.standard_normal(image.shape)
    return (np.round(image / step) * step).astype(np.float32)


def _draw_matrix(generator, ranges):
    angle = np.deg2rad(generator.uniform(-ranges.degrees, ranges.degrees))
    scale = np.exp(generator.uniform(-1.0, 1.0) * np.log1p(ranges.scale))
    mirror = np.diag(generator.choice((-1.0, 1.0), 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ mirror / scale
