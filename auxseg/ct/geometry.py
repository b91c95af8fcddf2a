"""Where voxels lie in the patient: spacing, origin, direction, and the canonical order of axes.

Canonical arrays are [z, y, x] with x to the patient's left, y to the back and z to the head.
Coordinates are mm in LPS, as in DICOM and ITK; sizes are xyz, arrays zyx."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
"""Direction of a scan whose stored axes are the canonical ones."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a grid of voxels lies in the patient.

    Attributes:
        size_xyz: voxels along each axis.
        spacing_xyz_mm: distance between voxel centres along each axis.
        origin_xyz_mm: LPS position of the centre of voxel (0, 0, 0).
        direction: 3x3 matrix by rows, as SimpleITK has it; column j is the LPS unit vector of axis j.
        nifti: header of the NIfTI file it was read from, whose sform and qform its masks carry on; None of others.
    """

    size_xyz: tuple[int, int, int]
    spacing_xyz_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, ...] = IDENTITY
    nifti: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def shape_zyx(self):
        """Shape of the array: (D, H, W)."""
        return self.size_xyz[::-1]

    @property
    def spacing_zyx_mm(self):
        """Spacing in the order of the array's axes."""
        return self.spacing_xyz_mm[::-1]


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How stored axes become canonical ones.

    Attributes:
        axes: by canonical axis x, y, z: the stored axis (0 for x, 1 for y, 2 for z) that it comes from.
        flips: by canonical axis x, y, z: True where the stored axis runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def index_to_mm(geometry, index_xyz):
    """Returns LPS positions of (fractional) voxel indices.

    Args:
        geometry: `Geometry`.
        index_xyz: float or int [..., 3], in the order x, y, z; voxel centres at whole numbers.

    Returns:
        float64 [..., 3] in mm.
    """
    scaled = np.asarray(index_xyz, np.float64) * np.asarray(geometry.spacing_xyz_mm)
    return scaled @ direction_matrix(geometry).T + np.asarray(geometry.origin_xyz_mm)


def mm_to_index(geometry, points_xyz_mm):
    """Returns fractional voxel indices of LPS positions; the inverse of `index_to_mm`.

    Args:
        geometry: `Geometry`.
        points_xyz_mm: float [..., 3], LPS.

    Returns:
        float64 [..., 3] in the order x, y, z; may lie outside the grid.
    """
    offset = np.asarray(points_xyz_mm, np.float64) - np.asarray(geometry.origin_xyz_mm)
    return offset @ np.linalg.inv(direction_matrix(geometry)).T / np.asarray(geometry.spacing_xyz_mm)


def find_orientation(geometry):
    """Returns the `Orientation` that brings a grid nearest to the LPS axes.

    Of the 6 orders of the axes, the one with the largest sum of |cosines| to x, y and z; a grid that lies
    between two orders takes the first.
    """
    matrix = direction_matrix(geometry)
    orders = list(itertools.permutations(range(3)))
    closeness = [sum(abs(matrix[row, column]) for row, column in enumerate(order)) for order in orders]
    axes = orders[int(np.argmax(np.round(closeness, 6)))]
    return Orientation(axes, tuple(bool(matrix[row, column] < 0) for row, column in enumerate(axes)))


def to_canonical_geometry(geometry, orientation):
    """Returns the canonical `Geometry` of the same voxels at the same places."""
    axes, flips = list(orientation.axes), np.asarray(orientation.flips)
    size = np.asarray(geometry.size_xyz)
    first = np.zeros(3)
    first[axes] = np.where(flips, size[axes] - 1, 0)
    matrix = direction_matrix(geometry)[:, axes] * np.where(flips, -1.0, 1.0)
    return Geometry(
        size_xyz=tuple(int(n) for n in size[axes]),
        spacing_xyz_mm=tuple(geometry.spacing_xyz_mm[axis] for axis in axes),
        origin_xyz_mm=tuple(float(v) for v in index_to_mm(geometry, first)),
        direction=tuple(float(v) + 0.0 for v in matrix.ravel()),
    )


def to_canonical(volume, orientation):
    """Returns a stored array [z, y, x] in canonical orientation, [D, H, W]; a view, nothing is copied."""
    turned = np.transpose(volume, _array_axes(orientation))
    return turned[_array_flips(orientation)]


def from_canonical(volume, orientation):
    """Returns a canonical array [D, H, W] in the scan's own frame [z, y, x]: undoes `to_canonical`."""
    return np.transpose(volume[_array_flips(orientation)], np.argsort(_array_axes(orientation)))


def geometry_difference(first, second):
    """Returns in words how two grids differ, or '' where they are the same.

    Grids of one size are the same when no corner of one lies more than a quarter of the smallest spacing
    from the same corner of the other: header values are often rounded.
    """
    if first.size_xyz != second.size_xyz:
        return f"size {format_size(first.size_xyz)} and {format_size(second.size_xyz)}"
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in first.size_xyz])))
    apart_mm = np.linalg.norm(index_to_mm(first, corners) - index_to_mm(second, corners), axis=-1).max()
    if apart_mm <= 0.25 * min(first.spacing_xyz_mm):
        return ""
    for name in ("spacing_xyz_mm", "origin_xyz_mm", "direction"):
        values = np.asarray(getattr(first, name)), np.asarray(getattr(second, name))
        if not np.allclose(*values, rtol=1e-4, atol=1e-3):
            return f"{name} {format_numbers(values[0])} and {format_numbers(values[1])}, corners up to {apart_mm:.2f} mm apart"
    return f"corners up to {apart_mm:.2f} mm apart"


def direction_matrix(geometry):
    return np.asarray(geometry.direction, np.float64).reshape(3, 3)


def _array_axes(orientation):
    """Order for np.transpose: array axis a of [z, y, x] is the stored axis 2 - a."""
    return tuple(2 - axis for axis in reversed(orientation.axes))


def _array_flips(orientation):
    return tuple(slice(None, None, -1 if flip else 1) for flip in reversed(orientation.flips))


def format_size(numbers):
    return "x".join(str(n) for n in numbers)


def format_numbers(numbers):
    return "(" + ", ".join(f"{n:.6g}" for n in numbers) + ")"
