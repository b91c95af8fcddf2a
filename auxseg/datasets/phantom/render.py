"""Slices of a phantom patient: tissues painted one over the other, then seen through a scanner."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import anatomy
from auxseg.datasets.phantom.contents import Capsules, Nodule
from auxseg.datasets.phantom.paint import (
    Canvas,
    acquire,
    bounds,
    brighten,
    capsule_distances,
    coverage,
    cropped,
    paint,
    paint_box,
    paint_ellipse,
    paint_field,
    stamp,
    window,
)

LEFT_LUNG, RIGHT_LUNG, AIRWAY = 3, 4, 5
"""The values of LUNA16's lung masks."""
_AIR_HU, _FAT_HU, _MUSCLE_HU, _SKIN_HU, _LIVER_HU = -1000.0, -100.0, 52.0, 5.0, 58.0
_CORTEX_HU, _LUMEN_HU = 650.0, -975.0


@dataclasses.dataclass(frozen=True)
class Scene:
    """A patient with all that is drawn of him.

    Attributes:
        patient: `anatomy.Patient`.
        vessels, bronchi, airway: `Capsules`.
        nodules: `Nodule`s.
        stomach: x, y, half width, half depth (mm) and the share of gas in it.
    """

    patient: anatomy.Patient
    vessels: Capsules
    bronchi: Capsules
    airway: Capsules
    nodules: tuple[Nodule, ...]
    stomach: np.ndarray


def create_canvas(patient, x_mm, y_mm, *, field_mm, padding_hu, blur_mm, noise_hu):
    """Returns the `Canvas` of pixel centres at columns `x_mm` [W] and rows `y_mm` [H].

    Args:
        patient: who lies on the table.
        x_mm, y_mm: evenly spaced, same spacing.
        field_mm: radius of the round field of view, or None.
        padding_hu: value outside it.
        blur_mm, noise_hu: see `Canvas`.
    """
    places = anatomy.create_places(x_mm[None, :], y_mm[:, None])
    pixel_mm = float(x_mm[1] - x_mm[0])
    field = None
    if field_mm is not None:
        middle_x, middle_y = np.float32(x_mm.mean()), np.float32(y_mm.mean())
        field = np.hypot(places.x_mm - middle_x, places.y_mm - middle_y) <= field_mm
    return Canvas(
        places,
        pixel_mm,
        anatomy.dome_height(patient, places),
        _draw_table(patient, places, pixel_mm),
        field,
        padding_hu,
        blur_mm,
        noise_hu,
    )


def _draw_table(patient, places, pixel_mm):
    """Returns air with the table's two shells and the foam between them, float32 [H, W] in HU."""
    top, outward = anatomy.table_y_mm(patient), -1.0 if patient.prone else 1.0
    curve = -outward * places.x_mm**2 / np.float32(1100.0)
    below = (places.y_mm - np.float32(top) - curve) * np.float32(outward)
    image = np.full(below.shape, _AIR_HU, np.float32)
    within = np.abs(places.x_mm) < 215.0
    foam = coverage(np.abs(below - 14.0) - 11.0, pixel_mm) * within
    paint(image, foam, -965.0)
    for depth, hu in ((4.0, -640.0), (25.0, 60.0)):
        paint(image, coverage(np.abs(below - depth) - 1.4, pixel_mm) * within, hu)
    return image


def render_slice(scene, canvas, z_mm, rng):
    """Returns one slice: HU float32 [H, W], and LUNA16's mask values uint8 [H, W].

    Args:
        scene: what to draw.
        canvas: the pixels.
        z_mm: height of the slice.
        rng: generator of its noise.
    """
    patient = scene.patient
    cavity = anatomy.cavity_radius(patient, z_mm)
    skin, muscle = anatomy.body_radii(patient, z_mm, cavity)
    image, mask = canvas.background.copy(), np.zeros(canvas.background.shape, np.uint8)
    body = _body_box(canvas, skin)
    if body is not None:
        part = cropped(canvas, body)
        surfaces = anatomy.surfaces_at(patient, part.places, z_mm, part.dome, cavity)
        inner = image[body].copy()
        _draw_wall(inner, part, surfaces, (cavity, skin, muscle), z_mm, patient)
        _draw_inside(inner, part, scene, surfaces, z_mm)
        _draw_spine(inner, part, patient, z_mm)
        mask[body] = _draw_air_ways(inner, part, scene, surfaces, z_mm)
        image[body] = inner
    return acquire(image, canvas, rng), mask


def _body_box(canvas, skin):
    """Returns the index of the box around the body, given its skin [K] in mm; None outside the image."""
    x, y = skin * np.sin(anatomy.ANGLES), -skin * np.cos(anatomy.ANGLES)
    found = window(canvas, x.min() - 2, x.max() + 2, y.min() - 2, y.max() + 2)
    return None if found is None else found[0]


def _draw_air_ways(image, canvas, scene, surfaces, z_mm):
    """Paints the lungs and the airway; returns LUNA16's mask values uint8 [H, W]."""
    lungs = surfaces.lung < 0
    if lungs.any():
        box = bounds(lungs)
        tissue = _draw_lungs(cropped(canvas, box), scene, z_mm)
        paint_field(image[box], coverage(surfaces.lung[box], canvas.pixel_mm), tissue)
    return _mask_values(canvas, lungs, _draw_airway(image, canvas, scene.airway, z_mm))


def _mask_values(canvas, lungs, airway):
    """Returns the mask uint8 [H, W] with LUNA16's values; what lies outside the field is not labelled."""
    side = np.where(canvas.places.x_mm < 0, np.uint8(RIGHT_LUNG), np.uint8(LEFT_LUNG))
    mask = lungs * side
    mask[airway] = AIRWAY
    if canvas.field is not None:
        mask[~canvas.field] = 0
    return mask


def _draw_wall(image, canvas, surfaces, radii, z_mm, patient):
    """Paints skin, fat, muscle, ribs, shoulder blades and breastbone.

    Args:
        image: float32 [H, W], contiguous, painted in place.
        canvas: its pixels.
        surfaces: `Surfaces` at this height.
        radii: [K] of the cavity, the skin and the muscle, over `ANGLES`.
        z_mm: height.
        patient: whose.
    """
    places, pixel, cavity = canvas.places, canvas.pixel_mm, radii[0]
    skin, muscle = (anatomy.look_up(radius, places) - places.radius_mm for radius in radii[1:])
    paint(image, coverage(-skin, pixel), _SKIN_HU)
    paint(image, coverage(2.0 - skin, pixel), _FAT_HU)
    paint(image, coverage(-muscle, pixel), _MUSCLE_HU)
    ring = np.flatnonzero((surfaces.cavity > -1.0) & (surfaces.cavity < 36.0) & (muscle > 0.0))
    outside, angle = surfaces.cavity.ravel()[ring], places.angle_bin.ravel()[ring]
    values = image.ravel()[ring]
    marbling = np.sin(19 * anatomy.ANGLES + 0.05 * z_mm).astype(np.float32)[angle]
    marbling *= np.sin(outside * np.float32(0.42))
    values -= np.float32(42.0) * np.maximum(marbling - np.float32(0.35), 0)
    u = z_mm / patient.height_mm
    for offset, half, hu in _planes_of_fat(u):
        paint(values, coverage(np.abs(outside - offset) - half[angle], pixel), hu)
    for offset, half, outer, inner in (_ribs(patient, z_mm), _shoulder_blades(u)):
        off = np.abs(outside - offset)
        values += coverage(off - half[angle], pixel) * (outer[angle] - values)
        values += coverage(off - half[angle] + 1.7, pixel) * (inner[angle] - values)
    image.reshape(-1)[ring] = values
    _draw_breastbone(image, canvas, cavity[anatomy.NUM_ANGLES // 2], u)


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
    half = np.where(angles < 0.16, -9.0, half)
    cartilage = np.interp(angles, (0.48, 0.62), (1.0, 0.0))
    outer = _CORTEX_HU + cartilage * (105.0 - _CORTEX_HU)
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


def _draw_inside(image, canvas, scene, surfaces, z_mm):
    """Paints what fills the cavity beside the lungs: fat, heart and vessels, and below the diaphragm."""
    patient, pixel = scene.patient, canvas.pixel_mm
    u = z_mm / patient.height_mm
    inside = coverage(surfaces.cavity, pixel)
    paint(image, inside, np.interp(u, (0.7, 0.92), (-85.0, 25.0)))
    ellipses, present = anatomy.organs_at(patient, z_mm)
    for ellipse, organ in zip(ellipses, present, strict=True):
        paint_ellipse(image, canvas, ellipse, patient.organ_hu[organ])
    if u < 0.45:
        _draw_belly(image, canvas, scene, surfaces, inside, z_mm)


def _draw_belly(image, canvas, scene, surfaces, inside, z_mm):
    """Paints liver, stomach and spleen where the diaphragm stands above this height."""
    patient, pixel, places = scene.patient, canvas.pixel_mm, canvas.places
    below = inside * coverage(-surfaces.dome, pixel)
    on_right = np.clip((42.0 - 0.8 * places.y_mm - places.x_mm) * np.float32(0.2), 0, 1)
    hu = np.float32(-92.0) + (np.float32(_LIVER_HU) - np.float32(-92.0)) * on_right
    muscle = coverage(np.float32(3.0) - surfaces.dome, pixel)
    behind_heart = places.y_mm > 18.0
    spared = np.where((np.abs(places.x_mm) < 30.0) & behind_heart, np.float32(0), below)
    paint_field(image, spared, np.float32(45.0) + muscle * (hu - np.float32(45.0)))
    deep = spared * muscle
    paint_ellipse(image, canvas, (80.0, 38.0, 36.0, 44.0), 50.0, deep)
    x, y, width, depth, gas = scene.stomach
    paint_ellipse(image, canvas, (x, y, width, depth), 32.0, deep)
    up = 1.0 if patient.prone else -1.0
    paint_ellipse(image, canvas, (x, y + up * depth * 0.5, gas * width, gas * depth * 0.45), _LUMEN_HU, deep)
    ellipses, present = anatomy.organs_at(patient, z_mm)
    for ellipse, organ in zip(ellipses, present, strict=True):
        if ellipse[1] > 18.0 and abs(ellipse[0]) < 30.0:
            paint_ellipse(image, canvas, ellipse, patient.organ_hu[organ])


def _draw_spine(image, canvas, patient, z_mm):
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


def _draw_lungs(canvas, scene, z_mm):
    """Returns the lung tissue as if it filled the slice, float32 [H, W] in HU.

    Vessels and nodules are only ever brighter, so what overlaps is not painted twice.
    """
    patient, places = scene.patient, canvas.places
    u = np.float32(z_mm / patient.height_mm)
    tissue = (
        np.float32(patient.lung_hu)
        - np.float32(patient.lung_slope_hu) * -places.y_mm
        + np.float32(9.0)
        * np.sin(places.x_mm * np.float32(0.061) + 9 * u)
        * np.sin(places.y_mm * np.float32(0.073) + 7 * u)
    )
    _draw_fissures(tissue, canvas, patient, z_mm)
    base = np.float32(patient.lung_hu)
    stamp(tissue, canvas, scene.bronchi.widened(0.9), z_mm, base, -150.0)
    stamp(tissue, canvas, scene.bronchi, z_mm, np.float32(-150.0), -960.0)
    stamp(tissue, canvas, scene.vessels, z_mm, base, patient.vessel_hu)
    for nodule in scene.nodules:
        _draw_nodule(tissue, canvas, nodule, base, z_mm)
    return tissue


def _draw_fissures(tissue, canvas, patient, z_mm):
    """Paints the oblique fissures as faint lines: planes that rise to the back."""
    u = z_mm / patient.height_mm
    if not 0.1 < u < 0.8:
        return
    for side, level in ((-1, 0.47), (1, 0.5)):
        y0 = (u - level) * 2.0 * patient.back_mm
        box = window(canvas, *((-150, 0) if side < 0 else (0, 150)), y0 - 24, y0 + 24)
        if box is not None:
            index, x, y = box
            off = np.abs(y - np.float32(y0) - np.float32(0.0011) * (np.abs(x) - 70) ** 2) - np.float32(0.4)
            tissue[index] += np.float32(75.0) * coverage(off, max(canvas.pixel_mm, 1.5))


def _draw_nodule(tissue, canvas, nodule, base, z_mm):
    """Paints the cut through one nodule, where the slice crosses it."""
    radius = nodule.diameter_mm / 2
    reach = 1.35 * radius + nodule.edge_mm + canvas.pixel_mm
    x0, y0, z0 = nodule.centre_mm.tolist()
    box = window(canvas, x0 - reach, x0 + reach, y0 - reach, y0 + reach)
    if abs(z_mm - z0) > reach or box is None:
        return
    index, x, y = box
    distance = nodule_distance(nodule, x - np.float32(x0), y - np.float32(y0), np.float32(z_mm - z0))
    soft = max(canvas.pixel_mm, nodule.edge_mm)
    brighten(tissue[index], coverage(distance, soft), base, nodule.hu)
    if nodule.core_hu is not None:
        brighten(tissue[index], coverage(distance + np.float32(0.45 * radius), soft), base, nodule.core_hu)


def nodule_distance(nodule, dx, dy, dz):
    """Returns the signed distance in mm to a nodule's surface, at offsets from its centre in mm."""
    sx, sy, sz = (np.float32(value) for value in 1.0 / nodule.stretch)
    dx, dy, dz = dx * sx, dy * sy, dz * sz
    far = np.sqrt(dx * dx + dy * dy + dz * dz) + np.float32(1e-6)
    first, second = ((dx * a + dy * b + dz * c) / far for a, b, c in nodule.dents.astype(np.float32))
    return far - np.float32(nodule.diameter_mm / 2) * (1 + np.float32(nodule.dent) * first * second)


def _draw_airway(image, canvas, airway, z_mm):
    """Paints wall and lumen of the trachea and main bronchi; returns the lumen bool [H, W]."""
    lumen = np.zeros(image.shape, bool)
    for index, distance in capsule_distances(canvas, airway.widened(1.2), z_mm):
        paint(image[index], coverage(distance, canvas.pixel_mm), 20.0)
    for index, distance in capsule_distances(canvas, airway, z_mm):
        paint(image[index], coverage(distance, canvas.pixel_mm), _LUMEN_HU)
        lumen[index] |= distance < 0
    return lumen
