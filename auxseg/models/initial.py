"""Initial weights as Keras draws them, all of a network in one draw.

Drawing each weight by itself, as Flax does, makes a program that takes longer to compile than the
network's own training step.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_ONES = ("scale", "variance")


def draw_variables(key, shapes):
    """Returns variables with Keras' initial values: kernels glorot-uniform, biases 0, batch norm 1 and 0.

    Args:
        key: jax random key.
        shapes: {'params': ..., 'batch_stats': ...} of `jax.ShapeDtypeStruct`, named and laid out as
            `aux_unet.py` says.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [math.prod(leaf.shape) if len(leaf.shape) > 1 else 0 for _, leaf in leaves]
    draw = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    values, start = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        kernel = draw[start : start + size].reshape(leaf.shape) * kernel_limit(leaf.shape) if size else None
        values.append(_constant(path[-1].key, leaf) if kernel is None else kernel)
        start += size
    return jax.tree_util.tree_unflatten(structure, values)


def kernel_limit(shape):
    """Returns the bound of Keras' glorot-uniform for one of our kernels, sqrt(6 / (fan in + fan out)).

    Keras multiplies both fans by the number of taps, and counts the one output of a depthwise kernel.

    Args:
        shape: [C, F], [3, 3, C] (depthwise), [3, 3, C, F] or [C, 2, 2, F].
    """
    if len(shape) == 2:
        return math.sqrt(6.0 / sum(shape))
    if len(shape) == 3:
        return math.sqrt(6.0 / (9 * (shape[-1] + 1)))
    taps, channels = (9, shape[2]) if shape[0] == 3 and shape[1] == 3 else (4, shape[0])
    return math.sqrt(6.0 / (taps * (channels + shape[-1])))


def _constant(name, leaf):
    return jnp.ones(leaf.shape, leaf.dtype) if name in _ONES else jnp.zeros(leaf.shape, leaf.dtype)
