"""Measures a mask: volumes of the lungs, place and size of each nodule."""

from __future__ import annotations

import numpy as np

from auxseg.base.classes import CLASS_NAMES
from auxseg.ct import geometry
from auxseg.scoring.components import Component, equivalent_diameter, find_components, surrounding_lung

LEFT, RIGHT, NODULE = (CLASS_NAMES.index(name) for name in ("left_lung", "right_lung", "nodule"))


MASS_MM = 30.0
"""What is wider is called a mass."""


def measure(masks, scan, start, probability_of=None):
    """Returns one dict a lung and nodule: where it is and how large.

    Positions are LPS in mm; 'slice' counts from 0, from inferior to superior; i, j, k is the voxel in the
    file. Areas and equivalent diameters (of the circle of that area) are those of the slice in which the
    structure is largest. Unevenly spaced slices count with their real distances. Volumes are empty for a single slice
    of a scan, millimetres where the voxel size is not known. Lungs are measured without the nodules in them. 'kind' is
    'mass' where the equivalent diameter is above `MASS_MM`, else 'nodule'; 'probability' is empty where it is not known.

    Args:
        masks: uint8 [D, H, W], canonical.
        scan: `scans.Scan`.
        start: the scan's slice that masks[0] is.
        probability_of: (index of a slice, bool [H, W] of a nodule's pixels in it) -> its probability; None: not known.
    """
    matrix = np.reshape(scan.geometry.direction, (3, 3)) * scan.geometry.spacing_xyz_mm
    known = scan.has_geometry
    voxel_mm3 = abs(np.linalg.det(matrix)) if known and (len(masks) > 1 or scan.num_slices == 1) else np.nan
    pixel_mm2 = float(np.prod(scan.geometry.spacing_zyx_mm[1:])) if known else np.nan
    rows = []
    for value in (LEFT, RIGHT):
        piece = _whole_class(masks, value)
        if piece is not None:
            share = _mean_width(scan, start, lambda index, value=value: masks[index] == value, piece)
            rows.append(
                _measure_piece(CLASS_NAMES[value], "", piece, scan, start, share * voxel_mm3, pixel_mm2)
            )
    components = find_components(masks, NODULE)
    for number, piece in enumerate(components.pieces, start=1):
        side = _find_side(masks, components, number)
        share = _mean_width(
            scan, start, lambda index, number=number: components.read(masks, index) == number, piece
        )
        row = _measure_piece(f"nodule_{number}", side, piece, scan, start, share * voxel_mm3, pixel_mm2)
        row["kind"] = "mass" if row["equivalent_diameter_mm"] > MASS_MM else "nodule"
        if probability_of is not None:
            index = piece.largest_slice
            row["probability"] = probability_of(index, components.read(masks, index) == number)
        rows.append(row)
    return rows


def _mean_width(scan, start, read, piece):
    """Returns the mean thickness of a structure's voxels as a share of the grid's step; 1.0 for even slices.

    Args:
        read: slice of the mask -> bool [H, W], the structure in it.
        piece: its `Component`.
    """
    if scan.widths_mm is None:
        return 1.0
    slices = range(piece.slices[0], piece.slices[1] + 1)
    pixels = np.array([np.count_nonzero(read(index)) for index in slices])
    matrix = np.reshape(scan.geometry.direction, (3, 3))
    step_mm = scan.geometry.spacing_xyz_mm[2] * abs(np.linalg.det(matrix))  # along the normal
    widths = np.asarray(scan.widths_mm)[start + slices.start : start + slices.stop]
    return float(pixels @ widths / pixels.sum() / step_mm)


def _whole_class(masks, value):
    """Returns all of a class as one `Component`, or None where there is none."""
    pixels = np.zeros(len(masks), int)
    sums = np.zeros(3)
    for index, mask in enumerate(masks):
        chosen = mask == value
        pixels[index] = chosen.sum()
        by_row, by_column = chosen.sum(1), chosen.sum(0)
        sums += (
            pixels[index] * index,
            by_row @ np.arange(len(by_row)),
            by_column @ np.arange(len(by_column)),
        )
    if not pixels.any():
        return None
    slices = np.flatnonzero(pixels)
    centre = tuple(float(one) for one in sums / pixels.sum())
    return Component(
        int(pixels.sum()), centre, int(pixels.argmax()), int(pixels.max()), (int(slices[0]), int(slices[-1]))
    )


def _find_side(masks, components, number):
    """Returns the lung around a nodule, by the classes next to it in its largest slice; '' where neither is."""
    index = components.pieces[number - 1].largest_slice
    value = surrounding_lung(masks[index], components.read(masks, index) == number)
    return CLASS_NAMES[value] if value else ""


def _measure_piece(name, side, piece, scan, start, voxel_mm3, pixel_mm2):
    z, y, x = piece.centre_zyx
    place = geometry.index_to_mm(scan.geometry, (x, y, z + start)) if scan.has_geometry else (np.nan,) * 3
    stored = _stored_index(scan, (x, y, z + start))
    area = piece.largest_pixels * pixel_mm2
    return {
        "structure": name,
        "kind": "lung",
        "inside": side,
        "probability": np.nan,
        "voxels": piece.voxels,
        "volume_ml": piece.voxels * voxel_mm3 / 1000.0,
        "volume_mm3": piece.voxels * voxel_mm3,
        "area_mm2": area,
        "equivalent_diameter_mm": float(equivalent_diameter(area)),
        "area_pixels": piece.largest_pixels,
        "slice": piece.largest_slice + start,
        "first_slice": piece.slices[0] + start,
        "last_slice": piece.slices[1] + start,
        **{f"{axis}_mm": float(v) for axis, v in zip("xyz", place)},
        **dict(zip("ijk", stored)),
    }


def _stored_index(scan, index_xyz):
    """Returns the voxel (i, j, k) of the file at a canonical index."""
    stored = [0, 0, 0]
    for value, axis, flipped in zip(index_xyz, scan.orientation.axes, scan.orientation.flips):
        last = scan.stored.size_xyz[axis] - 1
        stored[axis] = int(np.clip(round(last - value if flipped else value), 0, last))
    return stored
