"""Slices of a phantom patient: from surfaces in mm to HU, with partial volume, blur and noise.

Tissues are painted one over the other. Each covers a pixel by `0.5 - distance / pixel`, clipped to
[0, 1], which is exact for a straight edge along the pixel's sides: so edges are smooth without supersampling,
and a mask (distance below zero) is the half-covered contour of what is seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.datasets import phantom_anatomy
from auxseg.datasets.phantom_contents import Capsules, Nodule

LEFT_LUNG, RIGHT_LUNG, AIRWAY = 3, 4, 5
"""The values of LUNA16's lung masks."""

_AIR_HU, _FAT_HU, _MUSCLE_HU, _SKIN_HU, _LIVER_HU = -1000.0, -100.0, 52.0, 5.0, 58.0
_CORTEX_HU, _MARROW_HU, _LUMEN_HU = 650.0, 210.0, -975.0


@dataclasses.dataclass(frozen=True)
class Scene:
    """A patient with all that is drawn of him.

    Attributes:
        patient: `phantom_anatomy.Patient`.
        vessels, bronchi, airway: `Capsules`.
        nodules: `Nodule`s.
        stomach: x, y, half width, half depth (mm) and the share of gas in it.
    """

    patient: phantom_anatomy.Patient
    vessels: Capsules
    bronchi: Capsules
    airway: Capsules
    nodules: tuple[Nodule, ...]
    stomach: np.ndarray


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The pixels of a scan and what is the same in each of its slices.

    Attributes:
        places: `Places` of the pixel centres, [1, W] and [H, 1].
        pixel_mm: distance between them.
        dome: `dome_height` over them.
        background: float32 [H, W] in HU: air and the table.
        field: bool [H, W], inside the scanner's round field of view; None where all of it is shown.
        padding_hu: written outside the field.
        blur_mm, noise_hu: standard deviations of the point spread and of the noise.
    """

    places: phantom_anatomy.Places
    pixel_mm: float
    dome: tuple[np.ndarray, np.ndarray]
    background: np.ndarray
    field: np.ndarray | None
    padding_hu: float
    blur_mm: float
    noise_hu: float


def create_canvas(patient, x_mm, y_mm, *, field_mm, padding_hu, blur_mm, noise_hu):
    """Returns the `Canvas` of pixel centres at columns `x_mm` [W] and rows `y_mm` [H].

    Args:
        patient: who lies on the table.
        x_mm, y_mm: evenly spaced, same spacing.
        field_mm: radius of the round field of view, or None.
        padding_hu: value outside it.
        blur_mm, noise_hu: see `Canvas`.
    """
    places = phantom_anatomy.create_places(x_mm[None, :], y_mm[:, None])
    pixel_mm = float(x_mm[1] - x_mm[0])
    field = None
    if field_mm is not None:
        middle_x, middle_y = np.float32(x_mm.mean()), np.float32(y_mm.mean())
        field = np.hypot(places.x_mm - middle_x, places.y_mm - middle_y) <= field_mm
    return Canvas(
        places,
        pixel_mm,
        phantom_anatomy.dome_height(patient, places),
        _draw_table(patient, places, pixel_mm),
        field,
        padding_hu,
        blur_mm,
        noise_hu,
    )


def _draw_table(patient, places, pixel_mm):
    """Returns air with the table's two shells and the foam between them, float32 [H, W] in HU."""
    top, outward = phantom_anatomy.table_y_mm(patient), -1.0 if patient.prone else 1.0
    curve = -outward * places.x_mm**2 / np.float32(1100.0)
    below = (places.y_mm - np.float32(top) - curve) * np.float32(outward)
    image = np.full(below.shape, _AIR_HU, np.float32)
    within = np.abs(places.x_mm) < 215.0
    foam = _coverage(np.abs(below - 14.0) - 11.0, pixel_mm) * within
    _paint(image, foam, -965.0)
    for depth, hu in ((4.0, -640.0), (25.0, 60.0)):
        _paint(image, _coverage(np.abs(below - depth) - 1.4, pixel_mm) * within, hu)
    return image


def _coverage(distance, pixel_mm):
    """Returns the share of each pixel that lies inside, float32, from the signed distance in mm."""
    share = distance * np.float32(-1.0 / pixel_mm)
    share += np.float32(0.5)
    np.maximum(share, 0, out=share)
    return np.minimum(share, 1, out=share)


def _paint(image, coverage, hu):
    """Mixes `hu` into `image` in place."""
    image += coverage * (np.float32(hu) - image)


def _window(canvas, x_low, x_high, y_low, y_high):
    """Returns the pixels of a box in mm: index, x [1, w], y [h, 1]; None when it misses the image."""
    x, y, pixel = canvas.places.x_mm, canvas.places.y_mm, canvas.pixel_mm
    first_x, first_y = float(x[0, 0]), float(y[0, 0])
    left, right = int((x_low - first_x) / pixel), int((x_high - first_x) / pixel) + 2
    top, bottom = int((y_low - first_y) / pixel), int((y_high - first_y) / pixel) + 2
    left, top = max(left, 0), max(top, 0)
    if left >= min(right, x.shape[1]) or top >= min(bottom, y.shape[0]):
        return None
    return (slice(top, bottom), slice(left, right)), x[:, left:right], y[top:bottom]


def _paint_ellipse(image, canvas, ellipse, hu, coverage=None):
    """Paints an axis-parallel ellipse (x, y, half width, half depth; mm), times `coverage` if given."""
    x0, y0, width, depth = (float(value) for value in ellipse)
    box = _window(canvas, x0 - width - 2, x0 + width + 2, y0 - depth - 2, y0 + depth + 2)
    if box is None or min(width, depth) < 0.5:
        return
    index, x, y = box
    far = np.hypot((x - x0) / np.float32(width), (y - y0) / np.float32(depth))
    share = _coverage((far - 1) * np.float32(min(width, depth)), canvas.pixel_mm)
    _paint(image[index], share if coverage is None else share * coverage[index], hu)


def _capsule_distances(canvas, capsules, z_mm):
    """Yields for each capsule that the slice touches: the index of a box, and signed distances in it."""
    near = _near(canvas, capsules, z_mm)
    if not len(near.start_mm):
        return
    (num_rows, num_columns), corners = canvas.background.shape, zip(*_boxes(canvas, near, z_mm), strict=True)
    for which, (left, top, size) in enumerate(corners):
        columns = np.arange(max(left, 0), min(left + size, num_columns))
        rows = np.arange(max(top, 0), min(top + size, num_rows))
        if len(columns) and len(rows):
            index = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            yield index, _distances(canvas, near, [which], columns, rows[:, None], z_mm)[0]


def render_slice(scene, canvas, z_mm, rng):
    """Returns one slice: HU float32 [H, W], and LUNA16's mask values uint8 [H, W].

    Args:
        scene: what to draw.
        canvas: the pixels.
        z_mm: height of the slice.
        rng: generator of its noise.
    """
    patient = scene.patient
    image = canvas.background.copy()
    surfaces = phantom_anatomy.surfaces_at(patient, canvas.places, z_mm, canvas.dome)
    _draw_wall(image, canvas, patient, surfaces, z_mm)
    _draw_inside(image, canvas, scene, surfaces, z_mm)
    _draw_spine(image, canvas, patient, z_mm)
    lungs = surfaces.lung < 0
    if lungs.any():
        box = _bounds(lungs)
        tissue = _draw_lungs(_cropped(canvas, box), scene, z_mm)
        _paint_field(image[box], _coverage(surfaces.lung[box], canvas.pixel_mm), tissue)
    airway = _draw_airway(image, canvas, scene.airway, z_mm)
    return _scan(image, canvas, rng), _mask_values(canvas, lungs, airway)


def _bounds(inside):
    """Returns the index of the smallest box that holds all of `inside` bool [H, W], and a pixel more."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return tuple(slice(max(some[0] - 1, 0), some[-1] + 2) for some in (rows, columns))


def _cropped(canvas, box):
    """Returns the part of the canvas in a box, for painting within the lungs."""
    rows, columns = box
    places = phantom_anatomy.Places(
        canvas.places.x_mm[:, columns],
        canvas.places.y_mm[rows],
        canvas.places.radius_mm[box],
        canvas.places.angle_bin[box],
    )
    return dataclasses.replace(canvas, places=places, background=canvas.background[box])


def _paint_field(image, coverage, other):
    other -= image
    other *= coverage
    image += other


def _mask_values(canvas, lungs, airway):
    """Returns the mask uint8 [H, W] with LUNA16's values; what lies outside the field is not labelled."""
    side = np.where(canvas.places.x_mm < 0, np.uint8(RIGHT_LUNG), np.uint8(LEFT_LUNG))
    mask = lungs * side
    mask[airway] = AIRWAY
    if canvas.field is not None:
        mask[~canvas.field] = 0
    return mask


def _scan(image, canvas, rng):
    """Returns the image as a scanner gives it: noisy, blurred, cut to its range and field.

    The noise goes through the same filter as the image, as in a reconstruction: that gives its grain.
    """
    sigma = canvas.blur_mm / canvas.pixel_mm
    if canvas.noise_hu > 0:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(canvas.noise_hu * _noise_gain(sigma))
        image += noise
    if sigma > 0:
        image = ndimage.gaussian_filter(image, sigma, truncate=3.0)
    np.clip(image, -1024, 3071, out=image)
    if canvas.field is not None:
        image[~canvas.field] = canvas.padding_hu
    return image


def _noise_gain(sigma):
    """Returns by how much to strengthen white noise so that a Gaussian filter leaves it at strength 1."""
    if sigma <= 0:
        return 1.0
    impulse = np.zeros(2 * int(3.0 * sigma + 0.5) + 3)
    impulse[len(impulse) // 2] = 1.0
    return 1.0 / float((ndimage.gaussian_filter1d(impulse, sigma, truncate=3.0) ** 2).sum())


def _draw_wall(image, canvas, patient, surfaces, z_mm):
    """Paints skin, fat, muscle, ribs, shoulder blades and breastbone."""
    places, pixel = canvas.places, canvas.pixel_mm
    cavity = surfaces.cavity_radius
    skin, muscle = (
        radius.astype(np.float32)[places.angle_bin] - places.radius_mm
        for radius in phantom_anatomy.body_radii(patient, z_mm, cavity)
    )
    _paint(image, _coverage(-skin, pixel), _SKIN_HU)
    _paint(image, _coverage(2.0 - skin, pixel), _FAT_HU)
    _paint(image, _coverage(-muscle, pixel), _MUSCLE_HU)
    ring = np.flatnonzero((surfaces.cavity > -1.0) & (surfaces.cavity < 36.0) & (muscle > 0.0))
    outside, angle = surfaces.cavity.ravel()[ring], places.angle_bin.ravel()[ring]
    values = image.ravel()[ring]
    marbling = np.sin(19 * phantom_anatomy.ANGLES + 0.05 * z_mm).astype(np.float32)[angle]
    marbling *= np.sin(outside * np.float32(0.42))
    values -= np.float32(42.0) * np.maximum(marbling - np.float32(0.35), 0)
    u = z_mm / patient.height_mm
    for offset, half, hu in _planes_of_fat(u):
        _paint(values, _coverage(np.abs(outside - offset) - half[angle], pixel), hu)
    for offset, half, outer, inner in (_ribs(patient, z_mm), _shoulder_blades(u)):
        off = np.abs(outside - offset)
        values += _coverage(off - half[angle], pixel) * (outer[angle] - values)
        values += _coverage(off - half[angle] + 1.7, pixel) * (inner[angle] - values)
    image.ravel()[ring] = values
    _draw_breastbone(image, canvas, cavity[phantom_anatomy.NUM_ANGLES // 2], u)


def _planes_of_fat(u):
    """Yields the layers of fat between muscles: offset from the cavity, half thickness [K], HU."""
    angles = np.abs(phantom_anatomy.ANGLES)
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
    angles = np.abs(phantom_anatomy.ANGLES)
    forward = 1.0 - angles / np.pi
    drop = 120.0 * forward**0.9 - 60.0 * np.maximum(forward - 0.78, 0.0) / 0.22
    along = z_mm + drop - patient.rib_phase_mm + 2.0 * np.sign(phantom_anatomy.ANGLES)
    off = np.mod(along, phantom_anatomy.RIB_PITCH_MM) - phantom_anatomy.RIB_PITCH_MM / 2
    thickness = np.where(angles < 0.7, 4.4, 3.7)
    half = np.where(np.abs(off) < 6.0, thickness * np.sqrt(np.maximum(1 - (off / 6.0) ** 2, 0)), -9.0)
    half = np.where(angles < 0.16, -9.0, half)
    cartilage = np.interp(angles, (0.48, 0.62), (1.0, 0.0))
    outer = _CORTEX_HU + cartilage * (105.0 - _CORTEX_HU)
    inner = 260.0 + cartilage * (80.0 - 260.0)
    return 7.0, half.astype(np.float32), outer.astype(np.float32), inner.astype(np.float32)


def _shoulder_blades(u):
    """Returns the shoulder blades at this height, in the form of `_ribs`."""
    angles = np.abs(phantom_anatomy.ANGLES)
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
    _paint_box(image, canvas, y, width, 6.5, 520.0)
    _paint_box(image, canvas, y, width - 2.2, 4.2, 170.0)


def _paint_box(image, canvas, y0, width, depth, hu):
    """Paints a box with rounded sides around x = 0."""
    box = _window(canvas, -width - 2, width + 2, y0 - depth - 2, y0 + depth + 2)
    if box is None:
        return
    index, x, y = box
    across, along = np.abs(x / np.float32(width)), np.abs((y - np.float32(y0)) / np.float32(depth))
    far = (across**3.5 + along**3.5) ** (1 / 3.5)
    _paint(image[index], _coverage((far - 1) * np.float32(depth), canvas.pixel_mm), hu)


def _draw_inside(image, canvas, scene, surfaces, z_mm):
    """Paints what fills the cavity beside the lungs: fat, heart and vessels, and below the diaphragm."""
    patient, pixel = scene.patient, canvas.pixel_mm
    u = z_mm / patient.height_mm
    inside = _coverage(surfaces.cavity, pixel)
    _paint(image, inside, np.interp(u, (0.7, 0.92), (-85.0, 25.0)))
    ellipses, present = phantom_anatomy.organs_at(patient, z_mm)
    for ellipse, organ in zip(ellipses, present, strict=True):
        _paint_ellipse(image, canvas, ellipse, patient.organ_hu[organ])
    if u < 0.45:
        _draw_belly(image, canvas, scene, surfaces, inside, z_mm)


def _draw_belly(image, canvas, scene, surfaces, inside, z_mm):
    """Paints liver, stomach and spleen where the diaphragm stands above this height."""
    patient, pixel, places = scene.patient, canvas.pixel_mm, canvas.places
    below = inside * _coverage(-surfaces.dome, pixel)
    on_right = np.clip((42.0 - 0.8 * places.y_mm - places.x_mm) * np.float32(0.2), 0, 1)
    hu = np.float32(-92.0) + (np.float32(_LIVER_HU) - np.float32(-92.0)) * on_right
    muscle = _coverage(np.float32(3.0) - surfaces.dome, pixel)
    behind_heart = places.y_mm > 18.0
    spared = np.where((np.abs(places.x_mm) < 30.0) & behind_heart, np.float32(0), below)
    _paint_field(image, spared, np.float32(45.0) + muscle * (hu - np.float32(45.0)))
    deep = spared * muscle
    _paint_ellipse(image, canvas, (80.0, 38.0, 36.0, 44.0), 50.0, deep)
    x, y, width, depth, gas = scene.stomach
    _paint_ellipse(image, canvas, (x, y, width, depth), 32.0, deep)
    up = 1.0 if patient.prone else -1.0
    _paint_ellipse(image, canvas, (x, y + up * depth * 0.5, gas * width, gas * depth * 0.45), _LUMEN_HU, deep)
    ellipses, present = phantom_anatomy.organs_at(patient, z_mm)
    for ellipse, organ in zip(ellipses, present, strict=True):
        if ellipse[1] > 18.0 and abs(ellipse[0]) < 30.0:
            _paint_ellipse(image, canvas, ellipse, patient.organ_hu[organ])


def _draw_spine(image, canvas, patient, z_mm):
    """Paints one level of the spine: body or disc, canal, arch, and the processes."""
    pixel, y0 = canvas.pixel_mm, patient.spine_y_mm
    box = _window(canvas, -48, 48, y0 - 22, y0 + 66)
    if box is None:
        return
    index, x, y = box
    view, y = image[index], y - np.float32(y0)
    phase = ((z_mm - patient.spine_phase_mm) / phantom_anatomy.VERTEBRA_PITCH_MM) % 1.0
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
    _paint(view, _coverage(np.minimum(bone, body) - 9.0, 8.0), _MUSCLE_HU)
    _paint(view, _coverage(bone, pixel), 520.0)
    _paint(view, _coverage(bone + 1.8, pixel), 240.0)
    rim_hu, core_hu = 480.0, 350.0 if abs(phase - 0.41) > 0.34 else 190.0  # end plates are denser
    if phase > 0.82:  # a disc
        rim_hu, core_hu = 95.0, 80.0
    _paint(view, _coverage(body, pixel), rim_hu)
    _paint(view, _coverage(body + 1.8, pixel), core_hu)
    _paint(view, _coverage(canal, pixel), 30.0)


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
    _stamp(tissue, canvas, scene.bronchi.widened(0.9), z_mm, base, -150.0)
    _stamp(tissue, canvas, scene.bronchi, z_mm, np.float32(-150.0), -960.0)
    _stamp(tissue, canvas, scene.vessels, z_mm, base, patient.vessel_hu)
    for nodule in scene.nodules:
        _draw_nodule(tissue, canvas, nodule, base, z_mm)
    return tissue


def _stamp(tissue, canvas, capsules, z_mm, outside_hu, inside_hu):
    """Paints many capsules in place, boxes of like size at a time.

    What is brighter than its surroundings only ever brightens the tissue, what is darker darkens
    it, so that the order does not matter. Tubes thinner than a pixel are paler.
    """
    near = _near(canvas, capsules, z_mm)
    if not len(near.start_mm):
        return
    left, top, size = _boxes(canvas, near, z_mm)
    combine = np.maximum if inside_hu > outside_hu else np.minimum
    order, paleness = np.argsort(size), np.minimum(1.0, 2.0 * near.end_radius_mm / canvas.pixel_mm)
    for first in range(0, len(order), 32):
        some = order[first : first + 32]
        offsets = np.arange(size[some[-1]])
        columns, rows = left[some, None, None] + offsets, top[some, None, None] + offsets[:, None]
        share = _coverage(_distances(canvas, near, some, columns, rows, z_mm), canvas.pixel_mm)
        share *= paleness[some, None, None].astype(np.float32)
        share *= (columns >= 0) & (columns < tissue.shape[1]) & (rows >= 0) & (rows < tissue.shape[0])
        touched = np.flatnonzero(share)
        places = (rows * tissue.shape[1] + columns).ravel()[touched]
        values = outside_hu + share.ravel()[touched] * np.float32(inside_hu - outside_hu)
        combine.at(tissue.reshape(-1), places, values)


def _near(canvas, capsules, z_mm):
    """Returns the capsules that touch the slice at `z_mm`."""
    reach = np.maximum(capsules.start_radius_mm, capsules.end_radius_mm) + 0.5 * canvas.pixel_mm
    z = np.stack([capsules.start_mm[:, 2], capsules.end_mm[:, 2]])
    return capsules.chosen(np.flatnonzero((z.min(0) - reach < z_mm) & (z.max(0) + reach > z_mm)))


def _boxes(canvas, capsules, z_mm):
    """Returns left, top and size [M] in pixels of squares around what the slice can show of capsules."""
    reach = np.maximum(capsules.start_radius_mm, capsules.end_radius_mm) + canvas.pixel_mm
    start, along = capsules.start_mm, capsules.end_mm - capsules.start_mm
    rise = np.where(np.abs(along[:, 2]) < 1e-6, 1e-6, along[:, 2])
    cuts = (z_mm + np.stack([-reach, reach]) - start[:, 2]) / rise
    ends = start[:, :2] + np.clip(np.sort(cuts, axis=0), 0.0, 1.0)[..., None] * along[:, :2]
    first = np.array([canvas.places.x_mm[0, 0], canvas.places.y_mm[0, 0]])
    low = np.floor((ends.min(0) - reach[:, None] - first) / canvas.pixel_mm).astype(int)
    high = np.ceil((ends.max(0) + reach[:, None] - first) / canvas.pixel_mm).astype(int)
    return low[:, 0], low[:, 1], (high - low).max(axis=1) + 1


def _distances(canvas, capsules, some, columns, rows, z_mm):
    """Returns the signed distances [m, h, w] in mm of pixels to the capsules `some` [m]."""
    start = capsules.start_mm[some].astype(np.float32)
    along = capsules.end_mm[some].astype(np.float32) - start
    along = along.T[:, :, None, None]
    pixel = np.float32(canvas.pixel_mm)
    x = canvas.places.x_mm[0, 0] + columns.astype(np.float32) * pixel - start[:, 0, None, None]
    y = canvas.places.y_mm[0, 0] + rows.astype(np.float32) * pixel - start[:, 1, None, None]
    z = np.float32(z_mm) - start[:, 2, None, None]
    scaled = along / np.maximum((along * along).sum(0), np.float32(1e-9))
    share = np.clip(x * scaled[0] + (y * scaled[1] + z * scaled[2]), 0, 1)
    x, y, z = x - share * along[0], y - share * along[1], z - share * along[2]
    first, last = (
        radius[some].astype(np.float32)[:, None, None]
        for radius in (capsules.start_radius_mm, capsules.end_radius_mm)
    )
    return np.sqrt(x * x + y * y + z * z) - (first + share * (last - first))


def _draw_fissures(tissue, canvas, patient, z_mm):
    """Paints the oblique fissures as faint lines: planes that rise to the back."""
    u = z_mm / patient.height_mm
    if not 0.1 < u < 0.8:
        return
    for side, level in ((-1, 0.47), (1, 0.5)):
        y0 = (u - level) * 2.0 * patient.back_mm
        box = _window(canvas, *((-150, 0) if side < 0 else (0, 150)), y0 - 24, y0 + 24)
        if box is not None:
            index, x, y = box
            off = np.abs(y - np.float32(y0) - np.float32(0.0011) * (np.abs(x) - 70) ** 2) - np.float32(0.4)
            tissue[index] += np.float32(75.0) * _coverage(off, max(canvas.pixel_mm, 1.5))


def _draw_nodule(tissue, canvas, nodule, base, z_mm):
    """Paints the cut through one nodule, where the slice crosses it."""
    radius = nodule.diameter_mm / 2
    reach = 1.35 * radius + nodule.edge_mm + canvas.pixel_mm
    x0, y0, z0 = nodule.centre_mm.tolist()
    box = _window(canvas, x0 - reach, x0 + reach, y0 - reach, y0 + reach)
    if abs(z_mm - z0) > reach or box is None:
        return
    index, x, y = box
    distance = nodule_distance(nodule, x - np.float32(x0), y - np.float32(y0), np.float32(z_mm - z0))
    soft = max(canvas.pixel_mm, nodule.edge_mm)
    _brighten(tissue[index], _coverage(distance, soft), base, nodule.hu)
    if nodule.core_hu is not None:
        _brighten(tissue[index], _coverage(distance + np.float32(0.45 * radius), soft), base, nodule.core_hu)


def _brighten(tissue, coverage, base, hu):
    """Paints `hu` over lung of `base` HU in place where that is brighter than what is there."""
    np.maximum(tissue, base + coverage * np.float32(hu - base), out=tissue)


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
    for index, distance in _capsule_distances(canvas, airway.widened(1.2), z_mm):
        _paint(image[index], _coverage(distance, canvas.pixel_mm), 20.0)
    for index, distance in _capsule_distances(canvas, airway, z_mm):
        _paint(image[index], _coverage(distance, canvas.pixel_mm), _LUMEN_HU)
        lumen[index] |= distance < 0
    return lumen
