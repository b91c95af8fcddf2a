"""What a network takes and gives: HU to its input, its outputs, mirrored masks turned back."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from auxseg.base.classes import MIRROR


def turn_back(probabilities, mirror=MIRROR):
    """Returns probabilities [..., H, W, C] of a mirrored slice as those of the slice: the inverse of `flip`.

    Args:
        probabilities: of the mirrored slice.
        mirror: the value of each class in the mirror, from `classes.mirrored`.
    """
    return probabilities[..., ::-1, :][..., jnp.array(mirror)]


def average_with_mirrored(predict, images, mirror=MIRROR):
    """Returns the mean of what is found in images and, turned back, in the mirrored ones, float32 [N, H, W, C].

    Args:
        predict: images -> probabilities [N, H, W, C].
        images: [N, H, W] or [N, H, W, slices], as `predict` takes them.
        mirror: as `turn_back`.
    """
    return _average(predict(images), predict(images[:, :, ::-1]), mirror)


@functools.partial(jax.jit, static_argnums=2)
def _average(probabilities, mirrored, mirror):
    return 0.5 * (probabilities + turn_back(mirrored, mirror))


def normalise_hu(images, window_hu):
    """Returns float32 in [0, 1]: HU clipped to the window (low, high) and scaled; any shape."""
    low, high = window_hu
    return jnp.clip((images.astype(jnp.float32) - low) / (high - low), 0.0, 1.0)


def to_input(images, window_hu):
    """Returns what the model takes, float32 [N, H, W, C] in [0, 1]: C is 1, or the slices of slabs.

    Args:
        images: int16 [N, H, W] in HU, or slabs [N, H, W, slices].
        window_hu: (low, high).
    """
    scaled = normalise_hu(images, window_hu)
    return scaled if scaled.ndim == 4 else scaled[..., None]


class Outputs(NamedTuple):
    """What a model returns.

    Attributes:
        mask_logits: float32 [N, H, W, C].
        class_logits: float32 [N, C] from the auxiliary head, or None without one.
    """

    mask_logits: Any
    class_logits: Any
