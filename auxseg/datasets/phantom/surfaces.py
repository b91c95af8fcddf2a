"""The surfaces of a phantom patient at any height: signed distances in mm to skin, chest wall, lungs and diaphragm.

Axes and angles are those of `anatomy`. A slice has a thickness: a surface is asked for at its lower and its upper face,
and what lies between the two answers is how far the slice smears it (`between`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.datasets.phantom.anatomy import ANGLES, NO_FLUID_MM, NUM_ANGLES

ROWS_MM = np.arange(-160.0, 161.0, 2.0)  # where the edges of the mediastinum are tabulated

# Half axes of the chest cavity (below it the abdomen's) and of the body, by height, relative to their largest.
_CAVITY_U = (-0.6, -0.1, 0.0, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0, 1.1, 1.3)
_CAVITY_WIDTH = (0.88, 0.95, 0.97, 1.0, 0.99, 0.92, 0.77, 0.62, 0.54, 0.45, 0.3)
_CAVITY_DEPTH = (0.98, 0.98, 1.0, 1.0, 0.97, 0.87, 0.73, 0.62, 0.56, 0.5, 0.3)
_BODY_U = (-0.6, -0.1, 0.3, 0.6, 0.8, 0.95, 1.1, 1.2, 1.3, 1.6)
_BODY_WIDTH = (0.93, 0.97, 1.0, 1.02, 1.1, 1.24, 1.16, 0.7, 0.44, 0.42)
_BODY_DEPTH = (1.0, 1.0, 1.0, 0.98, 0.92, 0.84, 0.76, 0.68, 0.62, 0.62)


@dataclasses.dataclass(frozen=True)
class Places:
    """Points at one height, with what does not change from slice to slice.

    Attributes:
        x_mm, y_mm: float32, broadcastable to the shape of the points: [1, W] and [H, 1] of an image.
        radius_mm: float32 [...], distance from the origin in the plane.
        angle_bin: int [...], index into the tables over `ANGLES`.
    """

    x_mm: np.ndarray
    y_mm: np.ndarray
    radius_mm: np.ndarray
    angle_bin: np.ndarray


def create_places(x_mm, y_mm):
    """Returns the `Places` of the points that `x_mm` and `y_mm` broadcast to."""
    x_mm, y_mm = np.asarray(x_mm, np.float32), np.asarray(y_mm, np.float32)
    turn = (np.arctan2(x_mm, -y_mm) + np.float32(np.pi)) * np.float32(NUM_ANGLES / (2 * np.pi))
    return Places(x_mm, y_mm, np.hypot(x_mm, y_mm), np.minimum(turn.astype(np.intp), NUM_ANGLES - 1))


_SINE, _COSINE = np.abs(np.sin(ANGLES)), np.abs(np.cos(ANGLES))
_IN_FRONT = np.cos(ANGLES) > 0


def _belly(patient, u):
    """Returns the depth in front at a relative height, relative to the chest's."""
    return np.interp(u, (-0.2, 0.3), (patient.belly, 1.0))


def _superellipse(width, front, back, exponents):
    """Returns the radius [K] over `ANGLES` of a superellipse with another depth and exponent in front."""
    depth = np.where(_IN_FRONT, front, back)
    exponent = np.where(_IN_FRONT, *exponents)
    return ((_SINE / width) ** exponent + (_COSINE / depth) ** exponent) ** (-1 / exponent)


def _bump(offset, width):
    """Returns a Gaussian bump of `offset` (radians, wrapped) with standard deviation `width`."""
    wrapped = (offset + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-0.5 * (wrapped / width) ** 2)


def cavity_radius(patient, z_mm):
    """Returns the radius [K] in mm of the chest cavity at height `z_mm`.

    The spine and the breastbone press it in from behind and from the front.
    """
    u = z_mm / patient.height_mm
    width, depth = np.interp(u, _CAVITY_U, _CAVITY_WIDTH), np.interp(u, _CAVITY_U, _CAVITY_DEPTH)
    front_mm = patient.front_mm * depth * _belly(patient, u)
    radius = _superellipse(
        patient.half_width_mm * width, front_mm, patient.back_mm * depth, patient.exponents
    )
    turns = np.arange(2, 6)[:, None] * ANGLES
    ripple = patient.ripple[:, :1] * np.cos(turns) + patient.ripple[:, 1:] * np.sin(turns + 2.0 * u)
    dents = 0.17 * _bump(ANGLES - np.pi, 0.22) + 0.05 * _bump(ANGLES, 0.32)
    return radius * (1.0 + ripple.sum(0) - dents)


def body_radii(patient, z_mm, cavity_mm):
    """Returns the radii [K] in mm of the skin and of the muscle under the fat at height `z_mm`.

    Args:
        patient: whose.
        z_mm: height.
        cavity_mm: `cavity_radius` at this height; the wall never gets thinner than ribs and skin.
    """
    u = z_mm / patient.height_mm
    side, front, back = patient.wall_mm
    width, depth = np.interp(u, _BODY_U, _BODY_WIDTH), np.interp(u, _BODY_U, _BODY_DEPTH)
    fat = patient.fat_mm
    muscle = _superellipse(
        (patient.half_width_mm + side) * width,
        (patient.front_mm * _belly(patient, u) + front) * depth,
        (patient.back_mm + back) * (0.5 + 0.5 * depth),
        (2.2, 2.5),
    )
    folds = 0.016 * np.cos(7 * ANGLES + patient.rib_phase_mm) * _bump(np.abs(ANGLES) - 2.2, 0.8)
    muscle = muscle * (1.0 + folds)
    shoulder_blade = (
        9.0 * np.interp(u, (0.3, 0.6, 1.1, 1.2), (0.0, 1.0, 1.0, 0.0)) * _bump(np.abs(ANGLES) - 2.2, 0.35)
    )
    muscle = np.maximum(muscle + shoulder_blade, cavity_mm + 13.0)
    layer = fat * (0.75 + 0.25 * np.cos(2 * ANGLES) + 0.25 * _bump(np.abs(ANGLES) - 1.5, 0.5))
    breast = patient.breast_mm * np.exp(-0.5 * ((u - 0.42) / 0.16) ** 2) * _bump(np.abs(ANGLES) - 0.66, 0.34)
    skin = muscle + 3.0 + layer + (0.35 if patient.prone else 1.0) * breast
    return _lie_down(patient, skin), _lie_down(patient, muscle, layer.min() + 2.0)


def table_y_mm(patient):
    """Returns the height of the table's top under the middle of the body."""
    if patient.prone:
        return -(patient.front_mm + patient.wall_mm[1] + 0.7 * patient.fat_mm + 4.0)
    return patient.back_mm + patient.wall_mm[2] + 0.7 * patient.fat_mm + 4.0


def _lie_down(patient, radius, inset_mm=0.0):
    """Returns `radius` [K] flattened where it rests on the table, `inset_mm` above it."""
    table = table_y_mm(patient)
    towards = -np.cos(ANGLES) * np.sign(table)
    limit = (abs(table) - inset_mm) / np.maximum(towards, 1e-3)
    return (radius**-14.0 + limit**-14.0) ** (-1 / 14.0)


def look_up(table, places):
    """Returns the values, float32 [...], of a table [K] over `ANGLES` in the directions of the places."""
    return np.take(table.astype(np.float32), places.angle_bin, mode="clip")


def slant(radius):
    """Returns the factor [K] that turns a radial distance to a contour into a perpendicular one."""
    slope = np.gradient(radius, ANGLES[1] - ANGLES[0]) / radius
    return 1.0 / np.sqrt(1.0 + slope**2)


def organs_at(patient, z_mm, thickness_mm=0.0):
    """Returns the organs of the chest that a slice shows; see `ellipses_at`."""
    return ellipses_at(patient.organs, z_mm / patient.height_mm, thickness_mm / patient.height_mm)


def ellipses_at(rows, height, thickness):
    """Returns what a slice shows of bodies that are ellipses in plane and superellipses over the height.

    Args:
        rows: [M, 7] x, y, half width, half depth (mm), middle, half length (of the height's unit), exponent.
        height, thickness: of the slice, in that unit.

    Returns:
        Ellipses [m, 4] (x, y, half width, half depth; mm), by how many mm the slice smears their edges [m], their
        indices [m].
    """
    sizes = [_size(rows, height + away) for away in (-0.5 * thickness, 0.5 * thickness)]
    mean = 0.5 * (sizes[0] + sizes[1])
    present = np.flatnonzero(mean > 0.04)
    ellipses = rows[present, :4] * np.stack([np.ones(len(present))] * 2 + [mean[present]] * 2, axis=1)
    smear = np.abs(sizes[1] - sizes[0])[present] * rows[present, 2:4].min(axis=1)
    return ellipses, smear, present


def _size(rows, height):
    """Returns the size [M] of each body at a height, relative to its largest; 0 beyond it."""
    along = np.minimum(np.abs(height - rows[:, 4]) / rows[:, 5], 1.0)
    return (1.0 - along ** rows[:, 6]) ** (1.0 / rows[:, 6])


def mediastinum_edges(patient, z_mm):
    """Returns the half widths [2, R] in mm of the mediastinum to the right and left, over `ROWS_MM`.

    They are the outlines of what lies inside, padded with fat and smoothed: the lungs lean on it.
    """
    ellipses, _, _ = organs_at(patient, z_mm)
    spine = np.array([(0.0, patient.spine_y_mm, 20.0, 18.0), (0.0, patient.spine_y_mm + 28.0, 23.0, 20.0)])
    ellipses = np.concatenate([ellipses, spine])
    x, y, width, depth = ellipses.T[:, :, None]
    height = 1.0 - ((ROWS_MM - y) / (depth + 4.0)) ** 2
    reach = (width + 4.0) * np.sqrt(np.maximum(height, 0.0))
    edges = np.where(height > 0, np.stack([reach - x, reach + x]), 0.0).max(axis=1)
    u = z_mm / patient.height_mm
    breastbone_mm = 0.95 * patient.front_mm * np.interp(u, _CAVITY_U, _CAVITY_DEPTH)
    thymus = (patient.thymus_mm + 60.0 * max(0.3 - u, 0.0)) * np.exp(
        -0.5 * ((ROWS_MM + breastbone_mm) / 11.0) ** 2
    )
    edges = np.maximum(edges, 1.6 + thymus)
    return ndimage.gaussian_filter1d(edges, 2.2, axis=1, mode="nearest")


def dome_height(patient, places):
    """Returns the height [...] in mm of the diaphragm over each place, and the factor of its slope."""
    x, y = np.broadcast_arrays(places.x_mm, places.y_mm)
    right, left = patient.domes
    dome = np.where((x < 0)[..., None], right, left).astype(np.float32)
    across, along = (x - dome[..., 0]) / dome[..., 3], (y - dome[..., 1]) / dome[..., 4]
    far = across**2 + along**2 + np.float32(1e-6)
    drop = 52.0 * far**1.25
    tilt = 0.20 * np.maximum(y, 0.0)
    slope = 130.0 * far**0.25 * np.hypot(across / dome[..., 3], along / dome[..., 4])
    waves = np.where(x < 0, *(height * np.sin(7.0 * across + 5.0 * along + turn)
                              for height, turn in patient.scallops.astype(np.float32)))  # fmt: skip
    height, factor = dome[..., 2] - drop - tilt + waves, 1.0 / np.sqrt(1.0 + slope**2)
    return height.astype(np.float32), factor.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """Signed distances in mm at one height, float32 [...]: negative inside.

    Attributes:
        cavity: to the chest wall's inner face.
        dome: to the diaphragm; negative above it, where the lung is.
        pleura: to the two pleural spaces, which the lungs fill but for fluid.
        lung: to the lungs' surface, both together; a point with x < 0 belongs to the right one.
    """

    cavity: np.ndarray
    dome: np.ndarray
    pleura: np.ndarray
    lung: np.ndarray


def surfaces_at(patient, places, z_mm, dome=None, radius=None):
    """Returns the `Surfaces` of a patient at `places` and height `z_mm`.

    Args:
        patient: whose.
        places: the points.
        z_mm: their height.
        dome: what `dome_height` gives for them, where it is known already.
        radius: what `cavity_radius` gives at this height, where it is known already.
    """
    dome_mm, slope = dome_height(patient, places) if dome is None else dome
    radius = cavity_radius(patient, z_mm) if radius is None else radius
    cavity = (places.radius_mm - look_up(radius, places)) * look_up(slant(radius), places)
    under = (dome_mm - np.float32(z_mm)) * slope
    lung = _smooth_maximum(cavity, _middle_distance(patient, places, z_mm), 7.0)
    np.maximum(lung, under, out=lung)
    if z_mm > 0.66 * patient.height_mm:
        lung = np.maximum(lung, _cap_distance(patient, places, z_mm))
    return Surfaces(cavity, under, lung, _without_fluid(patient, places, z_mm, lung))


def _without_fluid(patient, places, z_mm, pleura):
    """Returns the signed distance [...] to the lungs, where fluid takes the lowest part of the pleural space."""
    if min(patient.fluid_mm) >= NO_FLUID_MM:
        return pleura
    down = np.float32(-1.0 if patient.prone else 1.0) * places.y_mm
    level = np.where(places.x_mm < 0, *(np.float32(mm) for mm in patient.fluid_mm))
    return np.maximum(pleura, np.float32(0.9) * (down - np.float32(0.45 * z_mm) - level))


def between(lower, upper, pixel_mm):
    """Returns the `Surfaces` midway between two faces of a slice, and over how many mm the edges of each go in it."""
    middle, widths = {}, {}
    for field in dataclasses.fields(Surfaces):
        low, high = getattr(lower, field.name), getattr(upper, field.name)
        if field.name == "lung" and lower.lung is lower.pleura:
            middle["lung"], widths["lung"] = middle["pleura"], widths["pleura"]
            continue
        smear = high - low
        middle[field.name] = low + np.float32(0.5) * smear
        smear *= smear
        smear += np.float32(pixel_mm**2)
        widths[field.name] = np.sqrt(smear, out=smear)
    return Surfaces(**middle), Surfaces(**widths)


def _smooth_maximum(first, second, width_mm):
    """Returns the maximum, rounded where both are within `width_mm` of one another."""
    blend = np.maximum(np.float32(width_mm) - np.abs(first - second), 0)
    return np.maximum(first, second) + blend * blend * np.float32(0.25 / width_mm)


def _middle_distance(patient, places, z_mm):
    """Returns the signed distance [...] to the mediastinum: negative on the lungs' side."""
    edges = mediastinum_edges(patient, z_mm)
    factors = 1.0 / np.sqrt(1.0 + (np.gradient(edges, axis=1) / (ROWS_MM[1] - ROWS_MM[0])) ** 2)
    y = places.y_mm
    right, left = (np.interp(y, ROWS_MM, edge).astype(np.float32) for edge in edges)
    tilt_right, tilt_left = (np.interp(y, ROWS_MM, factor).astype(np.float32) for factor in factors)
    if places.x_mm.shape == y.shape:
        on_right = places.x_mm < 0
        return np.where(on_right, (right + places.x_mm) * tilt_right, (left - places.x_mm) * tilt_left)
    middle = int(np.searchsorted(places.x_mm[0], 0.0))
    distance = np.empty(places.radius_mm.shape, np.float32)
    np.multiply(right + places.x_mm[:, :middle], tilt_right, out=distance[:, :middle])
    np.multiply(left - places.x_mm[:, middle:], tilt_left, out=distance[:, middle:])
    return distance


def _cap_distance(patient, places, z_mm):
    """Returns the signed distance [...] to the lungs' apices, ellipsoids that close them above."""
    rise = np.clip((z_mm / patient.height_mm - 0.66) / 0.34, 0.0, 1.2)
    size = np.sqrt(max(1.0 - rise**2, 0.0))
    distance = []
    for x, y, width, depth in patient.caps.astype(np.float32):
        far = np.hypot((places.x_mm - x) / width, (places.y_mm - y) / depth)
        distance.append((far - np.float32(size)) * min(width, depth))
    return np.where(places.x_mm < 0, distance[0], distance[1])
