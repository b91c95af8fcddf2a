"""What the nodule look marked, put together in three dimensions: candidates with what is measured of each."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.ndimage

_TOUCHING = np.ones((3, 3, 3), bool)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One connected piece.

    Attributes:
        label: its value in the labels, from 1.
        box: three slices of the volume.
        centre_zyx: voxels, the mean place by probability.
        measures: float by name, see `measure`.
    """

    label: int
    box: tuple[slice, slice, slice]
    centre_zyx: tuple[float, float, float]
    measures: dict[str, float]


def find_candidates(marked, read, spacing_zyx_mm, *, above, min_voxels=3):
    """Returns (labels int32 [D, H, W], list of `Candidate`) of the pieces above a probability, touching by corners too.

    Args:
        marked: uint8 [D, H, W], probability in 255ths.
        read: index of a slice -> [H, W] in HU.
        spacing_zyx_mm: distances of slices, rows, columns.
        above: probability that a voxel of a candidate exceeds.
        min_voxels: of a candidate.
    """
    labels, _ = scipy.ndimage.label(marked > 255.0 * above, _TOUCHING)
    found = []
    for label, box in enumerate(scipy.ndimage.find_objects(labels), 1):
        inside = labels[box] == label
        if inside.sum() >= min_voxels:
            hu = np.stack([read(index)[box[1], box[2]] for index in range(box[0].start, box[0].stop)])
            centre, measures = measure(inside, marked[box] / 255.0, hu, spacing_zyx_mm)
            start = [part.start for part in box]
            found.append(
                Candidate(
                    label, box, tuple(float(c + s) for c, s in zip(centre, start, strict=True)), measures
                )
            )
    return labels, found


def measure(inside, probability, hu, spacing_zyx_mm):
    """Returns (centre within the box, measures) of one piece.

    Measures: `highest` and `mean` probability, `sum` (mm3 times probability), `volume_mm3`, `diameter_mm` (of the
    sphere of that volume), `axes` (shortest and middle axis over the longest, of the ellipsoid with the same spread),
    `fill` (volume over that ellipsoid's), `slices`, `widest` (share of the volume in the widest slice), `drift` (how
    far the centre moves from slice to slice, over the diameter), `mean_hu`, `spread_hu`.

    Args:
        inside: bool [d, h, w].
        probability: float [d, h, w] from 0 to 1.
        hu: [d, h, w].
        spacing_zyx_mm: distances of slices, rows, columns.
    """
    spacing = np.asarray(spacing_zyx_mm, np.float64)
    places = np.argwhere(inside).astype(np.float64)
    weights, values = probability[inside].astype(np.float64), np.asarray(hu, np.float64)[inside]
    centre = (places * weights[:, None]).sum(axis=0) / weights.sum()
    volume = len(places) * spacing.prod()
    # A voxel is no point: its own spread, a twelfth of its edge squared, keeps thin pieces from being lines.
    spread = np.cov((places * spacing).T, bias=True).reshape(3, 3) + np.diag(np.square(spacing) / 12.0)
    radii = np.sqrt(5.0 * np.clip(np.linalg.eigvalsh(spread), 1e-9, None))
    diameter = (6.0 * volume / np.pi) ** (1.0 / 3.0)
    areas = inside.sum(axis=(1, 2))
    return centre, {
        "highest": float(weights.max()),
        "mean": float(weights.mean()),
        "sum": float(weights.sum() * spacing.prod()),
        "volume_mm3": float(volume),
        "diameter_mm": float(diameter),
        "short_axis": float(radii[0] / radii[2]),
        "middle_axis": float(radii[1] / radii[2]),
        "fill": float(volume / (4.0 / 3.0 * np.pi * radii.prod())),
        "slices": float(len(areas)),
        "widest": float(areas.max() / areas.sum()),
        "drift": float(_drift(inside, spacing) / diameter),
        "mean_hu": float(values.mean()),
        "spread_hu": float(values.std()),
    }


def _drift(inside, spacing):
    """Returns the mean distance in mm of the centres of neighbouring slices within their planes; 0 of one slice."""
    centres = [np.argwhere(plane).mean(axis=0) * spacing[1:] for plane in inside if plane.any()]
    if len(centres) < 2:
        return 0.0
    return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).mean())
