"""Multiply-accumulates of a network's forward pass, counted from the shapes of its weights."""

from __future__ import annotations

import math
import re


def count_macs(shapes, *, size_yx, depth):
    """Returns the multiply-accumulates for one image, or None where a weight's place is not known.

    A kernel is applied once a pixel of its level (`encoder_2` works at a quarter of the size); the dense
    layers of squeeze-and-excitation and of the auxiliary head once an image. Biases, norms and activations
    are not counted.

    Args:
        shapes: {'encoder_0/unit_0/depthwise': (3, 3, 1), ...} of the parameters, as `models.aux_unet` names
            them.
        size_yx: rows and columns of the image.
        depth: poolings.
    """
    counts = [_count(name, shape, size_yx, depth) for name, shape in shapes.items()]
    return None if None in counts else sum(counts)


def _count(name, shape, size_yx, depth):
    part, leaf = name.split("/")[0], name.split("/")[-1]
    if len(shape) < 2:
        return 0
    if leaf in ("squeeze", "excite") or part == "aux":
        return math.prod(shape)
    level = _level(part, depth)
    if level is None:
        return None
    return math.prod(shape) * (size_yx[0] >> level) * (size_yx[1] >> level)


def _level(part, depth):
    """Returns how often the input of a part was halved; a transposed convolution reads the level below."""
    if part in ("bottleneck", "mask"):
        return depth if part == "bottleneck" else 0
    match = re.fullmatch(r"(encoder|decoder|up)_(\d+)", part)
    return int(match[2]) + (match[1] == "up") if match else None
