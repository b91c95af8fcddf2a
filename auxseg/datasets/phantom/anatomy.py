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

from auxseg.datasets.phantom.grain import create_grain

NUM_ANGLES = 900
ANGLES = (np.arange(NUM_ANGLES) + 0.5) * (2 * np.pi / NUM_ANGLES) - np.pi
NO_FLUID_MM, NO_LUNG_MM = 1e4, -1e4
RIB_PITCH_MM = 25.0
VERTEBRA_PITCH_MM = 24.0

# The contents of the mediastinum, as ellipses whose size follows a superellipse over the height:
# name, x, y, half width, half depth (mm), middle and half length in u, exponent.
_ORGANS = (
    ("right_hilum", -35, 11, 15, 15, 0.545, 0.085, 2.2),
    ("left_hilum", 35, 10, 15, 14, 0.56, 0.08, 2.2),
    ("crus", 0, 22, 34, 34, 0.08, 0.24, 3),
    ("cava", -20, 6, 12, 11, -0.1, 0.52, 12),
    ("ventricles", 26, -34, 53, 43, 0.355, 0.185, 2.4),
    ("right_atrium", -19, -20, 30, 34, 0.43, 0.17, 2.4),
    ("left_atrium", 2, 9, 33, 19, 0.495, 0.09, 2.6),
    ("ascending_aorta", -11, -30, 16, 16, 0.61, 0.12, 6),
    ("pulmonary_trunk", 17, -34, 15, 15, 0.595, 0.07, 4),
    ("pulmonary_arteries", 2, -10, 34, 9, 0.585, 0.04, 3),
    ("upper_cava", -27, -17, 10, 11, 0.69, 0.17, 8),
    ("arch", 11, 4, 14, 38, 0.735, 0.04, 3),
    ("descending_aorta", 19, 37, 12.5, 12.5, 0.06, 0.68, 16),
    ("oesophagus", 3, 27, 8, 6, 0.68, 0.62, 12),
    ("brachiocephalic", -17, -16, 10, 9, 0.88, 0.15, 6),
    ("left_vein", 14, -24, 14, 7, 0.85, 0.09, 4),
    ("left_carotid", 17, -6, 6, 6, 0.92, 0.16, 8),
    ("left_subclavian", 22, 9, 7, 7, 0.9, 0.13, 8),
    ("neck", 0, 6, 30, 38, 1.25, 0.45, 4),
    ("right_thyroid", -19, -12, 9, 12, 1.12, 0.1, 2.4),
    ("left_thyroid", 19, -12, 9, 12, 1.12, 0.1, 2.4),
    ("right_neck_vein", -33, -2, 8, 6, 1.33, 0.3, 8),
    ("left_neck_vein", 33, -2, 7, 6, 1.33, 0.3, 8),
    ("right_carotid", -26, 4, 4, 4, 1.33, 0.3, 8),
    ("left_neck_artery", 26, 4, 4, 4, 1.33, 0.3, 8),
    ("carina", 0, 8, 24, 16, 0.64, 0.06, 3),
    ("trachea", 0, 4, 15, 15, 0.85, 0.25, 8),
)
GULLET = [row[0] for row in _ORGANS].index("oesophagus")
DEEP = frozenset(place for place, row in enumerate(_ORGANS) if row[0] in ("cava", "descending_aorta"))
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
    "right_neck_vein",
    "left_neck_vein",
    "right_carotid",
    "left_neck_artery",
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
        belly: depth of the abdomen in front, relative to the chest's.
        scallops: [2, 2] of the two diaphragms: height in mm and phase of their waves.
        shift_mm: of the mediastinum to the left.
        fluid_mm: [2] of the right and left pleural space: fluid lies behind this y at the height 0 (`NO_FLUID_MM`:
            nowhere; `NO_LUNG_MM`: in place of a lung).
        contrast_hu: of blood with the contrast agent, or 0.
        gullet_mm: radius of the air in the oesophagus, where there is any.
        grain: sheets of a texture, `grain.create_grain`.
        calcium_hu: by how much the rims of the ribs' cartilage are denser than cartilage.
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
    belly: float
    scallops: np.ndarray
    shift_mm: float
    fluid_mm: tuple[float, float]
    contrast_hu: float
    gullet_mm: float
    grain: np.ndarray
    calcium_hu: float


def create_patient(rng, *, prone_fraction):
    """Returns a `Patient` drawn from `rng`; lies prone with probability `prone_fraction`."""
    prone = bool(rng.random() < prone_fraction)
    scale = rng.normal(1.0, 0.07)
    half_width_mm = 129.0 * scale * rng.normal(1.0, 0.03)
    front_mm, back_mm = 91.0 * scale * rng.normal(1.0, 0.06), 96.0 * scale * rng.normal(1.0, 0.04)
    height_mm = float(np.clip(262.0 * scale * rng.normal(1.0, 0.06), 205.0, 320.0))
    contrast_hu = rng.uniform(110.0, 330.0) if rng.random() < 0.4 else 0.0
    fluid_mm, shift_mm = _create_fluid(rng)
    organs, organ_hu = _create_organs(rng, scale, contrast_hu)
    organs[:, 0] += shift_mm * np.clip(1.6 - organs[:, 4], 0.0, 1.0)
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
        belly=float(np.clip(rng.normal(0.92, 0.12) + 0.008 * fat_mm, 0.75, 1.3)),
        scallops=np.stack([rng.uniform(0.0, 5.0, 2), rng.uniform(-np.pi, np.pi, 2)], axis=1),
        shift_mm=shift_mm,
        fluid_mm=fluid_mm,
        contrast_hu=contrast_hu,
        gullet_mm=rng.uniform(1.0, 5.0) if rng.random() < 0.5 else 0.0,
        grain=create_grain(rng),
        calcium_hu=rng.uniform(50.0, 400.0) if rng.random() < 0.35 else 0.0,
    )


def _create_fluid(rng):
    """Returns the levels of pleural fluid on the right and left, in mm, and the shift of the mediastinum.

    One patient in thirty lacks a lung; the mediastinum has moved to that side.
    """
    if rng.random() < 1 / 30:
        missing = int(rng.integers(2))
        levels = tuple(NO_LUNG_MM if side == missing else NO_FLUID_MM for side in (0, 1))
        return levels, float(rng.uniform(8.0, 22.0)) * (-1.0, 1.0)[missing]
    levels = [float(rng.uniform(5.0, 75.0)) if rng.random() < 0.08 else NO_FLUID_MM for _ in (0, 1)]
    return tuple(levels), float(rng.normal(0.0, 3.0))


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
    if name.endswith("thyroid"):
        return rng.normal(105.0, 12.0) + 0.4 * contrast_hu
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
