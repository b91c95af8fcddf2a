"""Nodules in millimetres as pixels of slices.

A nodule of `annotations.csv` is a sphere: a centre in LPS and a diameter. It crosses a slice when the slice's
plane cuts the sphere, and a pixel belongs to it when at least half of the pixel's area lies inside the cut
(by 8x8 points in each pixel), or, where no pixel is half covered, the one that is covered most. A sphere that
fits between two planes is painted on the nearer one, with the area that its volume has over the thickness of
the slice: no nodule is lost to thick slices.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from auxseg.base import files
from auxseg.base.classes import NODULE
from auxseg.base.errors import InputError
from auxseg.ct.geometry import mm_to_index

MAX_DIAMETER_MM = 100.0
_POINTS = (np.arange(8) + 0.5) / 8 - 0.5  # of a pixel, along one side


@dataclasses.dataclass(frozen=True)
class Sphere:
    """A nodule as `annotations.csv` has it: LPS centre and diameter in mm."""

    centre_xyz_mm: tuple[float, float, float]
    diameter_mm: float


@dataclasses.dataclass(frozen=True)
class Patch:
    """A nodule's pixels on one slice.

    Attributes:
        index_z: the canonical slice.
        row, column: of the first pixel of `inside`.
        inside: bool [h, w].
    """

    index_z: int
    row: int
    column: int
    inside: np.ndarray


def read_annotations(path):
    """Returns the nodules of `annotations.csv`: {series UID: (Sphere, ...)}; a row that is there twice counts once.

    Raises:
        InputError: the file is missing, lacks a column, or has a value that is no position or diameter.
    """
    columns = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
    spheres = {}
    for number, row in enumerate(files.read_cells(path, columns, hint="copy LUNA16's again"), start=2):
        sphere = _sphere(row, f"{path}, line {number}")
        found = spheres.setdefault(row["seriesuid"].strip(), [])
        if sphere not in found:
            found.append(sphere)
    return {uid: tuple(found) for uid, found in spheres.items()}


def sphere_patches(geometry, sphere):
    """Returns a nodule's `Patch`es, one for each slice that it crosses, at least one.

    Args:
        geometry: canonical `geometry.Geometry` of the scan.
        sphere: `Sphere`.

    Raises:
        InputError: the centre lies outside the scan.
    """
    centre = mm_to_index(geometry, sphere.centre_xyz_mm)
    if np.any(centre < -0.5) or np.any(centre > np.asarray(geometry.size_xyz) - 0.5):
        place = ", ".join(f"{value:.1f}" for value in sphere.centre_xyz_mm)
        raise InputError(f"a nodule at ({place}) mm lies outside the scan")
    radii = _cut_radii_mm(geometry, sphere, centre[2])
    return [_disc_patch(geometry, centre, index_z, radius_mm) for index_z, radius_mm in radii.items()]


def paint(mask, patches):
    """Returns a copy of a mask of class indices, uint8 [H, W], with nodules painted over all else."""
    painted = mask.copy()
    for patch in patches:
        rows, columns = patch.inside.shape
        area = painted[patch.row : patch.row + rows, patch.column : patch.column + columns]
        area[patch.inside] = NODULE
    return painted


def by_slice(nodules):
    """Returns {slice index: the patches on it}, one for each nodule that crosses the slice.

    Args:
        nodules: for each nodule its patches.
    """
    slices = {}
    for patches in nodules:
        for patch in patches:
            slices.setdefault(patch.index_z, []).append(patch)
    return slices


def _sphere(row, where):
    try:
        centre = tuple(float(row[name]) for name in ("coordX", "coordY", "coordZ"))
        diameter_mm = float(row["diameter_mm"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: expected a position and a diameter in mm: {error}") from error
    if not all(map(math.isfinite, centre)) or not 0 < diameter_mm <= MAX_DIAMETER_MM:
        raise InputError(
            f"{where}: position {centre} and diameter {diameter_mm}, expected finite numbers and a diameter "
            f"above 0 and at most {MAX_DIAMETER_MM:g} mm"
        )
    return Sphere(centre, diameter_mm)


def _cut_radii_mm(geometry, sphere, centre_z):
    """Returns {slice: radius of the disc that it shows}."""
    radius_mm, thickness_mm = sphere.diameter_mm / 2, geometry.spacing_xyz_mm[2]
    slices = np.arange(geometry.size_xyz[2])
    distance_mm = np.abs(slices - centre_z) * thickness_mm
    cut = distance_mm < radius_mm
    if not cut.any():
        area_mm2 = 4 / 3 * math.pi * radius_mm**3 / thickness_mm
        return {int(np.argmin(distance_mm)): math.sqrt(area_mm2 / math.pi)}
    radii = np.sqrt(radius_mm**2 - distance_mm[cut] ** 2)
    return dict(zip(slices[cut].tolist(), radii.tolist(), strict=True))


def _disc_patch(geometry, centre, index_z, radius_mm):
    """Returns the pixels at least half inside a disc around the centre (x, y in pixels)."""
    (width, height, _), (dx_mm, dy_mm, _) = geometry.size_xyz, geometry.spacing_xyz_mm
    columns = _range(centre[0], radius_mm / dx_mm, width)
    rows = _range(centre[1], radius_mm / dy_mm, height)
    x_mm = (columns[:, None] + _POINTS - centre[0]).ravel() * dx_mm
    y_mm = (rows[:, None] + _POINTS - centre[1]).ravel() * dy_mm
    points = np.hypot(x_mm, y_mm[:, None]) <= radius_mm
    cover = points.reshape(len(rows), 8, len(columns), 8).mean(axis=(1, 3))
    inside = cover >= 0.5
    if not inside.any():
        inside = np.zeros_like(inside)
        inside[_nearest(rows, centre[1]), _nearest(columns, centre[0])] = True
    return Patch(index_z, int(rows[0]), int(columns[0]), inside)


def _range(centre, radius, size):
    """Returns the pixels that an interval touches, inside the image, at least one."""
    first = min(max(0, math.floor(centre - radius + 0.5)), size - 1)
    return np.arange(first, max(first, min(math.ceil(centre + radius - 0.5), size - 1)) + 1)


def _nearest(pixels, centre):
    """Returns the place of the pixel in which the centre lies: no pixel is covered more by a small disc."""
    return int(np.argmin(np.abs(pixels - centre)))
