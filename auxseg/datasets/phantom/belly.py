"""What lies below the diaphragm: liver, spleen, stomach, kidneys, and bowel with gas and contents.

Axes are those of `anatomy`; a body here is a row of x, y, half width, half depth, middle and half length over the height,
all in mm, and an exponent (`surfaces.ellipses_at`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import surfaces, tubes
from auxseg.datasets.phantom.grain import sample_grain
from auxseg.datasets.phantom.paint import bounds, coverage, paint, paint_ellipse, paint_field, window

LUMEN_HU = -975.0
_MESENTERY_HU, _LIVER_HU, _MUSCLE_HU, _WALL_HU, _FOOD_HU = -100.0, 58.0, 45.0, 42.0, 28.0
_NUM_LOOPS = 26
_MUSCLE_MM = 3.0  # of the diaphragm


@dataclasses.dataclass(frozen=True)
class Belly:
    """The organs of one patient's abdomen.

    Attributes:
        bodies: [M, 7], solid organs and loops of small bowel; hu: [M] of each.
        liver: x where it ends at the middle of the body, slope of its lower edge, height of that edge, HU.
        stomach: [7] as the bodies; colon: `Capsules`.
        stomach_level_mm, levels_mm: y of the level of the contents, in the stomach and in each tube of the colon.
        folds: of the stomach's wall, relative.
        stool_hu: of the colon's contents; mottle_hu: how far they and the stomach's vary; phase: of that.
    """

    bodies: np.ndarray
    hu: np.ndarray
    liver: tuple[float, float, float, float]
    stomach: np.ndarray
    colon: tubes.Capsules
    stomach_level_mm: float
    levels_mm: np.ndarray
    folds: float
    stool_hu: float
    mottle_hu: float
    phase: float


def create_belly(rng, patient):
    """Returns the `Belly` of a patient, drawn from `rng`."""
    height, wide = patient.height_mm, patient.half_width_mm / 129.0
    bodies, hu = _create_bodies(rng, patient, wide)
    stomach = np.array([rng.normal(52, 6) * wide, rng.normal(-26, 6), rng.uniform(30, 48), rng.uniform(26, 42),
                        rng.normal(0.12, 0.04) * height, rng.uniform(0.17, 0.25) * height, 2.5])  # fmt: skip
    colon, legs = _create_colon(rng, patient, wide)
    up = 1.0 if patient.prone else -1.0
    return Belly(
        bodies=bodies,
        hu=hu,
        liver=(
            rng.normal(42.0, 8.0),
            rng.uniform(0.4, 0.7),
            rng.uniform(-0.36, -0.16) * height,
            rng.normal(_LIVER_HU, 8.0) + 0.25 * patient.contrast_hu,
        ),  # fmt: skip
        stomach=stomach,
        colon=colon,
        stomach_level_mm=float(stomach[1] + up * stomach[3] * rng.uniform(-0.9, 1.0)),
        levels_mm=_create_levels(rng, colon, legs),
        folds=float(rng.uniform(0.0, 0.08)),
        stool_hu=float(rng.uniform(-60.0, 60.0)),
        mottle_hu=float(rng.uniform(20.0, 380.0)),
        phase=float(rng.uniform(0.0, 6.0)),
    )


def _create_bodies(rng, patient, wide):
    """Returns the solid organs and the loops of small bowel [M, 7] and their HU [M]."""
    height, contrast = patient.height_mm, patient.contrast_hu
    blood = 0.5 * contrast
    rows, hu = [], []
    for x, y, width, depth, middle, half, value in (
        (84, 40, 34, 42, 0.10, 0.22, 50 + blood),  # spleen
        (-36, patient.spine_y_mm + 8, 17, 20, -0.42, 0.34, 55),  # psoas
        (36, patient.spine_y_mm + 8, 17, 20, -0.42, 0.34, 55),
        (-62, 46, 29, 27, -0.24, 0.21, 32 + blood),  # kidneys
        (62, 46, 29, 27, -0.18, 0.21, 32 + blood),
        (-48, 38, 12, 9, -0.24, 0.11, -70),  # the fat in their middle
        (48, 38, 12, 9, -0.18, 0.11, -70),
        (5, -4, 44, 11, -0.10, 0.07, 42 + 0.3 * contrast),  # pancreas
        (-50, -42, 15, 17, -0.14, 0.10, 8),  # gall bladder
    ):
        grown = rng.normal(1.0, 0.07, 2)
        rows.append((wide * x + rng.normal(0, 3), y + rng.normal(0, 3), width * grown[0], depth * grown[1],
                     (middle + rng.normal(0, 0.02)) * height, half * height, 2.4))  # fmt: skip
        hu.append(value + rng.normal(0, 5))
    for _ in range(_NUM_LOOPS):
        rows.append((rng.uniform(-70, 70) * wide, rng.uniform(-0.85, 0.1) * patient.front_mm * patient.belly,
                     rng.uniform(9, 22), rng.uniform(8, 15), rng.uniform(-0.75, -0.14) * height,
                     rng.uniform(10, 28), 2.5))  # fmt: skip
        hu.append(rng.uniform(15, 60))
    return np.array(rows), np.array(hu)


def _create_colon(rng, patient, wide):
    """Returns the colon as `Capsules`, up on the right, across in front, up under the left dome, and down; its legs [M]."""
    height, front = patient.height_mm, patient.front_mm * patient.belly
    under_dome = patient.domes[1, 2] - rng.uniform(28.0, 90.0)
    points = np.array([
        (-88 * wide, -0.2 * front, -0.62 * height),
        (-97 * wide, 8, -0.32 * height),
        (-84 * wide, -0.45 * front, rng.uniform(-0.22, -0.06) * height),
        (-32 * wide, -0.74 * front, rng.uniform(-0.36, -0.10) * height),
        (34 * wide, -0.74 * front, rng.uniform(-0.32, -0.02) * height),
        (90 * wide, -0.2 * front, under_dome),
        (101 * wide, 26, -0.16 * height),
        (98 * wide, 30, -0.62 * height),
    ])  # fmt: skip
    points += rng.normal(0.0, 5.0, points.shape)
    line, legs = [points[0]], []
    for leg, (start, end) in enumerate(zip(points[:-1], points[1:], strict=True)):
        pieces = tubes.bend(rng, start, end, piece_mm=15.0, sway=0.15)
        line.extend(pieces)
        legs += [leg] * len(pieces)
    wander = np.cumsum(rng.normal(0.0, 0.18, len(line)))
    radii = np.clip(
        rng.uniform(13.0, 22.0) * np.exp(wander - wander.mean()) * rng.uniform(0.8, 1.15, len(line)), 8, 30
    )
    return tubes.along(np.array(line), radii), np.array(legs)


def _create_levels(rng, colon, legs):
    """Returns y in mm of the level of the contents in each tube of the colon, the same along each leg of it."""
    levels = np.empty(len(legs))
    for leg in range(legs[-1] + 1):
        own = legs == leg
        y, radius = colon.start_mm[own, 1], colon.start_radius_mm[own]
        levels[own] = rng.uniform((y - radius).min() - 3.0, (y + radius).max() + 3.0)
    return levels


def draw_belly(image, canvas, patient, belly, below, z_mm):
    """Paints the abdomen in place.

    Args:
        image: float32 [H, W].
        canvas: its pixels.
        patient: whose.
        belly: his `Belly`.
        below: share of each pixel under the diaphragm, and the distance to its lower face in mm; both [H, W].
        z_mm: height.
    """
    spared, deep_mm = below
    deep = spared * coverage(np.float32(_MUSCLE_MM) - deep_mm, canvas.pixel_mm)
    inner = np.full_like(image, _MESENTERY_HU)
    _paint_liver(inner, canvas, belly, z_mm)
    bodies = surfaces.ellipses_at(belly.bodies, z_mm, canvas.thickness_mm)
    for ellipse, smear, which in zip(*bodies, strict=True):
        paint_ellipse(inner, canvas, ellipse, belly.hu[which], smear=smear)
    _paint_stomach(inner, canvas, patient, belly, z_mm)
    _paint_colon(inner, canvas, patient, belly, z_mm)
    paint(image, spared, _MUSCLE_HU)
    paint_field(image, deep, inner)


def _paint_liver(image, canvas, belly, z_mm):
    """Paints the liver: all that is right of a slanting plane and above another."""
    places, (end, slope, lower, hu) = canvas.places, belly.liver
    side = end - np.float32(0.8) * places.y_mm - places.x_mm
    wave = 7.0 * np.sin(np.float32(0.05) * places.y_mm + belly.phase) * np.sin(np.float32(0.04) * places.x_mm)
    edge = lower + slope * (places.x_mm + 100.0) + 0.45 * (places.y_mm + 10.0) + wave
    above = (z_mm - edge) * np.float32(0.7)
    distance = np.maximum(-side * np.float32(0.78), -above)
    paint(image, coverage(distance, np.float32(np.hypot(2.0, 0.6 * canvas.thickness_mm))), hu)


def _fill(canvas, patient, belly, index, z_mm, hu):
    """Returns contents of bowel float32 [h, w] in HU over a box: mottled, with bubbles."""
    x, y = canvas.places.x_mm[0, index[1]], canvas.places.y_mm[index[0], 0]
    texture = sample_grain(patient.grain, x, y, z_mm + belly.phase, 2.0)
    contents = np.float32(hu) + np.float32(belly.mottle_hu) * np.minimum(0.25 - 0.5 * texture, 0.4)
    return np.maximum(contents, np.float32(-900.0))


def _paint_stomach(image, canvas, patient, belly, z_mm):
    """Paints the stomach: a wall with folds, contents, and gas over them."""
    ellipses, smear, present = surfaces.ellipses_at(belly.stomach[None], z_mm, canvas.thickness_mm)
    if not len(present):
        return
    x0, y0, width, depth = ellipses[0].tolist()
    box = window(canvas, x0 - width - 8, x0 + width + 8, y0 - depth - 8, y0 + depth + 8)
    if box is None:
        return
    index, x, y = box
    across, along = (x - np.float32(x0)) / np.float32(width), (y - np.float32(y0)) / np.float32(depth)
    folds = 1.0 + belly.folds * np.sin(9.0 * np.arctan2(along, across) + belly.phase + 0.05 * z_mm)
    distance = (np.hypot(across, along) - folds) * np.float32(min(width, depth))
    soft = np.float32(np.hypot(canvas.pixel_mm, smear[0]))
    paint(image[index], coverage(distance - np.float32(4.0), soft), _WALL_HU)
    share = coverage(distance, soft)
    paint_field(image[index], share, _fill(canvas, patient, belly, index, z_mm, _FOOD_HU))
    paint(image[index], share * _over(canvas, patient, index, belly.stomach_level_mm), LUMEN_HU)


def _over(canvas, patient, index, level_mm):
    """Returns the share [h, 1] of the pixels of a box that lie over a level, as gas does."""
    up = np.float32(1.0 if patient.prone else -1.0)
    return coverage(up * (np.float32(level_mm) - canvas.places.y_mm[index[0]]), canvas.pixel_mm)


def _paint_colon(image, canvas, patient, belly, z_mm):
    """Paints the colon: first all walls, then all contents and the gas, so that its pieces open into one another."""
    soft = np.float32(np.hypot(canvas.pixel_mm, 0.5 * canvas.thickness_mm))
    walls = list(tubes.distances_at(canvas, belly.colon.widened(2.0), z_mm))
    for _, index, distance in walls:
        paint(image[index], coverage(distance, soft), _WALL_HU)
    if not walls:
        return
    lumen, gas = np.zeros_like(image), np.zeros_like(image)
    for which, index, distance in tubes.distances_at(canvas, belly.colon, z_mm):
        share = coverage(distance, soft)
        np.maximum(lumen[index], share, out=lumen[index])
        share *= _over(canvas, patient, index, belly.levels_mm[which])
        np.maximum(gas[index], share, out=gas[index])
    if lumen.any():
        box = bounds(lumen > 0)
        paint_field(image[box], lumen[box], _fill(canvas, patient, belly, box, z_mm, belly.stool_hu))
        paint(image[box], gas[box], LUMEN_HU)
