"""Dense disease drawn into lungs, so that a network learns that it belongs to the lung.

LUNA16's masks and thresholds leave consolidation out; here ground glass and consolidation of known extent are
painted over lung while the mask stays. Shapes and densities are invented: blobs with ragged edges, more often at
the pleura than within.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_LEAST_PIXELS = 1500
_GLASS_HU, _DENSE_HU = (-700.0, -400.0), (-120.0, 60.0)


def add_disease(rng, image, mask, pixel_mm):
    """Returns a slice with one to three patches of disease in its lungs; the same where there is little lung.

    Args:
        rng: NumPy generator.
        image: int16 [H, W] in HU.
        mask: uint8 [H, W], above 0 in the lungs.
        pixel_mm: distance of rows and columns.

    Returns:
        int16 [H, W].
    """
    lung = mask > 0
    if lung.sum() < _LEAST_PIXELS:
        return image
    result = image.astype(np.float32)
    edge = lung & ~ndimage.binary_erosion(lung, iterations=2)
    for _ in range(rng.integers(1, 4)):
        places = np.argwhere(edge if rng.random() < 0.65 else lung)
        share = _draw_patch(rng, image.shape, places[rng.integers(len(places))], pixel_mm) * lung
        dense = rng.random() < 0.6
        hu = rng.uniform(*(_DENSE_HU if dense else _GLASS_HU)) + rng.normal(0, 25, image.shape)
        result = np.maximum(result, result + share * (hu.astype(np.float32) - result))
    return np.clip(np.rint(result), -1024, 3071).astype(np.int16)


def _draw_patch(rng, shape, centre, pixel_mm):
    """Returns the share of each pixel that a patch covers, float32 [H, W] in [0, 1]."""
    radius = rng.uniform(8.0, 42.0) / pixel_mm
    stretch = rng.uniform(0.6, 1.6)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    far = np.hypot((rows - centre[0]) * stretch, (columns - centre[1]) / stretch) / radius
    ragged = ndimage.gaussian_filter(rng.standard_normal(shape), max(radius / 5.0, 1.5))
    ragged *= rng.uniform(0.1, 0.5) / max(float(ragged.std()), 1e-6)
    return ndimage.gaussian_filter((far + ragged < 1.0).astype(np.float32), rng.uniform(0.5, 1.5))
