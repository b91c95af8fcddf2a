"""Initial weights as Keras draws them, all of a network in one draw.

Drawing each weight by itself, as Flax does, makes a program that takes longer to compile than the
network's own training step.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_ONES = ("scale", "variance")
RULES = ("glorot_uniform", "he_normal")
"""How kernels are drawn: Keras' default, or that of He et al. 2015, which Ronneberger's U-Net has."""


def draw_variables(key, shapes, rule="glorot_uniform"):
    """Returns variables with initial values: kernels by `rule`, biases 0, batch norm 1 and 0.

    Args:
        key: jax random key.
        shapes: {'params': ..., 'batch_stats': ...} of `jax.ShapeDtypeStruct`, named and laid out as
            `aux_unet.py` says.
        rule: of `RULES`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [math.prod(leaf.shape) if len(leaf.shape) > 1 else 0 for _, leaf in leaves]
    count = (sum(sizes),)
    if rule == "he_normal":
        draw, limit = jax.random.normal(key, count, jnp.float32), normal_deviation
    else:
        draw, limit = jax.random.uniform(key, count, jnp.float32, -1.0, 1.0), kernel_limit
    values, start = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        kernel = draw[start : start + size].reshape(leaf.shape) * limit(leaf.shape) if size else None
        values.append(_constant(path[-1].key, leaf) if kernel is None else kernel)
        start += size
    return jax.tree_util.tree_unflatten(structure, values)


def kernel_limit(shape):
    """Returns the bound of Keras' glorot-uniform for one of our kernels, sqrt(6 / (fan in + fan out)).

    Keras multiplies both fans by the number of taps, and counts the one output of a depthwise kernel.

    Args:
        shape: [C, F] (a product), [3, 3, C] or [3, 9, C] (depthwise), [k, k, C, F] or [3, 3, 3, C, F] (a convolution),
            [C, 2, 2, F] or [C, 2, 2, 2, F] (a transposed one, of stride 2).
    """
    if len(shape) == 3:
        return math.sqrt(6.0 / (shape[0] * shape[1] * (shape[-1] + 1)))
    taps, channels, _ = _split(shape)
    return math.sqrt(6.0 / (taps * (channels + shape[-1])))


def normal_deviation(shape):
    """Returns the standard deviation of He's rule, sqrt(2 / values that one output sums).

    Args:
        shape: as in `kernel_limit`.
    """
    if len(shape) == 3:
        return math.sqrt(2.0 / (shape[0] * shape[1]))
    taps, channels, transposed = _split(shape)
    return math.sqrt(2.0 / (channels if transposed else taps * channels))


def _split(shape):
    """Returns (taps, C, whether it is a transposed convolution) of a kernel's shape."""
    before, between = shape[:-2], shape[1:-1]
    if len(shape) == 2 or (len(set(before)) == 1 and before != between):
        return math.prod(before), shape[-2], False
    return math.prod(between), shape[0], True


def _constant(name, leaf):
    return jnp.ones(leaf.shape, leaf.dtype) if name in _ONES else jnp.zeros(leaf.shape, leaf.dtype)
