"""A small synthetic chest for tests: every side, end and front of it differs from the other."""

import numpy as np


def draw(shape=(24, 48, 56), spacing_zyx=(6.0, 6.0, 6.0)):
    """Returns int16 [D, H, W] in HU, canonical: two unlike lungs, a nodule in the left, a spine behind."""
    z, y, x = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_zyx)], indexing="ij"
    )
    hu = np.full(shape, -1000.0)
    hu[(x / 150) ** 2 + (y / 105) ** 2 < 1] = 40
    hu[((x + 70) / 55) ** 2 + ((y + 5) / 70) ** 2 + ((z + 8) / 75) ** 2 < 1] = -850  # right
    hu[((x - 66) / 42) ** 2 + ((y - 3) / 68) ** 2 + ((z - 4) / 62) ** 2 < 1] = -830  # left
    hu[((x - 70) ** 2 + (y - 20) ** 2 + (z + 12) ** 2) < 14**2] = 30  # nodule
    hu[(x / 22) ** 2 + ((y - 78) / 18) ** 2 < 1] = 500  # spine
    hu[((x - 100) / 8) ** 2 + ((y - 60) / 8) ** 2 < 1] = 400  # a rib on the left
    noise = np.random.default_rng(3).normal(0, 12, shape)
    return np.clip(np.rint(hu + noise), -1024, 3071).astype(np.int16)
