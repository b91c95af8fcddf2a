"""Painting in millimetres: signed distances become HU on a canvas of pixels, with partial volume.

A tissue covers a pixel by `0.5 - distance / pixel`, clipped to [0, 1]: exact for a straight edge along the
pixel's sides, near enough for others. So edges are smooth without supersampling, and a mask (distance
below zero) is the half-covered contour of what is seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.datasets.phantom import anatomy


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The pixels of a scan and what is the same in each of its slices.

    Attributes:
        places: `Places` of the pixel centres, [1, W] and [H, 1].
        pixel_mm: distance between them.
        dome: `anatomy.dome_height` over them, two float32 [H, W].
        background: float32 [H, W] in HU: air and the table.
        field: bool [H, W], inside the scanner's round field of view; None where all of it is shown.
        padding_hu: written outside the field.
        blur_mm, noise_hu: standard deviations of the point spread and of the noise.
    """

    places: anatomy.Places
    pixel_mm: float
    dome: tuple[np.ndarray, np.ndarray]
    background: np.ndarray
    field: np.ndarray | None
    padding_hu: float
    blur_mm: float
    noise_hu: float


def bounds(inside):
    """Returns the index of the smallest box that holds all of `inside` bool [H, W], and a pixel more."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return tuple(slice(max(some[0] - 1, 0), some[-1] + 2) for some in (rows, columns))


def cropped(canvas, box):
    """Returns the part of the canvas in a box, as views, for painting where there is something to paint."""
    rows, columns = box
    places = anatomy.Places(
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
    """Returns the share of each pixel that lies inside, float32, from the signed distance in mm."""
    share = distance * np.float32(-1.0 / pixel_mm)
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


def paint_ellipse(image, canvas, ellipse, hu, within=None):
    """Paints an axis-parallel ellipse (x, y, half width, half depth; mm), times `within` if given."""
    x0, y0, width, depth = (float(value) for value in ellipse)
    box = window(canvas, x0 - width - 2, x0 + width + 2, y0 - depth - 2, y0 + depth + 2)
    if box is None or min(width, depth) < 0.5:
        return
    index, x, y = box
    far = np.hypot((x - x0) / np.float32(width), (y - y0) / np.float32(depth))
    share = coverage((far - 1) * np.float32(min(width, depth)), canvas.pixel_mm)
    paint(image[index], share if within is None else share * within[index], hu)


def paint_box(image, canvas, y0, width, depth, hu):
    """Paints a box with rounded sides around x = 0."""
    box = window(canvas, -width - 2, width + 2, y0 - depth - 2, y0 + depth + 2)
    if box is None:
        return
    index, x, y = box
    across, along = np.abs(x / np.float32(width)), np.abs((y - np.float32(y0)) / np.float32(depth))
    far = (across**3.5 + along**3.5) ** (1 / 3.5)
    paint(image[index], coverage((far - 1) * np.float32(depth), canvas.pixel_mm), hu)


def capsule_distances(canvas, capsules, z_mm):
    """Yields for each capsule that the slice touches: the index of a box, and signed distances in it."""
    near = _near(canvas, capsules, z_mm)
    if not len(near.start_mm):
        return
    (num_rows, num_columns), corners = canvas.background.shape, zip(*_boxes(canvas, near, z_mm), strict=True)
    for which, (left, top, size) in enumerate(corners):
        columns = np.arange(max(left, 0), min(left + size, num_columns))
        rows = np.arange(max(top, 0), min(top + size, num_rows))
        if len(columns) and len(rows):
            index = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            yield index, _distances(canvas, near, [which], columns, rows[:, None], z_mm)[0]


def stamp(tissue, canvas, capsules, z_mm, outside_hu, inside_hu):
    """Paints many capsules in place, boxes of like size at a time.

    What is brighter than its surroundings only ever brightens the tissue, what is darker darkens
    it, so that the order does not matter. Tubes thinner than a pixel are paler.
    """
    near = _near(canvas, capsules, z_mm)
    if not len(near.start_mm):
        return
    left, top, size = _boxes(canvas, near, z_mm)
    combine = np.maximum if inside_hu > outside_hu else np.minimum
    order, paleness = np.argsort(size), np.minimum(1.0, 2.0 * near.end_radius_mm / canvas.pixel_mm)
    for first in range(0, len(order), 32):
        some = order[first : first + 32]
        offsets = np.arange(size[some[-1]])
        columns, rows = left[some, None, None] + offsets, top[some, None, None] + offsets[:, None]
        share = coverage(_distances(canvas, near, some, columns, rows, z_mm), canvas.pixel_mm)
        share *= paleness[some, None, None].astype(np.float32)
        share *= (columns >= 0) & (columns < tissue.shape[1]) & (rows >= 0) & (rows < tissue.shape[0])
        touched = np.flatnonzero(share)
        places = (rows * tissue.shape[1] + columns).ravel()[touched]
        values = outside_hu + share.ravel()[touched] * np.float32(inside_hu - outside_hu)
        combine.at(tissue.reshape(-1), places, values)


def _near(canvas, capsules, z_mm):
    """Returns the capsules that touch the slice at `z_mm`."""
    reach = np.maximum(capsules.start_radius_mm, capsules.end_radius_mm) + 0.5 * canvas.pixel_mm
    z = np.stack([capsules.start_mm[:, 2], capsules.end_mm[:, 2]])
    return capsules.chosen(np.flatnonzero((z.min(0) - reach < z_mm) & (z.max(0) + reach > z_mm)))


def _boxes(canvas, capsules, z_mm):
    """Returns left, top and size [M] in pixels of squares around what the slice can show of capsules."""
    reach = np.maximum(capsules.start_radius_mm, capsules.end_radius_mm) + canvas.pixel_mm
    start, along = capsules.start_mm, capsules.end_mm - capsules.start_mm
    rise = np.where(np.abs(along[:, 2]) < 1e-6, 1e-6, along[:, 2])
    cuts = (z_mm + np.stack([-reach, reach]) - start[:, 2]) / rise
    ends = start[:, :2] + np.clip(np.sort(cuts, axis=0), 0.0, 1.0)[..., None] * along[:, :2]
    first = np.array([canvas.places.x_mm[0, 0], canvas.places.y_mm[0, 0]])
    low = np.floor((ends.min(0) - reach[:, None] - first) / canvas.pixel_mm).astype(int)
    high = np.ceil((ends.max(0) + reach[:, None] - first) / canvas.pixel_mm).astype(int)
    return low[:, 0], low[:, 1], (high - low).max(axis=1) + 1


def _distances(canvas, capsules, some, columns, rows, z_mm):
    """Returns the signed distances [m, h, w] in mm of pixels to the capsules `some` [m]."""
    start = capsules.start_mm[some].astype(np.float32)
    along = capsules.end_mm[some].astype(np.float32) - start
    along = along.T[:, :, None, None]
    pixel = np.float32(canvas.pixel_mm)
    x = canvas.places.x_mm[0, 0] + columns.astype(np.float32) * pixel - start[:, 0, None, None]
    y = canvas.places.y_mm[0, 0] + rows.astype(np.float32) * pixel - start[:, 1, None, None]
    z = np.float32(z_mm) - start[:, 2, None, None]
    scaled = along / np.maximum((along * along).sum(0), np.float32(1e-9))
    share = np.clip(x * scaled[0] + (y * scaled[1] + z * scaled[2]), 0, 1)
    x, y, z = x - share * along[0], y - share * along[1], z - share * along[2]
    first, last = (
        radius[some].astype(np.float32)[:, None, None]
        for radius in (capsules.start_radius_mm, capsules.end_radius_mm)
    )
    return np.sqrt(x * x + y * y + z * z) - (first + share * (last - first))


def acquire(image, canvas, rng):
    """Returns the image as a scanner gives it: noisy, blurred, cut to its range and field.

    The noise goes through the same filter as the image, as in a reconstruction: that gives its grain.
    """
    sigma = canvas.blur_mm / canvas.pixel_mm
    if canvas.noise_hu > 0:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(canvas.noise_hu * _noise_gain(sigma))
        image += noise
    if sigma > 0:
        image = ndimage.gaussian_filter(image, sigma, truncate=3.0)
    np.clip(image, -1024, 3071, out=image)
    if canvas.field is not None:
        image[~canvas.field] = canvas.padding_hu
    return image


def _noise_gain(sigma):
    """Returns by how much to strengthen white noise so that a Gaussian filter leaves it at strength 1."""
    if sigma <= 0:
        return 1.0
    impulse = np.zeros(2 * int(3.0 * sigma + 0.5) + 3)
    impulse[len(impulse) // 2] = 1.0
    return 1.0 / float((ndimage.gaussian_filter1d(impulse, sigma, truncate=3.0) ** 2).sum())
