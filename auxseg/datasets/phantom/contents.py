"""The nodules in the phantom's lungs, as spheres in mm, and the places in the lungs where things can lie.

Axes and angles are those of `anatomy`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import surfaces

DIAMETER_QUANTILES_MM = (
    3.25, 3.88, 4.09, 4.28, 4.40, 4.52, 4.67, 4.79, 4.90, 4.99, 5.11, 5.23, 5.31, 5.50, 5.63, 5.74, 5.90,
    6.00, 6.17, 6.31, 6.43, 6.66, 6.87, 7.05, 7.30, 7.72, 7.92, 8.28, 8.72, 9.22, 9.70, 10.33, 11.07,
    12.06, 12.86, 14.00, 15.48, 17.24, 18.95, 21.85, 32.27)  # fmt: skip
"""Diameters at 0, 2.5, 5, ... 100 % of the 1,186 rows of LUNA16's `annotations.csv`."""


@dataclasses.dataclass(frozen=True)
class Nodule:
    """One nodule: a sphere, stretched and dented a little at constant volume.

    Attributes:
        centre_mm: [3] x, y, z.
        diameter_mm: of the sphere of the same volume; what `annotations.csv` holds.
        hu: of its body; core_hu: of its inner half (part-solid), or None.
        edge_mm: over which it fades; ground glass has no sharp border.
        stretch: [3] half axes over the radius, product 1.
        dents: [2, 3] orthonormal; the radius changes by `dent` times the product of the two cosines.
        dent: relative.
        kind: 'solid', 'part_solid' or 'ground_glass'.
        site: 'isolated', 'vessel' or 'pleura'.
    """

    centre_mm: np.ndarray
    diameter_mm: float
    hu: float
    core_hu: float | None
    edge_mm: float
    stretch: np.ndarray
    dents: np.ndarray
    dent: float
    kind: str
    site: str


def sample_lung(rng, patient, num_levels=60, num_tries=420):
    """Returns points spread evenly in the lungs: [P, 3] in mm, and their depth [P] under the pleura."""
    levels = (np.arange(num_levels) + rng.random(num_levels)) / num_levels * patient.height_mm
    width, front, back = patient.half_width_mm, patient.front_mm, patient.back_mm
    points, depths = [], []
    for z in levels:
        x, y = rng.uniform(-width, width, num_tries), rng.uniform(-front, back, num_tries)
        distance = surfaces.surfaces_at(patient, surfaces.create_places(x, y), z).lung
        inside = distance < 0
        points.append(np.stack([x, y, np.full_like(x, z)], axis=1)[inside])
        depths.append(-distance[inside])
    return np.concatenate(points), np.concatenate(depths)


def draw_diameters(rng, num):
    """Returns `num` nodule diameters in mm with the distribution of LUNA16's annotations."""
    shares = np.linspace(0.0, 1.0, len(DIAMETER_QUANTILES_MM))
    return np.interp(rng.random(num), shares, DIAMETER_QUANTILES_MM)


def create_nodules(rng, patient, points, depths, vessels, slices_mm):
    """Returns the nodules, each wholly within the scan, crossed by a slice and apart from the others.

    Slices more than 2.5 mm apart could miss small ones, as LUNA16's never do: then each is moved to a slice.

    Args:
        rng: generator.
        patient: whose.
        points, depths: from `sample_lung`; where nodules can lie.
        vessels: `Capsules`; a nodule lies at a thin one or clear of the thick ones.
        slices_mm: [D], heights of the slices, rising.
    """
    nodules = []
    points = _move_to_slices(rng, points, slices_mm)
    for diameter in sorted(draw_diameters(rng, rng.integers(2, 7)), reverse=True):
        sites = [str(site) for site in rng.permutation(["isolated", "vessel", "pleura"])]
        for site in sites:
            centre = _find_site(rng, site, diameter / 2, points, depths, vessels, slices_mm, nodules)
            if centre is not None:
                nodules.append(_create_nodule(rng, centre, float(diameter), site))
                break
    return nodules


def _move_to_slices(rng, points, slices_mm):
    """Returns the points, moved to within 0.6 mm of a slice where the slices lie far apart."""
    if len(slices_mm) < 2 or slices_mm[1] - slices_mm[0] <= 2.5:
        return points
    nearest = np.abs(points[:, 2:] - slices_mm).argmin(axis=1)
    moved = points.copy()
    moved[:, 2] = slices_mm[nearest] + rng.uniform(-0.6, 0.6, len(points))
    return moved


def _find_site(rng, site, radius, points, depths, vessels, slices_mm, others):
    """Returns a centre [3] in mm for a nodule of this radius at such a site, or None without room."""
    low, high = slices_mm[0], slices_mm[-1]
    room = (points[:, 2] - radius > low) & (points[:, 2] + radius < high)
    if site == "pleura":
        room &= (depths > 0.9 * radius) & (depths < radius + 0.3)
    else:
        room &= depths > radius + 2.0
    for candidate in rng.permutation(np.flatnonzero(room))[:240]:
        centre = points[candidate]
        gap = np.linalg.norm(vessels.end_mm - centre, axis=1) - vessels.end_radius_mm - radius
        if site == "vessel":
            centre, gap = _move_to_vessel(centre, radius, vessels, gap)
        if _is_clear(centre, radius, vessels, gap, others):
            return centre
    return None


def _move_to_vessel(centre, radius, vessels, gap):
    """Returns the centre moved to touch the nearest thin vessel that is near, and the new gaps."""
    thin = np.where(vessels.end_radius_mm < 0.35 * radius, np.abs(gap), np.inf)
    nearest = int(np.argmin(thin))
    if thin[nearest] < 4.0:
        towards = (vessels.end_mm[nearest] - centre) * (1.0, 1.0, 0.0)
        centre = centre + towards * (gap[nearest] / max(np.linalg.norm(towards), 1e-6))
        gap = np.linalg.norm(vessels.end_mm - centre, axis=1) - vessels.end_radius_mm - radius
    return centre, gap


def _is_clear(centre, radius, vessels, gap, others):
    """Returns whether no thick vessel and no other nodule is near."""
    thick = vessels.end_radius_mm > np.clip(0.4 * radius, 0.9, 2.0)
    apart = all(
        np.linalg.norm(other.centre_mm - centre) > radius + other.diameter_mm / 2 + 8.0 for other in others
    )
    return apart and bool(np.all(gap[thick] > 2.0))


def _create_nodule(rng, centre, diameter, site):
    """Returns a nodule of drawn kind and shape; only larger ones are anything but solid."""
    kind = "solid"
    if diameter > 5.5:
        kind = str(rng.choice(["solid", "part_solid", "ground_glass"], p=[0.80, 0.11, 0.09]))
    solid = rng.uniform(150, 450) if rng.random() < 0.08 else rng.normal(45.0, 25.0)
    part_solid, ground_glass = rng.uniform(-500, -360), rng.uniform(-580, -420)
    hu = {"solid": solid, "part_solid": part_solid, "ground_glass": ground_glass}[kind]
    stretch = np.exp(rng.normal(0.0, 0.06, 3))
    dents = np.linalg.qr(rng.normal(size=(3, 2)))[0].T
    return Nodule(
        centre_mm=np.asarray(centre, float),
        diameter_mm=diameter,
        hu=float(hu),
        core_hu=float(rng.normal(20.0, 25.0)) if kind == "part_solid" else None,
        edge_mm=0.0 if kind == "solid" else 1.2,
        stretch=stretch / np.prod(stretch) ** (1 / 3),
        dents=dents,
        dent=float(rng.uniform(0.0, 0.14)),
        kind=kind,
        site=site,
    )
