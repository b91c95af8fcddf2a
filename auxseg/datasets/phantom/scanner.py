"""What a scanner makes of the phantom: kernel, noise, streaks of metal, and a round field of view."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import ndimage

_EDGE_PIXELS = 1.2  # over which a sharp kernel lifts the edges


@dataclasses.dataclass(frozen=True)
class Scanner:
    """How a scan is seen.

    Attributes:
        blur_mm, noise_hu: standard deviations of the point spread and of the noise.
        sharpness: how far the kernel lifts the edges: 0 for a soft one.
        metal: [M, 6] x, y, z, half height (mm), radius (mm) and strength in HU of dense things that streak.
        padding_hu: written outside the field of view.
    """

    blur_mm: float
    noise_hu: float
    sharpness: float
    metal: np.ndarray
    padding_hu: float


def create_scanner(rng, patient, settings):
    """Returns the `Scanner` of a scan, drawn from `rng`.

    Args:
        rng: generator.
        patient: who is scanned; dense contrast agent in a vein of the shoulder streaks, or a wire or clip does.
        settings: `drawing.Settings`.
    """
    sharp = rng.random() < 0.3
    rows = []
    if rng.random() < 0.25:
        side = -1.0 if rng.random() < 0.5 else 1.0
        rows.append(
            (side * rng.uniform(60, 110), -25.0, 0.95 * patient.height_mm, 14.0, 6.0, rng.uniform(150, 450))
        )
    if rng.random() < 0.12:
        rows.append((rng.uniform(-10, 10), -patient.front_mm - 8.0, 0.6 * patient.height_mm, 60.0, 1.5,
                     rng.uniform(60, 250)))  # fmt: skip
    return Scanner(
        blur_mm=settings.blur_mm * rng.uniform(0.8, 1.2) * (0.75 if sharp else 1.1),
        noise_hu=settings.noise_hu * rng.uniform(0.7, 1.3),
        sharpness=rng.uniform(0.3, 1.3) if sharp else 0.0,
        metal=np.array(rows).reshape(-1, 6),
        padding_hu=float(rng.choice([-2000.0, -3024.0])),
    )


def add_metal(image, canvas, z_mm):
    """Paints what streaks, with its streaks, in place."""
    for x0, y0, z0, half, radius, strength in canvas.scanner.metal.tolist():
        if abs(z_mm - z0) > half:
            continue
        x, y = canvas.places.x_mm - np.float32(x0), canvas.places.y_mm - np.float32(y0)
        far = np.hypot(x, y)
        angle = np.arctan2(y, x)
        beams = np.sin(np.float32(17) * angle + np.float32(0.3 * z_mm)) * np.sin(np.float32(5) * angle - 1.0)
        image += np.float32(strength) * beams * np.exp(far * np.float32(-1 / 60.0))
        share = np.clip(0.5 + (radius - far) / canvas.pixel_mm, 0, 1)
        image += share * np.maximum(np.float32(2800.0) - image, 0)


def acquire(image, canvas, rng):
    """Returns the image as a scanner gives it: noisy, seen through its kernel, cut to its range and field.

    The noise goes through the same kernel as the image, as in a reconstruction: that gives its grain.
    """
    scanner = canvas.scanner
    sigma = scanner.blur_mm / canvas.pixel_mm
    if scanner.noise_hu > 0:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(scanner.noise_hu * _noise_gain(sigma, scanner.sharpness))
        image += noise
    image = _filter(image, sigma, scanner.sharpness)
    np.clip(image, -1024, 3071, out=image)
    if canvas.field is not None:
        image[~canvas.field] = scanner.padding_hu
    return image


def _filter(image, sigma, sharpness):
    """Returns the image through a kernel: a Gaussian, whose edges are lifted."""
    if sigma > 0:
        image = ndimage.gaussian_filter(image, sigma, truncate=3.0)
    if sharpness > 0:
        image += np.float32(sharpness) * (image - ndimage.gaussian_filter(image, _EDGE_PIXELS, truncate=3.0))
    return image


@functools.lru_cache(maxsize=64)
def _noise_gain(sigma, sharpness):
    """Returns by how much to strengthen white noise so that the kernel leaves it at strength 1."""
    half = int(3.0 * (sigma + _EDGE_PIXELS)) + 3
    impulse = np.zeros((2 * half + 1, 2 * half + 1))
    impulse[half, half] = 1.0
    return 1.0 / float(np.sqrt((_filter(impulse, sigma, sharpness) ** 2).sum()))
