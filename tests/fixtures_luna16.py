"""A tiny LUNA16 folder: three scans of 64x64, one prone, with masks and annotations."""

import numpy as np

from auxseg.ct import images
from auxseg.ct.geometry import IDENTITY, Geometry, find_orientation, from_canonical, to_canonical_geometry

UIDS = ("1.2.840.1", "1.2.840.2", "1.2.840.3")
"""In subset 0, subset 0 (prone, 13 slices) and subset 3 (no nodule)."""
SPACING_MM = (1.0, 1.0, 2.5)
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
NODULES = {
    UIDS[0]: [((15.5, 0.0, 15.0), 8.0), ((-18.0, 3.0, 5.0), 5.0)],
    UIDS[1]: [((14.0, -2.0, 15.0), 6.0)],
}
"""LPS centre and diameter in mm: a positive x lies in the left lung."""


def geometry(num_slices, direction=IDENTITY):
    """Returns a grid whose middle column and row are at 0 mm."""
    sign = direction[0]
    return Geometry((64, 64, num_slices), SPACING_MM, (-31.5 * sign, -31.5 * sign, 0.0), direction)


def draw(grid):
    """Returns (image int16, mask uint8 with LUNA16's values), canonical [D, 64, 64].

    Two lungs at -850 HU with their nodules still missing, an airway at -1000, body at 40, air around;
    slice k has 40 + k HU in its body, so that a slice can be told from its neighbours.
    """
    depth = grid.size_xyz[2]
    rows, columns = np.mgrid[:64, :64] - 31.5
    image = np.full((depth, 64, 64), -1000, np.int16)
    mask = np.zeros((depth, 64, 64), np.uint8)
    for index in range(depth):
        image[index][np.hypot(rows, columns) < 30] = 40 + index
        if 1 <= index < depth - 1:
            for value, centre in ((3, 15), (4, -15)):
                mask[index][np.hypot(rows / 1.6, columns - centre) < 10] = value
            mask[index][np.hypot(rows, columns) < 3] = 5
    image[(mask == 3) | (mask == 4)] = -850
    image[mask == 5] = -1000
    return image, mask


def write_scan(folder, uid, subset, num_slices=12, direction=IDENTITY, mask_direction=None):
    """Writes one scan and its mask as LUNA16 has them, stored along `direction`."""
    grid = geometry(num_slices, direction)
    orientation = find_orientation(grid)
    image, mask = draw(to_canonical_geometry(grid, orientation))
    for place in (folder / f"subset{subset}", folder / "seg-lungs-LUNA16"):
        place.mkdir(parents=True, exist_ok=True)
    stored = from_canonical(image, orientation)
    images.write_volume(folder / f"subset{subset}" / f"{uid}.mhd", stored, grid, compress=False)
    stored = from_canonical(mask, orientation).astype(np.int16)
    images.write_volume(folder / "seg-lungs-LUNA16" / f"{uid}.mhd", stored, grid, compress=True)


def write_annotations(folder, nodules=None):
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for uid, spheres in (NODULES if nodules is None else nodules).items():
        lines += [f"{uid},{x},{y},{z},{diameter}" for (x, y, z), diameter in spheres]
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n")


def write_folder(folder):
    """Writes the three scans and their annotations; returns the folder."""
    write_scan(folder, UIDS[0], 0)
    write_scan(folder, UIDS[1], 0, num_slices=13, direction=PRONE)
    write_scan(folder, UIDS[2], 3)
    write_annotations(folder)
    return folder
