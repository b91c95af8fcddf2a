"""Measures a mask: volumes of the lungs, place and size of each nodule."""

from __future__ import annotations

import numpy as np

from auxseg.base.classes import CLASS_NAMES, lung_values, value_of
from auxseg.ct import geometry
from auxseg.scoring.components import Component, equivalent_diameter, find_components, surrounding_lung

MASS_MM = 30.0
"""What is wider is called a mass."""
SOLID_HU = -300.0
"""What is denser counts as solid; vessels are, and lung and most ground glass are not."""


def measure(masks, scan, start, probability_of=None, *, classes=CLASS_NAMES):
    """Returns one dict a nodule and other structure: where it is and how large.

    Positions are LPS in mm; 'slice' counts from 0, from inferior to superior; i, j, k is the voxel in the
    file. Areas and equivalent diameters (of the circle of that area) are those of the slice in which the
    structure is largest; there lie the long and the short axis of a nodule too (`find_axes`). Unevenly spaced slices count
    with their real distances. Volumes are empty for a single slice of a scan, millimetres where the voxel size is not
    known. Lungs are measured without the nodules in them. 'kind' is 'mass' where the equivalent diameter is above
    `MASS_MM`, else 'nodule'; 'probability' is empty where it is not known. 'mean_hu' and 'solid_share' (of the voxels, those
    above `SOLID_HU`) are of all slices of a nodule. Of a DICOM series 'instance_number', 'sop_instance_uid' and, where one
    file holds many, 'frame' (from 1) name the image of 'slice'.

    Args:
        masks: uint8 [D, H, W], canonical.
        scan: `scans.Scan`.
        start: the scan's slice that masks[0] is.
        probability_of: (index of a slice, bool [H, W] of a nodule's pixels in it) -> its probability; None: not known.
        classes: names by mask value; nodules are told apart where there is a 'nodule'.
    """
    matrix = np.reshape(scan.geometry.direction, (3, 3)) * scan.geometry.spacing_xyz_mm
    known = scan.has_geometry
    voxel_mm3 = abs(np.linalg.det(matrix)) if known and (len(masks) > 1 or scan.num_slices == 1) else np.nan
    pixel_mm2 = float(np.prod(scan.geometry.spacing_zyx_mm[1:])) if known else np.nan
    rows = []
    nodule, lungs = value_of("nodule", classes), lung_values(classes)
    for value, name in enumerate(classes):
        piece = None if value in (0, nodule) else _whole_class(masks, value)
        if piece is not None:
            share = _mean_width(scan, start, lambda index, value=value: masks[index] == value, piece)
            rows.append(
                _measure_piece(name, "", piece, scan, start, share * voxel_mm3, pixel_mm2)
                | {"kind": "lung" if value in lungs else "structure"}
            )
    components = find_components(masks, nodule)
    means, solid = _describe_values(masks, components, scan, start)
    for number, piece in enumerate(components.pieces, start=1):
        side = _find_side(masks, components, number, classes)
        share = _mean_width(
            scan, start, lambda index, number=number: components.read(masks, index) == number, piece
        )
        row = _measure_piece(f"nodule_{number}", side, piece, scan, start, share * voxel_mm3, pixel_mm2)
        row["kind"] = "mass" if row["equivalent_diameter_mm"] > MASS_MM else "nodule"
        row["mean_hu"], row["solid_share"] = float(means[number]), float(solid[number])
        index = piece.largest_slice
        largest = components.read(masks, index) == number
        if known:
            row["long_axis_mm"], row["short_axis_mm"] = find_axes(largest, scan.geometry.spacing_zyx_mm[1:])
        if probability_of is not None:
            row["probability"] = probability_of(index, largest)
        rows.append(row)
    return [
        {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        for row in rows
    ]


def is_nodule(row):
    """Returns whether a row of `measure` is of a nodule or mass."""
    return row["kind"] in ("nodule", "mass")


def find_axes(mask, spacing_yx_mm):
    """Returns the long and the short axis of a piece in a slice, in mm.

    The long axis is the longest line between two points of its border, the short one the longest line at a right angle to
    that, both in its convex hull (as RECIST 1.1 measures lesions, doi:10.1016/j.ejca.2008.10.026). The border runs through the
    middles of the edges of pixels.

    Args:
        mask: bool [H, W], not empty.
        spacing_yx_mm: distances of rows and columns.
    """
    from scipy.spatial import ConvexHull  # takes long to import

    edges = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5)])
    points = (np.argwhere(mask)[:, None] + edges).reshape(-1, 2) * spacing_yx_mm
    border = points[ConvexHull(points).vertices]  # in the order of its way round
    apart = np.linalg.norm(border[:, None] - border[None], axis=2)
    first, last = np.unravel_index(apart.argmax(), apart.shape)
    long_mm = float(apart[first, last])
    way = (border[last] - border[first]) / long_mm
    along = (border - border[first]) @ way
    aside = (border - border[first]) @ (way[1], -way[0])
    first, last = sorted((int(first), int(last)))
    sides = [range(first, last + 1), [*range(last, len(border)), *range(first + 1)]]
    heights = []
    for side in map(list, sides):
        order = np.argsort(along[side])
        heights.append(np.interp(along, along[side][order], aside[side][order]))
    return long_mm, float(np.abs(heights[0] - heights[1]).max())


def _describe_values(masks, components, scan, start):
    """Returns (mean HU, share of voxels above `SOLID_HU`) by a nodule's number, float64 [nodules + 1]; 0 is of none."""
    count = len(components.pieces) + 1
    voxels, sums, above = np.zeros(count), np.zeros(count), np.zeros(count)
    marked = {index for piece in components.pieces for index in range(piece.slices[0], piece.slices[1] + 1)}
    for index in sorted(marked):
        numbers = components.read(masks, index)
        inside = numbers > 0
        if inside.any():
            hu, numbers = scan.read(start + index, start + index + 1)[0][inside], numbers[inside]
            voxels += np.bincount(numbers, minlength=count)
            sums += np.bincount(numbers, hu, count)
            above += np.bincount(numbers, hu > SOLID_HU, count)
    voxels = np.maximum(voxels, 1)
    return sums / voxels, above / voxels


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


def _find_side(masks, components, number, classes):
    """Returns the lung around a nodule, by the classes next to it in its largest slice; '' where neither is."""
    index = components.pieces[number - 1].largest_slice
    lungs = lung_values(classes)
    value = surrounding_lung(masks[index], components.read(masks, index) == number, lungs) if lungs else 0
    return classes[value] if value else ""


def _measure_piece(name, side, piece, scan, start, voxel_mm3, pixel_mm2):
    z, y, x = piece.centre_zyx
    place = geometry.index_to_mm(scan.geometry, (x, y, z + start)) if scan.has_geometry else (np.nan,) * 3
    stored = _stored_index(scan, (x, y, z + start))
    area = piece.largest_pixels * pixel_mm2
    return {
        "structure": name,
        "kind": "nodule",
        "inside": side,
        "probability": np.nan,
        "voxels": piece.voxels,
        "volume_ml": piece.voxels * voxel_mm3 / 1000.0,
        "volume_mm3": piece.voxels * voxel_mm3,
        "area_mm2": area,
        "equivalent_diameter_mm": float(equivalent_diameter(area)),
        "long_axis_mm": np.nan,
        "short_axis_mm": np.nan,
        "mean_hu": np.nan,
        "solid_share": np.nan,
        "area_pixels": piece.largest_pixels,
        "slice": piece.largest_slice + start,
        "first_slice": piece.slices[0] + start,
        "last_slice": piece.slices[1] + start,
        **{f"{axis}_mm": float(v) for axis, v in zip("xyz", place)},
        **dict(zip("ijk", stored)),
        **_describe_image(scan, piece.largest_slice + start),
    }


def _describe_image(scan, index):
    """Returns what names the DICOM image of a slice: {} without one."""
    frame = scan.find_frame(index)
    if frame is None:
        return {}
    several = any(other.index for other in scan.volume.frames)
    return {
        "instance_number": frame.number,
        "frame": frame.index + 1 if several else None,
        "sop_instance_uid": frame.sop_uid,
    }


def _stored_index(scan, index_xyz):
    """Returns the voxel (i, j, k) of the file at a canonical index."""
    stored = [0, 0, 0]
    for value, axis, flipped in zip(index_xyz, scan.orientation.axes, scan.orientation.flips):
        last = scan.stored.size_xyz[axis] - 1
        stored[axis] = int(np.clip(round(last - value if flipped else value), 0, last))
    return stored
