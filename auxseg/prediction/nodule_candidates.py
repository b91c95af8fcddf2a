"""What the nodule look marked, put together in three dimensions: candidates with what is measured of each."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import scipy.sparse

_OFFSETS = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if o > (0, 0, 0)])
"""Half of the 26 neighbours of a voxel; the other half are theirs."""
_MEASURED = np.array([(0, 0, 1), (0, 1, -1), (0, 1, 0), (0, 1, 1), (1, 0, 0)])
"""The neighbours by which a mask is measured (`scoring.components`): corners within a slice, faces between slices."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One connected piece.

    Attributes:
        places: int32 [n, 3], its voxels: slice, row, column.
        box: three slices of the volume.
        centre_zyx: voxels, the mean place by probability.
        measures: float by name, see `measure`.
    """

    places: np.ndarray
    box: tuple[slice, slice, slice]
    centre_zyx: tuple[float, float, float]
    measures: dict[str, float]


def find_candidates(marked, read, spacing_zyx_mm, *, above, min_voxels=3):
    """Returns the `Candidate`s above a probability, from inferior to superior; voxels that touch by corners are of one.

    Memory is that of the marked voxels, not of the scan.

    Args:
        marked: uint8 [D, H, W], probability in 255ths.
        read: index of a slice -> [H, W] in HU.
        spacing_zyx_mm: distances of slices, rows, columns.
        above: probability that a voxel of a candidate exceeds.
        min_voxels: of a candidate.
    """
    found = []
    for places in _connected(_find_places(marked, 255.0 * above), marked.shape):
        if len(places) < min_voxels:
            continue
        first, last = places.min(axis=0), places.max(axis=0) + 1
        box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        inside = np.zeros(last - first, bool)
        inside[tuple((places - first).T)] = True
        hu = np.stack([read(index)[box[1], box[2]] for index in range(box[0].start, box[0].stop)])
        centre, measures = measure(inside, marked[box] / 255.0, hu, spacing_zyx_mm)
        found.append(Candidate(places, box, tuple((centre + first).tolist()), measures))
    return found


def _find_places(marked, threshold):
    """Returns the voxels above the threshold, int32 [n, 3], in the order of the volume."""
    found = [np.argwhere(plane > threshold) for plane in marked]
    slices = np.repeat(np.arange(len(marked)), [len(part) for part in found])
    return np.column_stack([slices, np.concatenate(found)]).astype(np.int32)


def largest_piece(places, shape):
    """Returns the voxels (int32 [n, 3]) of the largest piece that measuring a mask takes for one nodule.

    Args:
        places: int32 [m, 3] in the order of the volume, as a `Candidate` has them.
        shape: of the volume.
    """
    return max(_connected(places, shape, _MEASURED), key=len)


def _connected(places, shape, offsets=_OFFSETS):
    """Returns the connected pieces of voxels (int32 [n, 3], in order), in the order of their first voxels."""
    if not len(places):
        return []
    numbers = np.ravel_multi_index(tuple(places.T), shape)
    pairs = []
    for offset in offsets:
        near = places + offset
        inside = ((near >= 0) & (near < shape)).all(axis=1)
        wanted = np.ravel_multi_index(tuple(near[inside].T), shape)
        at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        hit = numbers[at] == wanted
        pairs.append(np.stack([np.flatnonzero(inside)[hit], at[hit]]))
    first, second = np.concatenate(pairs, axis=1)
    graph = scipy.sparse.coo_array((np.ones(len(first), bool), (first, second)), (len(places),) * 2)
    from scipy.sparse import csgraph  # a tenth of a second, which a single slice does without

    _, labels = csgraph.connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    return np.split(places[order], np.flatnonzero(np.diff(labels[order])) + 1)


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
