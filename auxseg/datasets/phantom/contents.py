"""What the phantom's lungs hold: vessel trees, airways and nodules, as capsules and spheres in mm.

Axes and angles are those of `anatomy`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from auxseg.datasets.phantom import anatomy

DIAMETER_QUANTILES_MM = (
    3.25, 3.88, 4.09, 4.28, 4.40, 4.52, 4.67, 4.79, 4.90, 4.99, 5.11, 5.23, 5.31, 5.50, 5.63, 5.74, 5.90,
    6.00, 6.17, 6.31, 6.43, 6.66, 6.87, 7.05, 7.30, 7.72, 7.92, 8.28, 8.72, 9.22, 9.70, 10.33, 11.07,
    12.06, 12.86, 14.00, 15.48, 17.24, 18.95, 21.85, 32.27)  # fmt: skip
"""Diameters at 0, 2.5, 5, ... 100 % of the 1,186 rows of LUNA16's `annotations.csv`."""
_VESSEL_POWER = 3.0  # of the radii at a branching: Murray's law
_TWIG_MM = 0.46  # radius of the last branches


@dataclasses.dataclass(frozen=True)
class Capsules:
    """Tapering tubes with round ends.

    Attributes:
        start_mm, end_mm: [M, 3] x, y, z.
        start_radius_mm, end_radius_mm: [M].
    """

    start_mm: np.ndarray
    end_mm: np.ndarray
    start_radius_mm: np.ndarray
    end_radius_mm: np.ndarray

    def chosen(self, some):
        """Returns the tubes of indices `some`."""
        return Capsules(*(getattr(self, field.name)[some] for field in dataclasses.fields(self)))

    def widened(self, by_mm):
        """Returns the same tubes, `by_mm` thicker all round."""
        return dataclasses.replace(
            self, start_radius_mm=self.start_radius_mm + by_mm, end_radius_mm=self.end_radius_mm + by_mm
        )


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


def sample_lung(rng, patient, num_levels=60, num_tries=160):
    """Returns points spread evenly in the lungs: [P, 3] in mm, and their depth [P] under the pleura."""
    levels = (np.arange(num_levels) + rng.random(num_levels)) / num_levels * patient.height_mm
    width, front, back = patient.half_width_mm, patient.front_mm, patient.back_mm
    points, depths = [], []
    for z in levels:
        x, y = rng.uniform(-width, width, num_tries), rng.uniform(-front, back, num_tries)
        distance = anatomy.surfaces_at(patient, anatomy.create_places(x, y), z).lung
        inside = distance < 0
        points.append(np.stack([x, y, np.full_like(x, z)], axis=1)[inside])
        depths.append(-distance[inside])
    return np.concatenate(points), np.concatenate(depths)


def create_vessels(rng, patient, points, depths):
    """Returns the vessels of both lungs as `Capsules`, and the bronchi beside the larger arteries.

    Args:
        rng: generator.
        patient: whose.
        points, depths: from `sample_lung`; the twigs end there.
    """
    arteries, trees = [], []
    for side in (-1, 1):
        own = np.flatnonzero((np.sign(points[:, 0]) == side) & (depths > 2.5))
        chosen = rng.permutation(own)[:840]
        level = 0.55 if side < 0 else 0.565
        hilum = np.array([side * rng.uniform(33, 38), 10.0, level * patient.height_mm])
        arteries.append(_grow_tree(rng, hilum, points[chosen[:500]]))
        drains = hilum + np.array([-side * 8.0, -8.0, -0.06 * patient.height_mm])
        trees.append(_grow_tree(rng, drains, points[chosen[500:]]))
    vessels = _concatenate(arteries + trees)
    return vessels, _accompany(_concatenate(arteries))


def _concatenate(parts):
    fields = [field.name for field in dataclasses.fields(Capsules)]
    return Capsules(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def _grow_tree(rng, root_mm, targets_mm):
    """Returns a tree of tapering tubes from the root to every target.

    Each target, nearest first, is joined to where the new stretch plus a share of the way back to
    the root is shortest, and rather ahead of a branch than behind it; the radii then follow from the
    twigs behind them.
    """
    order = np.argsort(np.linalg.norm(targets_mm - root_mm, axis=1))
    capacity = 1 + 40 * len(targets_mm)
    nodes, heading, way = np.empty((capacity, 3)), np.zeros((capacity, 3)), np.empty(capacity)
    parents = np.full(capacity, -1)
    nodes[0], way[0], count = root_mm, 0.0, 1
    for target in targets_mm[order]:
        offset = target - nodes[:count]
        stretch = np.sqrt(np.einsum("ij,ij->i", offset, offset))
        ahead = np.einsum("ij,ij->i", offset, heading[:count])
        parent = int(np.argmin(1.6 * stretch - 0.6 * ahead + 0.28 * way[:count]))
        for place in _bend(rng, nodes[parent], target):
            length = math.dist(place, nodes[parent])
            nodes[count], parents[count], way[count] = place, parent, way[parent] + length
            heading[count] = (place - nodes[parent]) / max(length, 1e-6)
            parent, count = count, count + 1
    return _with_radii(rng, nodes[:count], parents[:count])


def _bend(rng, start, end):
    """Returns points about every 9 mm from `start` (left out) to `end`, on a gentle arc."""
    length = math.dist(start, end)
    num_pieces = max(1, min(36, round(length / 9.0)))
    if num_pieces == 1:
        return (end,)
    share = np.arange(1, num_pieces + 1)[:, None] / num_pieces
    sway = rng.normal(0.0, 0.10 * length, 3) * (share * (1.0 - share))
    return start + share * (end - start) + sway


def _with_radii(rng, nodes, parents):
    """Returns the tree as `Capsules`: the cubes of the radii add up where branches meet.

    About the hilum they are wider than that, as lobar and segmental vessels are.
    """
    flow = np.zeros(len(nodes))
    is_twig = np.ones(len(nodes), bool)
    is_twig[parents[1:]] = False
    flow[is_twig] = (_TWIG_MM * rng.uniform(0.7, 1.25, is_twig.sum())) ** _VESSEL_POWER
    for node in range(len(nodes) - 1, 0, -1):
        flow[parents[node]] += flow[node]
    radius = flow ** (1.0 / _VESSEL_POWER)
    from_root_mm = np.linalg.norm(nodes - nodes[0], axis=1)
    radius = np.minimum(radius * (1.0 + 1.1 * np.exp(-0.5 * (from_root_mm / 26.0) ** 2)), 5.5)
    end = np.where(is_twig, 0.7 * radius, radius)[1:]
    return Capsules(nodes[parents[1:]], nodes[1:], radius[1:], end)


def _accompany(arteries):
    """Returns bronchi that run beside the larger arteries, towards the middle and the front."""
    wide = arteries.start_radius_mm > 1.35
    radius = 0.72 * arteries.start_radius_mm[wide]
    side = -np.sign(arteries.start_mm[wide, :1])
    aside = (arteries.start_radius_mm[wide] + radius + 0.8)[:, None] * np.concatenate(
        [0.8 * side, np.full_like(side, -0.6), np.zeros_like(side)], axis=1
    )
    return Capsules(arteries.start_mm[wide] + aside, arteries.end_mm[wide] + aside, radius, radius)


def create_airway(rng, patient):
    """Returns the trachea and the two main bronchi with their first branches as `Capsules`."""
    height, bore = patient.height_mm, rng.uniform(7.5, 9.8)
    carina = np.array([rng.normal(0, 1.5), 10.0, 0.655 * height])
    top = np.array([0.0, -4.0, 1.3 * height])
    right = np.array([-37.0, 9.0, carina[2] - rng.uniform(24, 30)])
    left = np.array([40.0, 11.0, carina[2] - rng.uniform(30, 38)])
    lower_right, lower_left = right + [-6.0, 8.0, -24.0], left + [5.0, 9.0, -22.0]
    tubes = [
        (top, carina, bore, bore),
        (carina, right, 0.82 * bore, 0.66 * bore),
        (carina, left, 0.76 * bore, 0.6 * bore),
        (right, lower_right, 0.55 * bore, 0.42 * bore),
        (left, lower_left, 0.5 * bore, 0.4 * bore),
    ]
    start, end, start_radius, end_radius = (np.array(column) for column in zip(*tubes, strict=True))
    return Capsules(start, end, start_radius, end_radius)


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
    for candidate in rng.permutation(np.flatnonzero(room))[:60]:
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
