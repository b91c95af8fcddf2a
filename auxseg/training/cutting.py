"""Windows of slices at a fixed scale (`data.mm_per_pixel`), cut on the device while a network trains.

Each case draws from its own key, a function of (seed, step, case), as in `augment`. Every other window lies anywhere
within its slice; the others hold a pixel of a structure: which class of those that are there, which pixel of it and
where in the window it lies are drawn, each evenly. So nodules are not missed, and their place is not learned.
"""

import jax
import jax.numpy as jnp
import numpy as np

from auxseg.base.classes import UNKNOWN
from auxseg.datasets.crops import VOTES
from auxseg.training import augment

_STREAM = 3  # of a case's key, so that equal seeds do not give this and augmentation the same numbers


def cut(raw, step, *, seed, filled_yx, window_yx, num_classes, nodule):
    """Returns (RawBatch of windows, bool [N]: whether a window was cut out of a larger slice).

    Args:
        raw: batching.RawBatch of whole slices, one device's rows.
        step: int32 scalar, updates so far.
        seed: of all draws.
        filled_yx: int32 [cases of the data set, 2], rows and columns that a case fills.
        window_yx: rows and columns of a window, no more than the canvas has.
        num_classes: C.
        nodule: value of nodules; votes of readers count as theirs.
    """
    keys = jax.vmap(jax.random.fold_in, (0, None))(augment.case_keys(seed, step, raw.indices), _STREAM)
    filled = jnp.asarray(filled_yx)[raw.indices]
    starts = jax.vmap(lambda mask, key, size: _draw_start(mask, key, size, window_yx, num_classes, nodule))(
        raw.masks, keys, filled
    )
    images = jax.vmap(lambda image, start: _window(image, start, window_yx))(raw.images, starts)
    masks = jax.vmap(lambda mask, start: _window(mask, start, window_yx))(raw.masks, starts)
    return raw._replace(images=images, masks=masks), (filled > jnp.asarray([window_yx])).any(axis=1)


def _window(array, start, window_yx):
    start = [start[0], start[1], *[0] * (array.ndim - 2)]
    return jax.lax.dynamic_slice(array, start, (*window_yx, *array.shape[2:]))


def _draw_start(mask, key, filled_yx, window_yx, num_classes, nodule):
    """Returns the upper left corner of a window, int32 [2]."""
    keys = jax.random.split(key, 5)
    room = jnp.maximum(filled_yx - jnp.asarray(window_yx), 0)
    anywhere = jax.random.randint(keys[0], (2,), 0, room + 1)
    pixel, found = _draw_pixel(keys[1], keys[2], mask, num_classes, nodule)
    about = jnp.clip(pixel - jax.random.randint(keys[3], (2,), 0, jnp.asarray(window_yx)), 0, room)
    return jnp.where(found & jax.random.bernoulli(keys[4]), about, anywhere)


def _draw_pixel(class_key, pixel_key, mask, num_classes, nodule):
    """Returns (row and column int32 [2] of a pixel of a class but background; whether there is one)."""
    value = jnp.where((mask > VOTES) & (mask != UNKNOWN), nodule, mask)
    values = np.arange(1, num_classes, dtype=np.uint8)
    present = jnp.stack([(value == each).any() for each in values])
    chosen = jnp.argmax(jnp.where(present, jax.random.uniform(class_key, present.shape), -1.0))
    wanted = value == jnp.asarray(values)[chosen]
    by_row = wanted.sum(axis=1)
    place = jax.random.randint(pixel_key, (), 0, jnp.maximum(by_row.sum(), 1))
    row = jnp.argmax(jnp.cumsum(by_row) > place)
    before = jnp.where(jnp.arange(len(by_row)) < row, by_row, 0).sum()
    column = jnp.argmax(jnp.cumsum(wanted[row]) > place - before)
    return jnp.stack([row, column]).astype(jnp.int32), present.any()
