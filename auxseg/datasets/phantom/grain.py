"""A random texture for tissues and for what bowel holds: periodic in plane, mixed and moved along the height."""

from __future__ import annotations

import numpy as np

_SIZE = 96
_SMOOTH = 55.0  # correlation over about 1.7 steps
_LAYER_MM = 9.0  # from one sheet to the next


def create_grain(rng):
    """Returns two periodic sheets float32 [2, 96, 96] of smooth noise with mean 0 and deviation 1."""
    waves = np.fft.rfftfreq(_SIZE)[None, :] ** 2 + np.fft.fftfreq(_SIZE)[:, None] ** 2
    spectrum = np.fft.rfft2(rng.normal(size=(2, _SIZE, _SIZE))) * np.exp(-waves * _SMOOTH)
    spectrum[:, 0, 0] = 0.0
    smooth = np.fft.irfft2(spectrum, s=(_SIZE, _SIZE))
    return (smooth / smooth.std()).astype(np.float32)


def sample_grain(sheets, x_mm, y_mm, z_mm, step_mm):
    """Returns the texture float32 [H, W] at columns `x_mm` [W], rows `y_mm` [H] and a height.

    Args:
        sheets: [2, T, T], as `create_grain` makes them or changed point by point.
        x_mm, y_mm: where.
        z_mm: height.
        step_mm: from one value of a sheet to the next.
    """
    size = sheets.shape[-1]
    columns, rows = np.rint(x_mm / step_mm).astype(np.intp), np.rint(y_mm / step_mm).astype(np.intp)
    layer, share = divmod(z_mm / _LAYER_MM, 1.0)
    parts = []
    for number, weight in (
        (int(layer), np.cos(0.5 * np.pi * share)),
        (int(layer) + 1, np.sin(0.5 * np.pi * share)),
    ):
        sheet, moved = sheets[number % 2] * np.float32(weight), 37 * number
        parts.append(sheet[((rows + moved) % size)[:, None], (columns + 2 * moved) % size])
    return parts[0] + parts[1]
