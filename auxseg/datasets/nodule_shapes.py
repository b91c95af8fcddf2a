"""Outlines of nodules as a bank of signed distances, drawn from a seed or taken from LIDC's readers.

A shape is what one slice shows of a nodule of radius 1: float32 [GRID, GRID], the distance to the outline,
negative inside, over [-REACH, REACH] in both axes. Scaling it gives a nodule of any size.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from auxseg.base.errors import InputError
from auxseg.datasets import lidc

GRID = 48
REACH = 1.75
"""Half the side of a shape, in radii."""
SOURCES = ("drawn", "lidc")
"""Choices of `insert.shapes`."""
_FINE = 2 * GRID
_LEAST_PIXELS = 20  # of an outline of LIDC, below which it says little about a shape


def coordinates(num):
    """Returns float64 [num], the centres of a shape's `num` rows or columns, in radii."""
    return (np.arange(num) + 0.5) / num * 2 * REACH - REACH


def draw_shapes(num, seed):
    """Returns `num` cuts through smooth random bodies, float32 [num, GRID, GRID].

    A body is an ellipsoid with lobes, a quarter of them with spicules; radius 1 is that of the sphere of about
    its volume. The slice cuts it anywhere but near its poles, so that a shape may well be smaller than 1.
    """
    rng = np.random.default_rng(seed)
    return np.stack([_distances(_draw_cut(rng)) for _ in range(num)])


def read_lidc_shapes(path, *, exclude=()):
    """Returns the largest consensus outline of each nodule in LIDC, scaled to radius 1: float32 [M, GRID, GRID].

    Args:
        path: as `data.lidc`.
        exclude: series UIDs to leave out, such as those that scores are computed on.

    Raises:
        InputError: as `lidc.open_source`; no outline is left.
    """
    shapes = [
        _distances(_scaled(mask))
        for mask in lidc.largest_outlines(path, exclude)
        if mask.sum() >= _LEAST_PIXELS
    ]
    if not shapes:
        raise InputError(f"data.lidc: {path} has no nodule that {lidc.MIN_READERS} readers outlined")
    return np.stack(shapes)


def _draw_cut(rng):
    """Returns bool [_FINE, _FINE]: what a slice shows of a body."""
    axis = coordinates(_FINE)
    height = rng.uniform(-0.75, 0.75)
    points = np.stack([*np.meshgrid(axis, axis), np.full((_FINE, _FINE), height)])
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    stretch = np.exp(rng.normal(0.0, 0.13, 3))
    points = np.einsum("ij,jyx->iyx", turned, points) / (stretch / np.prod(stretch) ** (1 / 3))[:, None, None]
    distance = np.linalg.norm(points, axis=0)
    return _largest(distance < _radius(rng, points / np.maximum(distance, 1e-6)))


def _radius(rng, directions):
    """Returns the radius of a body in directions [3, ...]: about 1, with lobes and perhaps spicules."""
    radius = np.ones(directions.shape[1:])
    lobes = rng.uniform(0.01, 0.06)
    for frequency in (2.0, 3.0, 4.0, 5.0):
        along = np.einsum("i,i...->...", _direction(rng), directions)
        radius += lobes * rng.normal() * np.cos(frequency * along + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.25:
        for _ in range(rng.integers(3, 8)):
            along = np.einsum("i,i...->...", _direction(rng), directions)
            radius += rng.uniform(0.1, 0.35) * np.exp(rng.uniform(30.0, 90.0) * (along - 1.0))
    return np.clip(radius, 0.5, 0.95 * REACH)


def _direction(rng):
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _scaled(mask):
    """Returns bool [_FINE, _FINE]: a mask bool [h, w] about its centre, at equivalent radius 1, smoothed."""
    padded = np.pad(mask, 2 * max(mask.shape)).astype(float)
    radius = np.sqrt(mask.sum() / np.pi)
    rows, columns = (centre + radius * coordinates(_FINE) for centre in ndimage.center_of_mass(padded))
    smooth = ndimage.gaussian_filter(padded, 0.5)
    places = np.meshgrid(rows, columns, indexing="ij")
    return _largest(ndimage.map_coordinates(smooth, places, order=1) > 0.5)


def _largest(inside):
    labels, count = ndimage.label(inside)
    if count < 2:
        return inside
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _distances(inside):
    """Returns float32 [GRID, GRID] in radii of bool [_FINE, _FINE]; an edge lies between two pixels."""
    outside = ndimage.distance_transform_edt(~inside) - 0.5
    within = ndimage.distance_transform_edt(inside) - 0.5
    signed = np.where(inside, -within, outside) * (2 * REACH / _FINE)
    return signed.reshape(GRID, 2, GRID, 2).mean(axis=(1, 3)).astype(np.float32)
