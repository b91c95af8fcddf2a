"""Painting in millimetres: signed distances become HU on a canvas of pixels, with partial volume.

A tissue covers a pixel by `0.5 - distance / pixel`, clipped to [0, 1]: exact for a straight edge along the
pixel's sides, near enough for others. So edges are smooth without supersampling, and a mask (distance
below zero) is the half-covered contour of what is seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import surfaces


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The pixels of a scan and what is the same in each of its slices.

    Attributes:
        places: `Places` of the pixel centres, [1, W] and [H, 1].
        pixel_mm: distance between them.
        thickness_mm: of a slice.
        dome: `surfaces.dome_height` over them, two float32 [H, W].
        background: float32 [H, W] in HU: air and the table.
        field: bool [H, W], inside the scanner's round field of view; None where all of it is shown.
        scanner: `scanner.Scanner`, which sees what is painted.
    """

    places: surfaces.Places
    pixel_mm: float
    thickness_mm: float
    dome: tuple[np.ndarray, np.ndarray]
    background: np.ndarray
    field: np.ndarray | None
    scanner: object


def bounds(inside):
    """Returns the index of the smallest box that holds all of `inside` bool [H, W], and a pixel more."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return tuple(slice(max(some[0] - 1, 0), some[-1] + 2) for some in (rows, columns))


def cropped(canvas, box):
    """Returns the part of the canvas in a box, as views, for painting where there is something to paint."""
    rows, columns = box
    places = surfaces.Places(
        canvas.places.x_mm[:, columns],
        canvas.places.y_mm[rows],
        canvas.places.radius_mm[box],
        canvas.places.angle_bin[box],
    )
    return dataclasses.replace(
        canvas,
        places=places,
        dome=tuple(field[box] for field in canvas.dome),
        background=canvas.background[box],
        field=None if canvas.field is None else canvas.field[box],
    )


def coverage(distance, pixel_mm):
    """Returns the share of each pixel that lies inside, float32, from the signed distance in mm.

    Args:
        distance: float32 [...].
        pixel_mm: over how many mm the edge goes, a number or float32 [...]: the pixel, or what the slice smears it to.
    """
    share = distance * (-1.0 / pixel_mm)
    share += np.float32(0.5)
    np.maximum(share, 0, out=share)
    return np.minimum(share, 1, out=share)


def paint(image, share, hu):
    """Mixes `hu` into `image` in place."""
    image += share * (np.float32(hu) - image)


def paint_field(image, share, other):
    other -= image
    other *= share
    image += other


def brighten(tissue, share, base, hu):
    """Paints `hu` over lung of `base` HU in place where that is brighter than what is there."""
    np.maximum(tissue, base + share * np.float32(hu - base), out=tissue)


def window(canvas, x_low, x_high, y_low, y_high):
    """Returns the pixels of a box in mm: index, x [1, w], y [h, 1]; None when it misses the image."""
    x, y, pixel = canvas.places.x_mm, canvas.places.y_mm, canvas.pixel_mm
    first_x, first_y = float(x[0, 0]), float(y[0, 0])
    left, right = int((x_low - first_x) / pixel), int((x_high - first_x) / pixel) + 2
    top, bottom = int((y_low - first_y) / pixel), int((y_high - first_y) / pixel) + 2
    left, top = max(left, 0), max(top, 0)
    if left >= min(right, x.shape[1]) or top >= min(bottom, y.shape[0]):
        return None
    return (slice(top, bottom), slice(left, right)), x[:, left:right], y[top:bottom]


def paint_ellipse(image, canvas, ellipse, hu, smear=0.0):
    """Paints an axis-parallel ellipse (x, y, half width, half depth; mm) that a slice smears by some mm."""
    x0, y0, width, depth = (float(value) for value in ellipse)
    more = 2 + 0.5 * smear
    box = window(canvas, x0 - width - more, x0 + width + more, y0 - depth - more, y0 + depth + more)
    if box is None or min(width, depth) < 0.5:
        return
    index, x, y = box
    far = np.hypot((x - x0) / np.float32(width), (y - y0) / np.float32(depth))
    share = coverage((far - 1) * np.float32(min(width, depth)), np.float32(np.hypot(canvas.pixel_mm, smear)))
    paint(image[index], share, hu)


def paint_box(image, canvas, y0, width, depth, hu):
    """Paints a box with rounded sides around x = 0."""
    box = window(canvas, -width - 2, width + 2, y0 - depth - 2, y0 + depth + 2)
    if box is None:
        return
    index, x, y = box
    across, along = np.abs(x / np.float32(width)), np.abs((y - np.float32(y0)) / np.float32(depth))
    far = (across**3.5 + along**3.5) ** (1 / 3.5)
    paint(image[index], coverage((far - 1) * np.float32(depth), canvas.pixel_mm), hu)
