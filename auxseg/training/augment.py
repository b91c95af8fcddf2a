"""Augmentation on the device, off by default as in the paper (section 3.3).

Each case draws from its own key, a function of (seed, step, case), so that neither the number of devices
nor a resumed run changes what a case looks like.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from auxseg.base.classes import AIR_HU, MIRROR
from auxseg.datasets.windows import LUNG_HU


class Ranges(NamedTuple):
    """How far the augmentation goes, from `config.augment`; each is to either side.

    Attributes:
        flip_probability: of mirroring left to right, which swaps the two lungs' labels.
        shift_fraction: of the size.
        scale_fraction: around 1.
        rotate_degrees: degrees.
        intensity_fraction: of the window: offset, and relative contrast.
        hu_scale_fraction: of the distance from `LUNG_HU`, as the scale of crops is known; none where it is 0.
        mirror: the value of each class in the mirror, from `classes.mirrored`.
    """

    flip_probability: float
    shift_fraction: float
    scale_fraction: float
    rotate_degrees: float
    intensity_fraction: float
    hu_scale_fraction: float = 0.0
    mirror: tuple = MIRROR


def case_keys(seed, step, indices):
    """Returns one key a case; `step` is an int32 scalar, `indices` int32 [N]."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices)


def augment(images, masks, keys, *, ranges, window_hu, is_cut=None):
    """Returns augmented (images float32 [N, H, W] in HU, masks uint8 [N, H, W]).

    Images are interpolated linearly and filled with air, masks take the nearest pixel and, beyond the edge, where
    there is air, background: unknown pixels are never mixed into a class.

    Args:
        images: int16 [N, H, W], HU; or slabs [N, H, W, slices], whose slices all move together.
        masks: uint8 [N, H, W], class indices and `UNKNOWN`.
        keys: from `case_keys`, [N].
        ranges: Ranges.
        window_hu: (low, high) in HU, the unit of `intensity_fraction`.
        is_cut: bool [N], whether the case was cut out of a larger slice: then its edges are mirrored; None: none was.
    """
    if is_cut is None:
        return jax.vmap(lambda i, m, k: _augment_case(i, m, k, ranges, window_hu))(images, masks, keys)
    return jax.vmap(lambda i, m, k, c: _augment_case(i, m, k, ranges, window_hu, c))(
        images, masks, keys, is_cut
    )


def flip(image, mask, mirror=MIRROR):
    """Returns image and mask [H, W] mirrored left to right; the two lungs change their labels with it."""
    mask = turned = mask[:, ::-1]
    for value, other in enumerate(mirror):
        if value != other:
            turned = jnp.where(mask == value, jnp.asarray(other, mask.dtype), turned)
    return image[:, ::-1], turned


def _augment_case(image, mask, key, ranges, window_hu, is_cut=None):
    keys = jax.random.split(key, 3)
    image = image.astype(jnp.float32)
    flipped = flip(image, mask, ranges.mirror)
    flips = jax.random.bernoulli(keys[0], ranges.flip_probability)
    image, mask = jnp.where(flips, flipped[0], image), jnp.where(flips, flipped[1], mask)
    rows, columns = _coordinates(keys[1], mask.shape, ranges)
    if is_cut is not None:
        inside = (_mirror(each, size) for each, size in zip((rows, columns), mask.shape, strict=True))
        rows, columns = (
            jnp.where(is_cut, new, old) for new, old in zip(inside, (rows, columns), strict=True)
        )

    def move(part):
        # Shifted so that the fill, 0, is air.
        return map_coordinates(part - AIR_HU, (rows, columns), order=1, mode="constant") + AIR_HU

    image = move(image) if image.ndim == 2 else jax.vmap(move, -1, -1)(image)
    mask = map_coordinates(mask, (rows, columns), order=0, mode="constant")
    return _change_intensity(image, keys[2], ranges, window_hu), mask


def _coordinates(key, shape, ranges):
    shift, scale, angle = jax.random.split(key, 3)
    angle = jnp.deg2rad(_uniform(angle, ranges.rotate_degrees))
    scale = 1.0 + _uniform(scale, ranges.scale_fraction)
    size = jnp.asarray(shape, jnp.float32)
    centre = (size - 1.0) / 2.0
    moved = centre + _uniform(shift, ranges.shift_fraction, (2,)) * size
    rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in shape), indexing="ij")
    rows, columns = (rows - moved[0]) / scale, (columns - moved[1]) / scale
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * rows - sin * columns + centre[0], sin * rows + cos * columns + centre[1]


def _mirror(places, size):
    """Returns places on an axis of `size` pixels, those beyond its edges mirrored at them."""
    folded = jnp.mod(places + 0.5, 2.0 * size)
    return jnp.clip(jnp.minimum(folded, 2.0 * size - folded) - 0.5, 0.0, size - 1.0)


def _change_intensity(image, key, ranges, window_hu):
    offset, contrast = jax.random.split(key)
    low, high = window_hu
    middle, width = (low + high) / 2.0, high - low
    if ranges.hu_scale_fraction:
        steps = _uniform(jax.random.fold_in(key, 2), jnp.log1p(ranges.hu_scale_fraction))
        image = LUNG_HU + (image - LUNG_HU) * jnp.exp(steps)
    image = middle + (image - middle) * (1.0 + _uniform(contrast, ranges.intensity_fraction))
    return image + width * _uniform(offset, ranges.intensity_fraction)


def _uniform(key, reach, shape=()):
    return jax.random.uniform(key, shape, minval=-reach, maxval=reach)
