"""Anchors: cubes of three sizes around every place of a grid; nodules as offsets from them, and back.

A nodule is a cube (z, y, x of its centre and its side), in voxels. Places are 4 mm apart and the anchors' sides are 5, 10
and 20 mm, as published. An anchor is positive where its overlap with a nodule (IoU of the cubes) exceeds 0.5, and the best
one of a nodule that has none; negative where it is under 0.02 with all; and counts for nothing in between. The target of a
positive one is (centre of the nodule - place) / side of the anchor, and the logarithm of the sides' ratio.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

SIDES_MM = (5.0, 10.0, 20.0)
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.02
FOCAL_GAMMA, FOCAL_ALPHA = 2.0, 0.5
"""Exponent of focal loss, and the weight of positives (negatives have the rest)."""
SUPPRESSING_IOU = 0.1
POSITIVE, IGNORED, NEGATIVE = 1, 0, -1


@dataclasses.dataclass(frozen=True)
class Grid:
    """Places and sizes of the anchors of one cube of voxels.

    Attributes:
        places: (d, h, w), how many there are along each axis.
        stride: voxels from one to the next.
        sides: of the anchors, voxels.
    """

    places: tuple[int, int, int]
    stride: int
    sides: tuple[float, ...]

    def centres(self):
        """Returns where the places lie in voxels, float32 [d, h, w, 1, 3]: in the middle of `stride` voxels."""
        axes = [(np.arange(count) + 0.5) * self.stride - 0.5 for count in self.places]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)[..., None, :].astype(np.float32)

    def cubes(self):
        """Returns the anchors, float32 [d, h, w, sides, 4]: centre and side."""
        centres = np.repeat(self.centres(), len(self.sides), axis=3)
        sides = np.broadcast_to(np.array(self.sides, np.float32), centres.shape[:-1])
        return np.concatenate([centres, sides[..., None]], axis=-1)


def overlap(first, second):
    """Returns the intersection over union of cubes, float32 [n, m], of [n, 4] and [m, 4]: centre and side."""
    first, second = (np.asarray(part, np.float32).reshape(-1, 4) for part in (first, second))
    low = np.maximum(*(part[..., :3] - part[..., 3:] / 2 for part in (first[:, None], second[None])))
    high = np.minimum(*(part[..., :3] + part[..., 3:] / 2 for part in (first[:, None], second[None])))
    both = np.prod(np.maximum(high - low, 0.0), axis=-1)
    return both / (first[:, None, 3] ** 3 + second[None, :, 3] ** 3 - both)


def encode(grid, nodules):
    """Returns (kind int8 [d, h, w, sides], targets float32 [d, h, w, sides, 4]) of the nodules of one cube.

    Args:
        grid: `Grid`.
        nodules: float [n, 4], centre and side in voxels.
    """
    cubes = grid.cubes()
    nodules = np.asarray(nodules, np.float32).reshape(-1, 4)
    kind = np.full(cubes.shape[:-1], NEGATIVE, np.int8)
    targets = np.zeros(cubes.shape, np.float32)
    if not len(nodules):
        return kind, targets
    ious = overlap(cubes.reshape(-1, 4), nodules)
    flat, best = kind.reshape(-1), ious.argmax(axis=1)
    flat[ious.max(axis=1) >= NEGATIVE_IOU] = IGNORED
    flat[ious.max(axis=1) > POSITIVE_IOU] = POSITIVE
    for number, anchor in enumerate(ious.argmax(axis=0)):
        if not (flat[best == number] == POSITIVE).any():
            flat[anchor], best[anchor] = POSITIVE, number
    chosen, anchors = nodules[best], cubes.reshape(-1, 4)
    centres = (chosen[:, :3] - anchors[:, :3]) / anchors[:, 3:]
    sides = np.log(chosen[:, 3:] / anchors[:, 3:])
    found = np.concatenate([centres, sides], axis=1)
    targets.reshape(-1, 4)[flat == POSITIVE] = found[flat == POSITIVE]
    return kind, targets


def decode(grid, offsets):
    """Returns the cubes that offsets mean, float32 [d, h, w, sides, 4]; the inverse of the targets of `encode`."""
    cubes = grid.cubes()
    sides = cubes[..., 3:]
    centres = cubes[..., :3] + offsets[..., :3] * sides
    return np.concatenate([centres, sides * np.exp(np.clip(offsets[..., 3:], -4.0, 4.0))], axis=-1)


def suppress(cubes, scores, least=SUPPRESSING_IOU):
    """Returns which findings stay, int [n], the highest score first: none overlaps a higher one by `least` or more.

    Args:
        cubes: float [m, 4].
        scores: float [m].
        least: intersection over union.
    """
    waiting, kept = np.argsort(-np.asarray(scores), kind="stable"), []
    while len(waiting):
        kept.append(int(waiting[0]))
        waiting = waiting[1:][overlap(cubes[waiting[1:]], cubes[waiting[0]])[:, 0] < least]
    return np.array(kept, np.int64)


def focal_loss(*, logits, kinds):
    """Returns focal loss summed over the anchors that count, over the number of positives, float32 [].

    An anchor whose class has the probability p costs -w (1 - p)^2 log p (Lin et al. 2017, arXiv:1708.02002), w being
    `FOCAL_ALPHA` of positives. Without a positive the sum is divided by 1.

    Args:
        logits: float32 [...].
        kinds: int8 [...], of `POSITIVE`, `IGNORED`, `NEGATIVE`.
    """
    signs = kinds.astype(jnp.float32)
    log_p = jax.nn.log_sigmoid(signs * logits)
    weights = jnp.where(kinds == POSITIVE, FOCAL_ALPHA, 1.0 - FOCAL_ALPHA) * (kinds != IGNORED)
    total = jnp.sum(-weights * (1.0 - jnp.exp(log_p)) ** FOCAL_GAMMA * log_p)
    return total / jnp.maximum(jnp.sum(kinds == POSITIVE), 1)


def offset_loss(*, offsets, targets, kinds):
    """Returns the smooth L1 loss of positives: the sum of the four, the mean over positives, 0 without one, float32 [].

    Args:
        offsets, targets: float32 [..., 4].
        kinds: int8 [...].
    """
    size = jnp.abs(offsets - targets)
    each = jnp.where(size < 1.0, 0.5 * jnp.square(size), size - 0.5).sum(axis=-1)
    positive = kinds == POSITIVE
    return jnp.sum(each * positive) / jnp.maximum(jnp.sum(positive), 1)
