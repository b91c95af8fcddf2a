"""The wall of the phantom's chest: skin, fat, breasts, muscle, ribs with cartilage, shoulder blades, breastbone and spine."""

from __future__ import annotations

import numpy as np

from auxseg.datasets.phantom import anatomy, surfaces
from auxseg.datasets.phantom.grain import sample_grain
from auxseg.datasets.phantom.paint import coverage, paint, paint_box, paint_ellipse, window

FAT_HU, _MUSCLE_HU, _SKIN_HU, _CORTEX_HU = -100.0, 52.0, 5.0, 650.0
_CARTILAGE_HU = 105.0


def draw_wall(image, canvas, cavity_mm, radii, z_mm, patient):
    """Paints skin, fat, breasts, muscle, ribs, shoulder blades and breastbone.

    Args:
        image: float32 [H, W], contiguous, painted in place.
        canvas: its pixels.
        cavity_mm: signed distance [H, W] to the cavity.
        radii: [K] of the cavity, the skin and the muscle, over `ANGLES`.
        z_mm: height.
        patient: whose.
    """
    places, pixel, cavity = canvas.places, canvas.pixel_mm, radii[0]
    skin, muscle = (surfaces.look_up(radius, places) - places.radius_mm for radius in radii[1:])
    paint(image, coverage(-skin, pixel), _SKIN_HU)
    paint(image, coverage(2.0 - skin, pixel), FAT_HU)
    u = z_mm / patient.height_mm
    _draw_glands(image, canvas, radii, u, patient)
    paint(image, coverage(-muscle, pixel), _MUSCLE_HU)
    _draw_marbling(image, canvas, muscle, cavity_mm, z_mm, patient)
    ring = np.flatnonzero((cavity_mm > -1.0) & (cavity_mm < 36.0) & (muscle > 0.0))
    outside, angle = cavity_mm.ravel()[ring], places.angle_bin.ravel()[ring]
    values = image.ravel()[ring]
    marbling = np.sin(19 * anatomy.ANGLES + 0.05 * z_mm).astype(np.float32)[angle]
    marbling *= np.sin(outside * np.float32(0.42))
    values -= np.float32(42.0) * np.maximum(marbling - np.float32(0.35), 0)
    for offset, half, hu in _planes_of_fat(u):
        paint(values, coverage(np.abs(outside - offset) - half[angle], pixel), hu)
    soft = float(np.hypot(pixel, 0.35 * canvas.thickness_mm))
    for offset, half, outer, inner in (_ribs(patient, z_mm), _shoulder_blades(u)):
        off = np.abs(outside - offset)
        values += coverage(off - half[angle], soft) * (outer[angle] - values)
        values += coverage(off - half[angle] + 1.7, soft) * (inner[angle] - values)
    image.reshape(-1)[ring] = values
    _draw_breastbone(image, canvas, cavity[anatomy.NUM_ANGLES // 2], u)


def _draw_marbling(image, canvas, muscle_mm, cavity_mm, z_mm, patient):
    """Paints fat between bundles of muscle, more of it about the shoulders, where a lot of muscle lies."""
    x, y = canvas.places.x_mm[0], canvas.places.y_mm[:, 0]
    texture = sample_grain(patient.grain, x, y, 0.5 * z_mm, 4.5)
    level = np.float32(np.interp(z_mm / patient.height_mm, (0.6, 1.0), (1.5, 0.9)))
    share = np.clip(np.float32(2.5) * (texture - level), 0, np.float32(0.8))
    paint(image, share * ((muscle_mm > 3.0) & (cavity_mm > 2.0)), FAT_HU)


def _draw_glands(image, canvas, radii, u, patient):
    """Paints glandular tissue in the fat of the breasts."""
    size = patient.breast_mm * float(np.exp(-0.5 * ((u - 0.42) / 0.13) ** 2))
    if size < 6.0:
        return
    for side in (-1, 1):
        angle = side * 0.66
        place = int((angle + np.pi) / (2 * np.pi) * anatomy.NUM_ANGLES)
        skin, muscle = radii[1][place], radii[2][place]
        middle, half = 0.45 * skin + 0.55 * muscle, 0.38 * (skin - muscle)
        x, y = middle * np.sin(angle), -middle * np.cos(angle)
        for away, grown, hu in ((0.0, 1.0, -25.0), (0.55, 0.55, 25.0), (-0.6, 0.5, 15.0)):
            paint_ellipse(
                image, canvas, (x + away * half, y + 0.3 * away * half, 1.5 * grown * half, grown * half), hu
            )


def _planes_of_fat(u):
    """Yields the layers of fat between muscles: offset from the cavity, half thickness [K], HU."""
    angles = np.abs(anatomy.ANGLES)
    side = np.clip(1.6 - np.abs(angles - 1.7) * 1.5, -4.0, 1.3).astype(np.float32)
    yield 14.0, side, -70.0
    back = np.clip(1.2 - np.abs(angles - 2.5) * 2.0, -4.0, 1.0).astype(np.float32)
    yield 26.0 + 4.0 * u, back, -60.0
    yield 1.2, np.full_like(side, 0.7), -60.0


def _ribs(patient, z_mm):
    """Returns the ribs at this height: offset from the cavity, half thickness [K], HU outside, inside.

    A rib leaves the spine and runs down and forward, so that a slice cuts each into an arc;
    negative half thickness: no rib. In front it turns into cartilage.
    """
    angles = np.abs(anatomy.ANGLES)
    forward = 1.0 - angles / np.pi
    drop = 120.0 * forward**0.9 - 60.0 * np.maximum(forward - 0.78, 0.0) / 0.22
    along = z_mm + drop - patient.rib_phase_mm + 2.0 * np.sign(anatomy.ANGLES)
    off = np.mod(along, anatomy.RIB_PITCH_MM) - anatomy.RIB_PITCH_MM / 2
    thickness = np.where(angles < 0.7, 4.4, 3.7)
    half = np.where(np.abs(off) < 6.0, thickness * np.sqrt(np.maximum(1 - (off / 6.0) ** 2, 0)), -9.0)
    u = z_mm / patient.height_mm
    margin = np.interp(u, (-0.45, -0.12, 0.1, 0.34), (2.9, 1.9, 0.9, 0.16))  # where ribs end in front
    half = np.where((angles < margin) | (u > 1.06), -9.0, half)
    cartilage = np.interp(angles, (margin + 0.32, margin + 0.46), (1.0, 0.0))
    if -0.12 < u < 0.34:  # the cartilage of the lower ribs joins along their margin
        along = 4.5 * np.sqrt(np.maximum(1.0 - ((angles - margin - 0.06) / 0.17) ** 2, 0.0)) - 0.01
        half = np.where(np.abs(angles - margin - 0.06) < 0.17, np.maximum(half, along), half)
    outer = _CORTEX_HU + cartilage * (_CARTILAGE_HU + patient.calcium_hu - _CORTEX_HU)
    inner = 260.0 + cartilage * (80.0 - 260.0)
    return 7.0, half.astype(np.float32), outer.astype(np.float32), inner.astype(np.float32)


def _shoulder_blades(u):
    """Returns the shoulder blades at this height, in the form of `_ribs`."""
    angles = np.abs(anatomy.ANGLES)
    reach = np.interp(u, (0.52, 0.6, 0.8, 0.95, 1.1), (-0.05, 0.10, 0.36, 0.45, 0.3))
    middle = np.interp(u, (0.52, 1.0), (2.35, 2.05))
    along = np.abs(angles - middle) / max(reach, 1e-3)
    thick = np.interp(u, (0.6, 0.95), (2.0, 3.2))
    half = np.where((along < 1) & (reach > 0), thick * np.sqrt(np.maximum(1 - along**4, 0)), -9.0)
    outer, inner = np.full_like(half, 560.0), np.full_like(half, 330.0)
    return 20.0, half.astype(np.float32), outer.astype(np.float32), inner.astype(np.float32)


def _draw_breastbone(image, canvas, front_mm, u):
    """Paints the breastbone before the cavity: body, then the wider manubrium."""
    if not 0.36 < u < 0.9:
        return
    width = np.interp(u, (0.36, 0.42, 0.68, 0.76, 0.87, 0.9), (4, 15, 17, 27, 30, 8))
    y = -(front_mm + 8.5)
    paint_box(image, canvas, y, width, 6.5, 520.0)
    paint_box(image, canvas, y, width - 2.2, 4.2, 170.0)


def draw_spine(image, canvas, patient, z_mm):
    """Paints one level of the spine: body or disc, canal, arch, and the processes."""
    pixel, y0 = canvas.pixel_mm, patient.spine_y_mm
    box = window(canvas, -48, 48, y0 - 22, y0 + 66)
    if box is None:
        return
    index, x, y = box
    view, y = image[index], y - np.float32(y0)
    phase = ((z_mm - patient.spine_phase_mm) / anatomy.VERTEBRA_PITCH_MM) % 1.0
    waist = 1.0 - 0.08 * np.sin(np.pi * phase)
    arch = np.interp(phase, (0.0, 0.3, 0.5, 0.8, 1.0), (0.35, 0.5, 1.0, 0.8, 0.35))
    body = (np.hypot(x / np.float32(18.5 * waist), y / np.float32(15.5 * waist)) - 1) * np.float32(15)
    canal = np.hypot(x, (y - 23.5) / np.float32(0.9)) - np.float32(8.0)
    ring = np.abs(canal - 4.0) - np.float32(3.6 * arch)
    spinous = np.maximum(np.abs(x) - np.float32(3.4), np.abs(y - 46.0) - np.float32(6 + 9 * arch))
    slope = np.abs(x) - np.float32(24.0)
    transverse = np.abs(y - 27.0 - 0.25 * slope) - np.float32(4.5 * arch)
    transverse = np.maximum(transverse, np.abs(slope) - np.float32(17 * arch))
    bone = np.minimum(np.minimum(ring, spinous), transverse)
    paint(view, coverage(np.minimum(bone, body) - 9.0, 8.0), _MUSCLE_HU)
    paint(view, coverage(bone, pixel), 520.0)
    paint(view, coverage(bone + 1.8, pixel), 240.0)
    rim_hu, core_hu = 480.0, 350.0 if abs(phase - 0.41) > 0.34 else 190.0  # end plates are denser
    if phase > 0.82:  # a disc
        rim_hu, core_hu = 95.0, 80.0
    paint(view, coverage(body, pixel), rim_hu)
    paint(view, coverage(body + 1.8, pixel), core_hu)
    paint(view, coverage(canal, pixel), 30.0)
