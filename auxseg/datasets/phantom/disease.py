"""Disease in the phantom's lungs: emphysema, collapse, consolidation and ground glass. All of it is lung in the labels.

Axes are those of `anatomy`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import tubes
from auxseg.datasets.phantom.paint import coverage

_BULLA_HU = -985.0


@dataclasses.dataclass(frozen=True)
class Disease:
    """What ails the lungs of one patient.

    Attributes:
        bullae: `Capsules` of no length: holes of emphysema.
        patches: [P, 8] x, y, z, half axes (mm), HU, width of the edge (mm): consolidation and ground glass.
        collapse: (normal [3], level in mm, side) of collapsed lung: where normal . place exceeds the level; or None.
        texture_hu: sheets (`grain`) of what is smaller than the vessels that are drawn; texture_mm: their step.
    """

    bullae: tubes.Capsules
    patches: np.ndarray
    collapse: tuple | None
    texture_hu: np.ndarray
    texture_mm: float


def create_disease(rng, patient, points, depths):
    """Returns the `Disease` of a patient.

    Args:
        rng: generator.
        patient: whose.
        points, depths: from `contents.sample_lung`.
    """
    return Disease(
        bullae=_create_bullae(rng, patient, points),
        patches=_create_patches(rng, points, depths),
        collapse=_create_collapse(rng, patient),
        texture_hu=np.float32(rng.uniform(14.0, 30.0))
        * (np.exp(np.float32(0.6) * patient.grain) - np.float32(1.2)),
        texture_mm=rng.uniform(1.1, 1.7),
    )


def _create_bullae(rng, patient, points):
    """Returns the holes of emphysema, more towards the apices, as `Capsules`; none in four of five patients."""
    number = int(rng.integers(100, 900)) if rng.random() < 0.2 else 0
    weight = np.clip(points[:, 2] / patient.height_mm, 0.02, 1.0) ** rng.uniform(0.0, 3.0)
    chosen = points[rng.choice(len(points), number, p=weight / weight.sum())]
    radius = np.minimum(1.2 * np.exp(rng.gamma(1.5, rng.uniform(0.2, 0.55), number)), 16.0)
    return tubes.Capsules(chosen, chosen + 1e-3, radius, radius)


def _create_patches(rng, points, depths):
    """Returns patches [P, 8] of denser lung; none in seven of ten patients."""
    number = int(rng.integers(1, 7)) if rng.random() < 0.3 else 0
    near = np.flatnonzero(depths < 30.0)
    rows = []
    for place in points[rng.choice(near, number)]:
        half = rng.uniform(14.0, 45.0) * rng.uniform(0.7, 1.3, 3)
        hu = rng.uniform(-750.0, -350.0) if rng.random() < 0.6 else rng.uniform(-200.0, 50.0)
        rows.append((*place, *half, hu, rng.uniform(5.0, 18.0)))
    return np.array(rows).reshape(-1, 8)


def _create_collapse(rng, patient):
    """Returns the half space of collapsed lung: towards an apex, or the lowest lung behind; None in seven of eight."""
    if rng.random() > 0.125:
        return None
    side = -1 if rng.random() < 0.5 else 1
    down = -1.0 if patient.prone else 1.0
    if rng.random() < 0.4:
        normal, level = np.array([0.15 * side, -0.35, 1.0]), rng.uniform(0.68, 0.85) * patient.height_mm
    else:
        normal, level = np.array([-0.2 * side, down, -0.4]), rng.uniform(15.0, 70.0)
    return normal / np.linalg.norm(normal), float(level), side


def add_patches(tissue, canvas, disease, z_mm):
    """Paints consolidation, ground glass and collapsed lung in place over lung tissue."""
    x, y = canvas.places.x_mm, canvas.places.y_mm
    for x0, y0, z0, width, depth, half, hu, edge in disease.patches.tolist():
        rise = (z_mm - z0) / half
        if abs(rise) > 1.3:
            continue
        bent = 1.0 + 0.12 * np.sin(np.float32(0.15) * x + z0) * np.sin(np.float32(0.13) * y - z0)
        far = np.sqrt(((x - x0) / width) ** 2 + ((y - y0) / depth) ** 2 + rise**2) * bent
        share = coverage((far - 1.0) * np.float32(min(width, depth)), edge)
        np.maximum(tissue, tissue + share * (np.float32(hu) - tissue), out=tissue)
    if disease.collapse is not None:
        normal, level, side = disease.collapse
        wave = 4.0 * np.sin(np.float32(0.06) * x + 0.05 * z_mm)
        inside = level + wave - (normal[0] * x + normal[1] * y + normal[2] * z_mm)
        share = coverage(inside, 6.0) * (x * side > 0)
        tissue += share * np.maximum(np.float32(38.0) - tissue, 0)


def add_bullae(tissue, canvas, disease, z_mm, lung_hu):
    """Paints the holes of emphysema in place."""
    tubes.stamp(tissue, canvas, disease.bullae, z_mm, np.float32(lung_hu), _BULLA_HU)
