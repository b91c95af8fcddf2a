"""Arms, up beside the head or down beside the body, and collarbones, as tubes in mm. Axes are those of `anatomy`."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import tubes
from auxseg.datasets.phantom.paint import coverage, paint

_SKIN_HU, _FAT_HU, _MUSCLE_HU, _CORTEX_HU, _SPONGY_HU, _MARROW_HU = 5.0, -100.0, 52.0, 700.0, 250.0, 60.0
_ARMS_UP = 0.75  # of the patients


@dataclasses.dataclass(frozen=True)
class Limbs:
    """What hangs on the shoulders.

    Attributes:
        arms: `Capsules` of the skin.
        muscle_mm: by how much muscle lies deeper than the skin.
        bones: `Capsules` of the arms' bones; collarbones: of these.
    """

    arms: tubes.Capsules
    muscle_mm: float
    bones: tubes.Capsules
    collarbones: tubes.Capsules


def create_limbs(rng, patient):
    """Returns the `Limbs` of a patient, drawn from `rng`."""
    height, wide = patient.height_mm, patient.half_width_mm + patient.wall_mm[0]
    thick = 34.0 + 0.45 * patient.fat_mm + rng.uniform(0.0, 6.0)
    up = rng.random() < _ARMS_UP
    arms, bones, collarbones = [], [], []
    for side in (-1, 1):
        if up:
            shoulder = np.array([side * 1.0 * wide, 4.0, 0.93 * height])
            elbow = shoulder + [side * rng.uniform(0, 60), rng.uniform(-70, 10), rng.uniform(150, 280)]
            wrist = elbow + [-side * rng.uniform(40, 140), rng.uniform(-40, 40), rng.uniform(60, 200)]
        else:
            shoulder = np.array([side * 1.14 * wide, 6.0, 0.90 * height])
            beside = wide + 0.9 * patient.fat_mm + thick + rng.uniform(0.0, 22.0)
            elbow = np.array([side * beside, 22.0 + rng.normal(0, 8), rng.uniform(-0.1, 0.1) * height])
            wrist = np.array([side * (beside - rng.uniform(0, 60)), rng.uniform(-80, 30), -0.9 * height])
        arms += [(shoulder, elbow, 1.15 * thick, thick), (elbow, wrist, 0.85 * thick, 0.6 * thick)]
        bones += [(shoulder, shoulder + 0.06 * (elbow - shoulder), 24.0, 21.0), (shoulder, elbow, 12.0, 11.0),
                  (elbow, wrist, 9.0, 8.0)]  # fmt: skip
        joint = np.array([side * 0.92 * wide, -6.0, (1.01 if up else 0.96) * height])
        middle = np.array([side * 70.0, -0.5 * patient.front_mm, 0.98 * height])
        root = np.array([side * 16.0, -0.68 * patient.front_mm - 8.0, 0.90 * height])
        collarbones += [(root, middle, 8.0, 6.0), (middle, joint, 6.0, 6.5)]
    parts = (tubes.from_rows(rows) for rows in (arms, bones, collarbones))
    arms, bones, collarbones = parts
    return Limbs(arms, 3.0 + 0.3 * patient.fat_mm, bones, collarbones)


def draw_arms(image, canvas, limbs, z_mm):
    """Paints the arms in place on float32 [H, W]; the body is painted over them."""
    soft = float(np.hypot(canvas.pixel_mm, 0.3 * canvas.thickness_mm))
    for deeper_mm, hu in ((0.0, _SKIN_HU), (2.0, _FAT_HU), (limbs.muscle_mm, _MUSCLE_HU)):
        for _, index, distance in tubes.distances_at(canvas, limbs.arms, z_mm):
            paint(image[index], coverage(distance + np.float32(deeper_mm), soft), hu)
    draw_bones(image, canvas, limbs.bones, z_mm)


def draw_bones(image, canvas, bones, z_mm):
    """Paints bones in place, with marrow in those that are wide."""
    soft = float(np.hypot(canvas.pixel_mm, 0.3 * canvas.thickness_mm))
    for which, index, distance in tubes.distances_at(canvas, bones, z_mm):
        paint(image[index], coverage(distance, soft), _CORTEX_HU)
        is_head = bones.start_radius_mm[which] > 15.0
        deeper = np.float32(1.8 if is_head else 2.0 + 0.12 * bones.start_radius_mm[which])
        marrow = _SPONGY_HU if is_head else _MARROW_HU
        paint(image[index], coverage(distance + deeper, soft), marrow)
