"""Whole scans as the detector sees them: equal voxels, the lungs and a margin alone, cubes cut out of them.

HU from -1200 to 600 become 0 to 1, and what lies outside the lungs is water (0.67), both as published. The lungs are those
of a reference mask, since LUNA16 comes with one; it is not the box's own. A scan is resampled linearly.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.ndimage

from auxseg.ct import geometry as ct

WINDOW_HU = (-1200.0, 600.0)
OUTSIDE = 170.0 / 255.0
MARGIN_MM = 10.0
"""Around the lungs that stays: nodules at the pleura lie outside their masks."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """A scan on equal voxels, cut to its lungs.

    Attributes:
        uid: as tables call it.
        values: float16 [D, H, W] in [0, 1].
        lungs: bool [D, H, W], with the margin.
        voxel_mm: side of a voxel.
        start_zyx: voxels of the whole scan before the first of these.
        geometry: `ct.Geometry` of the scan, whose grid begins where this one does.
        nodules: float32 [n, 4], centre and diameter in voxels.
    """

    uid: str
    values: np.ndarray
    lungs: np.ndarray
    voxel_mm: float
    start_zyx: tuple[int, int, int]
    geometry: ct.Geometry
    nodules: np.ndarray

    def to_mm(self, cubes):
        """Returns cubes [n, 4] of voxels as float64 [n, 4]: x, y, z in mm (LPS) and the side in mm."""
        cubes = np.asarray(cubes, np.float64).reshape(-1, 4)
        spacing = np.array(self.geometry.spacing_zyx_mm)
        index = (cubes[:, :3] + self.start_zyx) * self.voxel_mm / spacing
        return np.column_stack([ct.index_to_mm(self.geometry, index[:, ::-1]), cubes[:, 3] * self.voxel_mm])


def create_volume(uid, hu, lungs, geometry, nodules_mm, voxel_mm):
    """Returns the `Volume` of a scan.

    Args:
        uid: of the scan.
        hu: int16 [D, H, W], canonical.
        lungs: bool [D, H, W].
        geometry: `ct.Geometry` of both.
        nodules_mm: float [n, 4], x, y, z in mm (LPS) and the diameter.
        voxel_mm: side of a voxel.
    """
    spacing = np.array(geometry.spacing_zyx_mm)
    inside = resample(lungs.astype(np.float32), spacing, voxel_mm) > 0.5
    inside = scipy.ndimage.distance_transform_edt(~inside) * voxel_mm <= MARGIN_MM
    box = scipy.ndimage.find_objects(inside.astype(np.int8))[0]
    low, high = WINDOW_HU
    scaled = np.clip((resample(hu, spacing, voxel_mm)[box] - low) / (high - low), 0.0, 1.0)
    values = np.where(inside[box], scaled, OUTSIDE).astype(np.float16)
    start = tuple(part.start for part in box)
    nodules_mm = np.asarray(nodules_mm, np.float64).reshape(-1, 4)
    index = ct.mm_to_index(geometry, nodules_mm[:, :3])[:, ::-1]
    nodules = np.column_stack([index * spacing / voxel_mm - start, nodules_mm[:, 3] / voxel_mm])
    return Volume(uid, values, inside[box], voxel_mm, start, geometry, nodules.astype(np.float32))


def resample(array, spacing_zyx_mm, voxel_mm):
    """Returns a volume on voxels of one side, linearly, float32; the first voxel's centre stays where it is.

    Args:
        array: [D, H, W].
        spacing_zyx_mm: of the array.
        voxel_mm: wanted.
    """
    for axis, spacing in enumerate(spacing_zyx_mm):
        count = array.shape[axis]
        places = np.arange(int((count - 1) * spacing / voxel_mm) + 1) * voxel_mm / spacing
        below = np.minimum(places.astype(int), count - 1)
        share = (places - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        above = np.minimum(below + 1, count - 1)
        array = np.take(array, below, axis) * (1 - share) + np.take(array, above, axis) * share
    return array.astype(np.float32)


def cut(volume, corner, side):
    """Returns the cube of `side` voxels from a corner (which may lie outside), float32 [side] * 3; air of water outside."""
    cube = np.full((side,) * 3, OUTSIDE, np.float32)
    low = np.maximum(corner, 0)
    high = np.minimum(np.add(corner, side), volume.values.shape)
    if (high > low).all():
        there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        here = tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
        cube[here] = volume.values[there]
    return cube


def find_places(volume, corner, grid):
    """Returns where the places of a grid lie in the lungs, float32 [d, h, w, 3] from -1 to 1 along each side.

    Args:
        volume: `Volume`.
        corner: voxel of the volume where the grid's cube begins.
        grid: `anchors.Grid`.
    """
    centres = grid.centres()[..., 0, :] + np.asarray(corner, np.float32)
    return (2.0 * centres / np.maximum(np.array(volume.values.shape) - 1, 1) - 1.0).astype(np.float32)


def draw_corner(volume, side, generator, *, at_nodule):
    """Returns the corner of a cube, int [3]: around one of the nodules, not always in its middle, or anywhere in the lungs.

    Args:
        volume: `Volume`.
        side: voxels.
        generator: NumPy generator.
        at_nodule: whether a nodule lies in the cube, where the scan has one.
    """
    if at_nodule and len(volume.nodules):
        *centre, diameter = volume.nodules[generator.integers(len(volume.nodules))]
        room = max(0.0, side / 2 - diameter / 2 - 2)
        centre = np.array(centre) + generator.uniform(-room, room, 3)
    else:
        inside = np.flatnonzero(volume.lungs)
        chosen = inside[generator.integers(len(inside))]
        centre = np.array(np.unravel_index(chosen, volume.lungs.shape))
    return np.floor(centre - side / 2 + 0.5).astype(int)


def nodules_in(volume, corner, side):
    """Returns the nodules whose centre lies in a cube, float32 [n, 4], from its corner."""
    moved = volume.nodules - np.array([*corner, 0], np.float32)
    return moved[((moved[:, :3] >= 0) & (moved[:, :3] < side)).all(axis=1)]


def tile(shape, side, margin):
    """Yields the corners of cubes of `side` voxels whose cores, `margin` voxels from their faces, cover a shape once."""
    core = side - 2 * margin
    axes = [range(-margin, count - margin, core) for count in shape]
    for z in axes[0]:
        for y in axes[1]:
            for x in axes[2]:
                yield np.array([z, y, x])
