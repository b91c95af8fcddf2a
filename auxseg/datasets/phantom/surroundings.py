"""What lies around the phantom's body: air, the table, clothes and blankets. Axes are those of `anatomy`."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import anatomy, surfaces
from auxseg.datasets.phantom.paint import coverage, paint

AIR_HU = -1000.0
REACH_MM = 60.0
"""As far from the skin can clothes lie."""
_FOAM_HU, _SHELL_HU = -965.0, 60.0


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Table and clothes of one scan.

    Attributes:
        kind: of the table: 'cradle', 'mattress' or 'box'.
        curve_mm: radius of the cradle.
        half_width_mm: of the table.
        cloths: [C, 6] gap to the skin, size of its folds (mm), their number, their phase, half thickness (mm), HU.
    """

    kind: str
    curve_mm: float
    half_width_mm: float
    cloths: np.ndarray


def create_surroundings(rng):
    """Returns the `Surroundings` of a scan, drawn from `rng`."""
    num_cloths = int(rng.integers(0, 4))
    cloths = np.stack([rng.uniform(1.5, 16.0, num_cloths), rng.uniform(0.5, 12.0, num_cloths),
                       rng.integers(3, 9, num_cloths), rng.uniform(0, 6.28, num_cloths),
                       rng.uniform(0.3, 1.0, num_cloths), rng.uniform(-880.0, -450.0, num_cloths)], axis=1)  # fmt: skip
    return Surroundings(
        kind=str(rng.choice(["cradle", "mattress", "box"], p=[0.5, 0.25, 0.25])),
        curve_mm=rng.uniform(700.0, 1500.0),
        half_width_mm=rng.uniform(195.0, 235.0),
        cloths=cloths,
    )


def draw_table(patient, around, places, pixel_mm):
    """Returns air with the table, float32 [H, W] in HU: shells with foam between them."""
    top, outward = surfaces.table_y_mm(patient), -1.0 if patient.prone else 1.0
    curve = 0.0 if around.kind == "box" else -outward * places.x_mm**2 / np.float32(around.curve_mm)
    below = (places.y_mm - np.float32(top) - curve) * np.float32(outward)
    image = np.full(np.broadcast_shapes(below.shape, places.x_mm.shape), AIR_HU, np.float32)
    across = np.abs(places.x_mm)
    within = coverage(across - np.float32(around.half_width_mm), pixel_mm)
    if around.kind == "mattress":
        paint(image, coverage(np.abs(below - 11.0) - 10.0, pixel_mm) * within, -930.0)
        paint(image, coverage(np.abs(below - 1.5) - 0.5, pixel_mm) * within, -300.0)
        below = below - np.float32(20.0)
    paint(image, coverage(np.abs(below - 14.0) - 11.0, pixel_mm) * within, _FOAM_HU)
    for depth, hu in ((4.0, -640.0), (25.0, _SHELL_HU)):
        paint(image, coverage(np.abs(below - depth) - 1.4, pixel_mm) * within, hu)
    if around.kind == "box":
        narrowing = np.abs(across - np.float32(around.half_width_mm) + np.float32(0.9) * below) - np.float32(
            1.5
        )
        legs = np.maximum(narrowing, np.abs(below - 42.0) - 42.0)
        paint(image, coverage(legs, pixel_mm), _SHELL_HU)
        paint(image, coverage(np.maximum(np.abs(below - 80.0) - 2.0, across - 120.0), pixel_mm), 20.0)
        rail = np.maximum(np.abs(across - 60.0) - 9.0, np.abs(below - 62.0) - 14.0)
        paint(image, coverage(np.abs(rail) - 1.2, pixel_mm), 900.0)
    return image


def draw_cloths(image, canvas, around, skin, z_mm):
    """Paints clothes and blankets in place, as thin sheets round the front that come down to the table.

    Args:
        image: float32 [H, W], contiguous.
        canvas: its pixels.
        around: `Surroundings`.
        skin: [K], radius of the skin in mm over `ANGLES`.
        z_mm: height.
    """
    if not len(around.cloths):
        return
    outside = canvas.places.radius_mm - surfaces.look_up(skin, canvas.places)
    ring = np.flatnonzero((outside > 0.0) & (outside < REACH_MM))
    away, angle = outside.ravel()[ring], canvas.places.angle_bin.ravel()[ring]
    values = image.ravel()[ring]
    for gap, fold, number, phase, half, hu in around.cloths.tolist():
        waves = np.sin(number * anatomy.ANGLES + phase + 0.02 * z_mm) + 0.6 * np.sin(
            (2 * number + 1) * anatomy.ANGLES - 2 * phase - 0.05 * z_mm
        )
        slack = np.exp(-0.5 * ((np.abs(anatomy.ANGLES) - 0.9) / 0.9) ** 2)
        line = gap + fold * (0.5 + waves) * slack + 0.6
        line = np.where(np.abs(anatomy.ANGLES) < 2.35, np.clip(line, 0.6, REACH_MM - 2.0), -99.0).astype(
            np.float32
        )
        share = coverage(np.abs(away - line[angle]) - np.float32(half), canvas.pixel_mm)
        share *= np.float32(min(1.0, 2.0 * half / canvas.pixel_mm))
        values += share * np.maximum(np.float32(hu) - values, 0)
    image.reshape(-1)[ring] = values
