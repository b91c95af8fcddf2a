"""The anatomy of one phantom patient: smooth surfaces in millimetres, drawn from a seed.

Nothing here is voxels. A patient is a handful of surfaces that can be asked at any height for the
signed distance to any point, so that a slice of any matrix is drawn at once, on its own, with edges
that know their partial volume; `render` does that. The proportions follow textbook anatomy and
were set by eye and by area against middle slices of LUNA16; they are no measurement of anyone.

Patient axes, in mm: x to the patient's left, y to the back, z to the head. The origin lies in the
middle of the chest at the height of the lowest lung; `u = z / height` is 0 there and 1 at the apices.
Angles run around the origin: 0 to the front, pi/2 to the patient's left, +-pi to the back.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

NUM_ANGLES = 900
ANGLES = (np.arange(NUM_ANGLES) + 0.5) * (2 * np.pi / NUM_ANGLES) - np.pi
ROWS_MM = np.arange(-160.0, 161.0, 2.0)  # where the edges of the mediastinum are tabulated
RIB_PITCH_MM = 25.0
VERTEBRA_PITCH_MM = 24.0

# Half axes of the chest cavity and of the body, by height, relative to their largest.
_CAVITY_U = (-0.1, 0.0, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0, 1.1)
_CAVITY_WIDTH = (0.95, 0.97, 1.0, 0.99, 0.92, 0.77, 0.62, 0.54, 0.45)
_CAVITY_DEPTH = (0.98, 1.0, 1.0, 0.97, 0.87, 0.73, 0.62, 0.56, 0.5)
_BODY_U = (-0.1, 0.3, 0.6, 0.8, 0.95, 1.1)
_BODY_WIDTH = (0.97, 1.0, 1.02, 1.1, 1.24, 1.2)
_BODY_DEPTH = (1.0, 1.0, 0.98, 0.92, 0.84, 0.76)

# The contents of the mediastinum, as ellipses whose size follows a superellipse over the height:
# name, x, y, half width, half depth (mm), middle and half length in u, exponent.
_ORGANS = (
    ("right_hilum", -35, 11, 15, 15, 0.545, 0.085, 2.2),
    ("left_hilum", 35, 10, 15, 14, 0.56, 0.08, 2.2),
    ("crus", 0, 22, 34, 34, 0.08, 0.24, 3),
    ("cava", -20, 6, 12, 11, 0.16, 0.26, 8),
    ("ventricles", 26, -34, 53, 43, 0.355, 0.185, 2.4),
    ("right_atrium", -19, -20, 30, 34, 0.43, 0.17, 2.4),
    ("left_atrium", 2, 9, 33, 19, 0.495, 0.09, 2.6),
    ("ascending_aorta", -11, -30, 16, 16, 0.61, 0.12, 6),
    ("pulmonary_trunk", 17, -34, 15, 15, 0.595, 0.07, 4),
    ("pulmonary_arteries", 2, -10, 34, 9, 0.585, 0.04, 3),
    ("upper_cava", -27, -17, 10, 11, 0.69, 0.17, 8),
    ("arch", 11, 4, 14, 38, 0.735, 0.04, 3),
    ("descending_aorta", 19, 37, 12.5, 12.5, 0.32, 0.42, 12),
    ("oesophagus", 3, 27, 8, 6, 0.5, 0.7, 12),
    ("brachiocephalic", -17, -16, 10, 9, 0.88, 0.15, 6),
    ("left_vein", 14, -24, 14, 7, 0.85, 0.09, 4),
    ("left_carotid", 17, -6, 6, 6, 0.92, 0.16, 8),
    ("left_subclavian", 22, 9, 7, 7, 0.9, 0.13, 8),
    ("neck", 0, 6, 30, 38, 1.05, 0.24, 3),
    ("carina", 0, 8, 24, 16, 0.64, 0.06, 3),
    ("trachea", 0, 4, 15, 15, 0.85, 0.25, 8),
)
_BLOOD = {
    "cava",
    "ventricles",
    "right_atrium",
    "left_atrium",
    "ascending_aorta",
    "pulmonary_trunk",
    "pulmonary_arteries",
    "upper_cava",
    "arch",
    "descending_aorta",
    "brachiocephalic",
    "left_vein",
    "left_carotid",
    "left_subclavian",
}
_FATTY = {
    "crus": -30.0,
    "neck": -10.0,
    "right_hilum": -15.0,
    "left_hilum": -15.0,
    "carina": -70.0,
    "trachea": -60.0,
}


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


@dataclasses.dataclass(frozen=True)
class Patient:
    """One patient's surfaces and tissues.

    Attributes:
        height_mm: of the lungs, from the lowest recess to the apices.
        half_width_mm, front_mm, back_mm: largest half axes of the chest cavity.
        exponents: of the cavity's superellipse, in front and at the back.
        ripple: [4, 2] cosine and sine coefficients of the cavity's outline, relative.
        wall_mm: muscle and bone outside the cavity at the side, front and back.
        fat_mm: subcutaneous fat; breast_mm: how far the breasts stand out (0: none).
        organs: [M, 7] x, y, half width, half depth (mm), middle, half length (u), exponent.
        organ_hu: [M].
        thymus_mm: half width of the fat behind the breastbone.
        domes: [2, 5] right and left diaphragm: x, y (mm), peak (mm), half width, half depth (mm).
        caps: [2, 4] right and left apex: x, y, half width, half depth (mm).
        spine_y_mm: middle of the vertebral bodies; spine_phase_mm and rib_phase_mm: their levels.
        lung_hu, lung_slope_hu: at the origin, and per mm towards the table.
        vessel_hu: of the vessels within the lungs.
        prone: lies face down.
    """

    height_mm: float
    half_width_mm: float
    front_mm: float
    back_mm: float
    exponents: tuple[float, float]
    ripple: np.ndarray
    wall_mm: tuple[float, float, float]
    fat_mm: float
    breast_mm: float
    organs: np.ndarray
    organ_hu: np.ndarray
    thymus_mm: float
    domes: np.ndarray
    caps: np.ndarray
    spine_y_mm: float
    spine_phase_mm: float
    rib_phase_mm: float
    lung_hu: float
    lung_slope_hu: float
    vessel_hu: float
    prone: bool


def create_patient(rng, *, prone_fraction):
    """Returns a `Patient` drawn from `rng`; lies prone with probability `prone_fraction`."""
    prone = bool(rng.random() < prone_fraction)
    scale = rng.normal(1.0, 0.07)
    half_width_mm = 129.0 * scale * rng.normal(1.0, 0.03)
    front_mm, back_mm = 91.0 * scale * rng.normal(1.0, 0.06), 96.0 * scale * rng.normal(1.0, 0.04)
    height_mm = float(np.clip(262.0 * scale * rng.normal(1.0, 0.06), 205.0, 320.0))
    contrast_hu = rng.uniform(110.0, 330.0) if rng.random() < 0.4 else 0.0
    organs, organ_hu = _create_organs(rng, scale, contrast_hu)
    fat_mm = float(np.clip(rng.gamma(3.0, 5.5), 4.0, 42.0))
    return Patient(
        height_mm=height_mm,
        half_width_mm=half_width_mm,
        front_mm=front_mm,
        back_mm=back_mm,
        exponents=(rng.uniform(1.75, 2.15), rng.uniform(2.2, 2.75)),
        ripple=rng.normal(0.0, 1.0, (4, 2)) * np.array([0.012, 0.014, 0.008, 0.005])[:, None],
        wall_mm=(rng.uniform(17, 26), rng.uniform(15, 20), rng.uniform(20, 30)),
        fat_mm=fat_mm,
        breast_mm=rng.uniform(8.0, 32.0) if rng.random() < 0.42 else 0.0,
        organs=organs,
        organ_hu=organ_hu,
        thymus_mm=rng.uniform(4.0, 20.0),
        domes=_create_domes(rng, scale, height_mm),
        caps=_create_caps(rng, half_width_mm, back_mm),
        spine_y_mm=back_mm - 43.0 * scale + rng.normal(0.0, 2.0),
        spine_phase_mm=rng.uniform(0.0, VERTEBRA_PITCH_MM),
        rib_phase_mm=rng.uniform(0.0, RIB_PITCH_MM),
        lung_hu=float(np.clip(rng.normal(-886.0, 28.0), -935.0, -815.0)),
        lung_slope_hu=rng.uniform(0.1, 0.5) * (-1.0 if prone else 1.0),
        vessel_hu=40.0 + 0.6 * contrast_hu,
        prone=prone,
    )


def _create_organs(rng, scale, contrast_hu):
    """Returns the organs [M, 7] and their HU [M], each a little moved and resized."""
    heart = rng.normal(1.0, 0.07)
    rows, hu = [], []
    for name, x, y, width, depth, middle, half, exponent in _ORGANS:
        grown = scale * rng.normal(1.0, 0.05, 2)
        if name in ("ventricles", "right_atrium"):
            grown = grown * heart
        rows.append(
            (
                scale * x + rng.normal(0, 1.5),
                scale * y + rng.normal(0, 1.5),
                width * grown[0],
                depth * grown[1],
                middle + rng.normal(0, 0.006),
                half,
                exponent,
            )
        )
        hu.append(_organ_hu(rng, name, contrast_hu))
    return np.array(rows), np.array(hu)


def _organ_hu(rng, name, contrast_hu):
    """Returns the HU of one organ; blood takes up its share of the contrast agent."""
    if name in _FATTY:
        return _FATTY[name] + rng.normal(0.0, 12.0)
    share = rng.uniform(0.6, 1.0) if name in _BLOOD else 0.15
    return rng.normal(42.0, 4.0) + share * contrast_hu


def _create_domes(rng, scale, height_mm):
    """Returns the two diaphragms [2, 5]; the right one stands higher."""
    right_mm = height_mm * rng.normal(0.34, 0.025)
    left_mm = right_mm - max(0.0, rng.normal(13.0, 6.0))
    shape = scale * rng.normal(1.0, 0.05, (2, 2))
    return np.array(
        [
            (-66.0 * scale, -8.0, right_mm, 76.0 * shape[0, 0], 88.0 * shape[0, 1]),
            (66.0 * scale, -4.0, left_mm, 74.0 * shape[1, 0], 88.0 * shape[1, 1]),
        ]
    )


def _create_caps(rng, half_width_mm, back_mm):
    """Returns the two apices [2, 4]."""
    x = half_width_mm * rng.normal(0.40, 0.02, 2)
    grown = rng.normal(1.0, 0.05, (2, 2))
    return np.array(
        [
            (-x[0], 12.0, 0.60 * half_width_mm * grown[0, 0], 1.02 * back_mm * grown[0, 1]),
            (x[1], 12.0, 0.58 * half_width_mm * grown[1, 0], 1.02 * back_mm * grown[1, 1]),
        ]
    )


_SINE, _COSINE = np.abs(np.sin(ANGLES)), np.abs(np.cos(ANGLES))
_IN_FRONT = np.cos(ANGLES) > 0


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
    radius = _superellipse(
        patient.half_width_mm * width, patient.front_mm * depth, patient.back_mm * depth, patient.exponents
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
        (patient.front_mm + front) * depth,
        (patient.back_mm + back) * (0.5 + 0.5 * depth),
        (2.2, 2.5),
    )
    folds = 0.016 * np.cos(7 * ANGLES + patient.rib_phase_mm) * _bump(np.abs(ANGLES) - 2.2, 0.8)
    muscle = muscle * (1.0 + folds)
    shoulder_blade = 9.0 * np.interp(u, (0.3, 0.6), (0.0, 1.0)) * _bump(np.abs(ANGLES) - 2.2, 0.35)
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


def organs_at(patient, z_mm):
    """Returns the ellipses [m, 4] (x, y, half width, half depth; mm) at `z_mm`, and their indices [m]."""
    organs = patient.organs
    along = np.abs(z_mm / patient.height_mm - organs[:, 4]) / organs[:, 5]
    present = np.flatnonzero(along < 0.999)
    size = (1.0 - along[present] ** organs[present, 6]) ** (1.0 / organs[present, 6])
    ellipses = organs[present, :4].copy()
    ellipses[:, 2:] *= size[:, None]
    return ellipses, present


def mediastinum_edges(patient, z_mm):
    """Returns the half widths [2, R] in mm of the mediastinum to the right and left, over `ROWS_MM`.

    They are the outlines of what lies inside, padded with fat and smoothed: the lungs lean on it.
    """
    ellipses, _ = organs_at(patient, z_mm)
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
    height, factor = dome[..., 2] - drop - tilt, 1.0 / np.sqrt(1.0 + slope**2)
    return height.astype(np.float32), factor.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """Signed distances in mm at one height, float32 [...]: negative inside.

    Attributes:
        cavity: to the chest wall's inner face.
        dome: to the diaphragm; negative above it, where the lung is.
        lung: to the lungs' surface, both together; a point with x < 0 belongs to the right one.
    """

    cavity: np.ndarray
    dome: np.ndarray
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
    return Surfaces(cavity, under, lung)


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
