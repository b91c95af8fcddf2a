"""Slices of a phantom patient: tissues painted one over the other, then seen through a scanner."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.datasets.phantom import (
    anatomy,
    belly,
    disease,
    grain,
    limbs,
    scanner,
    surfaces,
    surroundings,
    trees,
    tubes,
    wall,
)
from auxseg.datasets.phantom.contents import Nodule
from auxseg.datasets.phantom.paint import (
    Canvas,
    bounds,
    brighten,
    coverage,
    cropped,
    paint,
    paint_ellipse,
    paint_field,
    window,
)

LEFT_LUNG, RIGHT_LUNG, AIRWAY = 3, 4, 5
"""The values of LUNA16's lung masks."""
_FLUID_HU = 14.0
_CUTS = 3  # through a nodule, within the thickness of a slice


@dataclasses.dataclass(frozen=True)
class Scene:
    """A patient with all that is drawn of him.

    Attributes:
        patient: `anatomy.Patient`.
        vessels, bronchi, airway: `Capsules`.
        nodules: `Nodule`s.
        disease: `disease.Disease`.
        belly: `belly.Belly`.
        limbs: `limbs.Limbs`.
        around: `surroundings.Surroundings`.
    """

    patient: anatomy.Patient
    vessels: tubes.Capsules
    bronchi: tubes.Capsules
    airway: tubes.Capsules
    nodules: tuple[Nodule, ...]
    disease: disease.Disease
    belly: belly.Belly
    limbs: limbs.Limbs
    around: surroundings.Surroundings


def create_canvas(scene, x_mm, y_mm, *, thickness_mm, field_mm, seen_by):
    """Returns the `Canvas` of pixel centres at columns `x_mm` [W] and rows `y_mm` [H].

    Args:
        scene: what is drawn.
        x_mm, y_mm: evenly spaced, same spacing.
        thickness_mm: of a slice.
        field_mm: radius of the round field of view, or None.
        seen_by: `scanner.Scanner`.
    """
    places = surfaces.create_places(x_mm[None, :], y_mm[:, None])
    pixel_mm = float(x_mm[1] - x_mm[0])
    field = None
    if field_mm is not None:
        middle_x, middle_y = np.float32(x_mm.mean()), np.float32(y_mm.mean())
        field = np.hypot(places.x_mm - middle_x, places.y_mm - middle_y) <= field_mm
    return Canvas(
        places,
        pixel_mm,
        thickness_mm,
        surfaces.dome_height(scene.patient, places),
        surroundings.draw_table(scene.patient, scene.around, places, pixel_mm),
        field,
        seen_by,
    )


def render_slice(scene, canvas, z_mm, rng):
    """Returns one slice: HU float32 [H, W], and LUNA16's mask values uint8 [H, W].

    Args:
        scene: what to draw.
        canvas: the pixels.
        z_mm: height of the slice's middle.
        rng: generator of its noise.
    """
    patient = scene.patient
    cavity = surfaces.cavity_radius(patient, z_mm)
    skin, muscle = surfaces.body_radii(patient, z_mm, cavity)
    image, mask = canvas.background.copy(), np.zeros(canvas.background.shape, np.uint8)
    limbs.draw_arms(image, canvas, scene.limbs, z_mm)
    body = _body_box(canvas, skin)
    if body is not None:
        part = cropped(canvas, body)
        inner = image[body].copy()
        surroundings.draw_cloths(inner, part, scene.around, skin, z_mm)
        slab = _surfaces_of_slice(patient, part, z_mm)
        wall.draw_wall(inner, part, slab[0].cavity, (cavity, skin, muscle), z_mm, patient)
        _draw_inside(inner, part, scene, slab, z_mm)
        wall.draw_spine(inner, part, patient, z_mm)
        for bones in (scene.limbs.bones, scene.limbs.collarbones):
            limbs.draw_bones(inner, part, bones, z_mm)
        mask[body] = _draw_air_ways(inner, part, scene, slab, z_mm)
        image[body] = inner
    scanner.add_metal(image, canvas, z_mm)
    return scanner.acquire(image, canvas, rng), mask


def _surfaces_of_slice(patient, canvas, z_mm):
    """Returns the `Surfaces` in the middle of a slice, and over how many mm their edges go in it."""
    half = 0.5 * canvas.thickness_mm
    faces = (surfaces.surfaces_at(patient, canvas.places, z_mm + away, canvas.dome) for away in (-half, half))
    return surfaces.between(*faces, canvas.pixel_mm)


def _body_box(canvas, skin):
    """Returns the index of the box around the body and its clothes, given its skin [K] in mm; None outside the image."""
    x, y = skin * np.sin(anatomy.ANGLES), -skin * np.cos(anatomy.ANGLES)
    reach = surroundings.REACH_MM
    found = window(canvas, x.min() - reach, x.max() + reach, y.min() - reach, y.max() + reach)
    return None if found is None else found[0]


def _draw_air_ways(image, canvas, scene, slab, z_mm):
    """Paints the lungs, the fluid round them and the airway; returns LUNA16's mask values uint8 [H, W]."""
    faces, widths = slab
    lungs = faces.lung < 0
    if min(scene.patient.fluid_mm) < anatomy.NO_FLUID_MM:
        paint(image, coverage(faces.pleura, widths.pleura), _FLUID_HU)
    seen = faces.lung < 0.5 * widths.lung
    if seen.any():
        box = bounds(seen)
        tissue = _draw_lungs(cropped(canvas, box), scene, z_mm)
        paint_field(image[box], coverage(faces.lung[box], widths.lung[box]), tissue)
    return _mask_values(canvas, lungs, _draw_airway(image, canvas, scene.airway, z_mm))


def _mask_values(canvas, lungs, airway):
    """Returns the mask uint8 [H, W] with LUNA16's values; what lies outside the field is not labelled."""
    side = np.where(canvas.places.x_mm < 0, np.uint8(RIGHT_LUNG), np.uint8(LEFT_LUNG))
    mask = lungs * side
    mask[airway] = AIRWAY
    if canvas.field is not None:
        mask[~canvas.field] = 0
    return mask


def _draw_inside(image, canvas, scene, slab, z_mm):
    """Paints what fills the cavity beside the lungs: fat, heart and vessels, and below the diaphragm."""
    patient, (faces, widths) = scene.patient, slab
    u = z_mm / patient.height_mm
    inside = coverage(faces.cavity, widths.cavity)
    paint(image, inside, np.interp(u, (0.7, 0.92), (-85.0, 25.0)))
    organs = list(zip(*surfaces.organs_at(patient, z_mm, canvas.thickness_mm), strict=True))
    for ellipse, smear, organ in organs:
        paint_ellipse(image, canvas, ellipse, patient.organ_hu[organ], smear)
    if u < 0.45:
        under = inside * coverage(-faces.dome - 0.5 * (widths.dome - canvas.pixel_mm), canvas.pixel_mm)
        behind_heart = canvas.places.y_mm > 18.0
        under *= ~((np.abs(canvas.places.x_mm) < 30.0) & behind_heart) | (u < 0.02)
        belly.draw_belly(image, canvas, patient, scene.belly, (under, faces.dome), z_mm)
        for ellipse, smear, organ in organs:
            if ellipse[1] > 4.0 and abs(ellipse[0]) < 30.0 and (u > 0.0 or organ in anatomy.DEEP):
                paint_ellipse(image, canvas, ellipse, patient.organ_hu[organ], smear)
    _draw_gullet(image, canvas, patient, z_mm)


def _draw_gullet(image, canvas, patient, z_mm):
    """Paints the air in the oesophagus, at some heights."""
    x, y = patient.organs[anatomy.GULLET, :2].tolist()
    radius = patient.gullet_mm * float(np.sin(0.045 * z_mm + patient.rib_phase_mm))
    if radius > 0.6 and 0.2 < z_mm / patient.height_mm < 1.2:
        paint_ellipse(image, canvas, (x, y - 1.0, radius, 0.7 * radius), belly.LUMEN_HU)


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
    texture = (scene.disease.texture_hu, places.x_mm[0], places.y_mm[:, 0], z_mm, scene.disease.texture_mm)
    tissue += grain.sample_grain(*texture)
    _draw_fissures(tissue, canvas, patient, z_mm)
    base = np.float32(patient.lung_hu)
    disease.add_bullae(tissue, canvas, scene.disease, z_mm, base)
    tubes.stamp(tissue, canvas, scene.vessels, z_mm, base, patient.vessel_hu)
    disease.add_patches(tissue, canvas, scene.disease, z_mm)
    tubes.stamp(tissue, canvas, trees.bronchial_walls(scene.bronchi), z_mm, base, -150.0)
    tubes.stamp(tissue, canvas, scene.bronchi, z_mm, np.float32(-150.0), -960.0)
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
    if abs(z_mm - z0) > reach + 0.5 * canvas.thickness_mm or box is None:
        return
    index, x, y = box
    soft, within = max(canvas.pixel_mm, nodule.edge_mm), canvas.thickness_mm / _CUTS
    shares = np.zeros((2, y.shape[0], x.shape[1]), np.float32)
    for cut in range(_CUTS):
        dz = np.float32(z_mm - z0 + (cut - 0.5 * (_CUTS - 1)) * within)
        distance = nodule_distance(nodule, x - np.float32(x0), y - np.float32(y0), dz)
        shares[0] += coverage(distance, soft)
        shares[1] += coverage(distance + np.float32(0.45 * radius), soft)
    shares *= np.float32(1 / _CUTS)
    brighten(tissue[index], shares[0], base, nodule.hu)
    if nodule.core_hu is not None:
        brighten(tissue[index], shares[1], base, nodule.core_hu)


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
    soft = float(np.hypot(canvas.pixel_mm, 0.2 * canvas.thickness_mm))
    for _, index, distance in tubes.distances_at(canvas, airway.widened(1.5), z_mm):
        paint(image[index], coverage(distance, soft), 20.0)
    for _, index, distance in tubes.distances_at(canvas, airway, z_mm):
        paint(image[index], coverage(distance, soft), belly.LUMEN_HU)
        lumen[index] |= distance < 0
    return lumen
