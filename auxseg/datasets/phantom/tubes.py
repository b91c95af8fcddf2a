"""Tubes in millimetres, and how a slice of some thickness shows them: vessels, airways, bowel, arms.

Axes are those of `anatomy`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from auxseg.datasets.phantom.paint import coverage

_SOME = 32  # tubes at a time


@dataclasses.dataclass(frozen=True)
class Capsules:
    """Tapering tubes with round ends.

    Attributes:
        start_mm, end_mm: [M, 3] x, y, z.
        start_radius_mm, end_radius_mm: [M].
    """

    start_mm: np.ndarray
    end_mm: np.ndarray
    start_radius_mm: np.ndarray
    end_radius_mm: np.ndarray

    def chosen(self, some):
        """Returns the tubes of indices `some`."""
        return Capsules(*(getattr(self, field.name)[some] for field in dataclasses.fields(self)))

    def widened(self, by_mm):
        """Returns the same tubes, `by_mm` (a number or [M]) thicker all round."""
        return dataclasses.replace(
            self, start_radius_mm=self.start_radius_mm + by_mm, end_radius_mm=self.end_radius_mm + by_mm
        )


def join(parts):
    """Returns several `Capsules` as one."""
    fields = [field.name for field in dataclasses.fields(Capsules)]
    return Capsules(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def from_rows(rows):
    """Returns `Capsules` of rows (start [3], end [3], start radius, end radius)."""
    return Capsules(*(np.array(column, float) for column in zip(*rows, strict=True)))


def along(points_mm, radii_mm):
    """Returns `Capsules` along a line of points [P, 3] with a radius [P] at each."""
    points_mm, radii_mm = np.asarray(points_mm, float), np.asarray(radii_mm, float)
    return Capsules(points_mm[:-1], points_mm[1:], radii_mm[:-1], radii_mm[1:])


def bend(rng, start, end, piece_mm=9.0, sway=0.10):
    """Returns points about every `piece_mm` from `start` (left out) to `end`, on a gentle arc."""
    length = math.dist(start, end)
    num_pieces = max(1, min(36, round(length / piece_mm)))
    if num_pieces == 1:
        return (end,)
    share = np.arange(1, num_pieces + 1)[:, None] / num_pieces
    away = rng.normal(0.0, sway * length, 3) * (share * (1.0 - share))
    return start + share * (end - start) + away


def distances_at(canvas, capsules, z_mm):
    """Yields for each tube that the slice touches: its number, the index of a box, signed distances there."""
    which = _near(canvas, capsules, z_mm)
    if not len(which):
        return
    near = capsules.chosen(which)
    num_rows, num_columns = canvas.background.shape
    for place, (left, top, size) in enumerate(zip(*_boxes(canvas, near, z_mm), strict=True)):
        columns = np.arange(max(left, 0), min(left + size, num_columns))
        rows = np.arange(max(top, 0), min(top + size, num_rows))
        if len(columns) and len(rows):
            index = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            yield which[place], index, _distances(canvas, near, place, columns, rows[:, None], z_mm)


def stamp(tissue, canvas, capsules, z_mm, outside_hu, inside_hu):
    """Paints many thin tubes in place, boxes of like size at a time.

    What is brighter than its surroundings only ever brightens the tissue, what is darker darkens
    it, so that the order does not matter. A tube that fills a pixel or the slice's thickness in part is paler.
    """
    near = capsules.chosen(_near(canvas, capsules, z_mm))
    if not len(near.start_mm):
        return
    left, top, size = _boxes(canvas, near, z_mm)
    combine = np.maximum if inside_hu > outside_hu else np.minimum
    order = np.argsort(size)
    for first in range(0, len(order), _SOME):
        some = order[first : first + _SOME]
        offsets = np.arange(size[some[-1]])
        columns, rows = left[some, None, None] + offsets, top[some, None, None] + offsets[:, None]
        share = _shares(canvas, near.chosen(some), columns, rows, z_mm)
        share *= (columns >= 0) & (columns < tissue.shape[1]) & (rows >= 0) & (rows < tissue.shape[0])
        touched = np.flatnonzero(share)
        places = (rows * tissue.shape[1] + columns).ravel()[touched]
        values = outside_hu + share.ravel()[touched] * np.float32(inside_hu - outside_hu)
        combine.at(tissue.reshape(-1), places, values)


def _near(canvas, capsules, z_mm):
    """Returns the numbers of the tubes that touch the slice at `z_mm`."""
    reach = np.maximum(capsules.start_radius_mm, capsules.end_radius_mm) + 0.5 * canvas.thickness_mm
    z = np.stack([capsules.start_mm[:, 2], capsules.end_mm[:, 2]])
    return np.flatnonzero((z.min(0) - reach < z_mm) & (z.max(0) + reach > z_mm))


def _boxes(canvas, capsules, z_mm):
    """Returns left, top and size [M] in pixels of squares around what the slice can show of tubes."""
    wide = np.maximum(capsules.start_radius_mm, capsules.end_radius_mm)
    reach, high = wide + canvas.pixel_mm, wide + 0.5 * canvas.thickness_mm
    start, line = capsules.start_mm, capsules.end_mm - capsules.start_mm
    rise = np.where(np.abs(line[:, 2]) < 1e-6, 1e-6, line[:, 2])
    cuts = (z_mm + np.stack([-high, high]) - start[:, 2]) / rise
    ends = start[:, :2] + np.clip(np.sort(cuts, axis=0), 0.0, 1.0)[..., None] * line[:, :2]
    first = np.array([canvas.places.x_mm[0, 0], canvas.places.y_mm[0, 0]])
    low = np.floor((ends.min(0) - reach[:, None] - first) / canvas.pixel_mm).astype(int)
    high = np.ceil((ends.max(0) + reach[:, None] - first) / canvas.pixel_mm).astype(int)
    return low[:, 0], low[:, 1], (high - low).max(axis=1) + 1


def _offsets(canvas, start, columns, rows):
    """Returns x and y in mm of pixels from the starts of tubes; all broadcast to [..., h, w]."""
    pixel = np.float32(canvas.pixel_mm)
    x = canvas.places.x_mm[0, 0] + columns.astype(np.float32) * pixel - start[0]
    y = canvas.places.y_mm[0, 0] + rows.astype(np.float32) * pixel - start[1]
    return x, y


def _distances(canvas, capsules, number, columns, rows, z_mm):
    """Returns the signed distances [h, w] in mm of pixels in the middle of the slice to one tube."""
    start = capsules.start_mm[number].astype(np.float32)
    line = capsules.end_mm[number].astype(np.float32) - start
    x, y = _offsets(canvas, start, columns, rows)
    z = np.float32(z_mm) - start[2]
    scaled = line / max(float(line @ line), 1e-9)
    share = np.clip(x * scaled[0] + (y * scaled[1] + z * scaled[2]), 0, 1)
    x, y, z = x - share * line[0], y - share * line[1], z - share * line[2]
    first, last = np.float32(capsules.start_radius_mm[number]), np.float32(capsules.end_radius_mm[number])
    return np.sqrt(x * x + y * y + z * z) - (first + share * (last - first))


def _shares(canvas, capsules, columns, rows, z_mm):
    """Returns the shares [m, h, w] of the pixels, through the slice's thickness, that tubes [m] fill.

    Over each pixel a tube reaches some way above and below its axis: that much of the thickness is filled.
    """
    columns_of = (capsules.start_mm.T, (capsules.end_mm - capsules.start_mm).T)
    start, line = (part.astype(np.float32)[:, :, None, None] for part in columns_of)
    first, last = (radius.astype(np.float32)[:, None, None]
                   for radius in (capsules.start_radius_mm, capsules.end_radius_mm))  # fmt: skip
    across = np.maximum(np.hypot(line[0], line[1]), np.float32(1e-3))
    sine = across / np.hypot(across, line[2])
    x, y = _offsets(canvas, start, columns, rows)
    ahead = (x * line[0] + y * line[1]) / across
    share = np.clip(ahead / across, 0, 1)
    radius = first + share * (last - first)
    x, y = x - share * line[0], y - share * line[1]
    square = x * x + y * y
    filled = coverage(np.sqrt(square) - radius, canvas.pixel_mm)
    filled *= np.minimum(np.float32(2.0 / canvas.pixel_mm) * radius, 1)
    half = np.sqrt(np.maximum(radius * radius - square, np.float32(0.25) * radius * radius)) / sine
    axis, ends = start[2] + share * line[2], np.stack([start[2], start[2] + line[2]])
    low, high = np.maximum(axis - half, ends.min(0) - radius), np.minimum(axis + half, ends.max(0) + radius)
    thickness = np.float32(canvas.thickness_mm)
    bottom, top = np.float32(z_mm) - thickness / 2, np.float32(z_mm) + thickness / 2
    filled *= np.clip((np.minimum(high, top) - np.maximum(low, bottom)) / thickness, 0, 1)
    return filled
