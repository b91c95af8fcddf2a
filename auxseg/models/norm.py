"""Batch norm that every network shares: padding does not count, devices count together."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

_ZEROS = nn.initializers.zeros
_ONES = nn.initializers.ones


def batch_statistics(moments, weights, axis_name):
    """Returns the mean and (biased) variance of each channel over the examples that count.

    Args:
        moments: mean and variance of each example, float32 [N, C] both.
        weights: float32 [N], 0.0 for examples that do not count, or None where all do.
        axis_name: mapped axis over whose devices to sum, or None.

    Returns:
        mean float32 [C], variance float32 [C], sum of weights float32 []; all 0 where nothing counts.
    """
    means, variances = moments
    weights = jnp.ones(means.shape[0], jnp.float32) if weights is None else weights.astype(jnp.float32)
    total = _sum_devices(jnp.sum(weights), axis_name)
    shares = (weights / jnp.maximum(total, 1.0))[:, None]
    mean = _sum_devices(jnp.sum(shares * means, 0), axis_name)
    spread = variances + jnp.square(means - mean[None])
    return mean, _sum_devices(jnp.sum(shares * spread, 0), axis_name), total


def _sum_devices(value, axis_name):
    return value if axis_name is None else lax.psum(value, axis_name)


def normalisation(module, moments, train, weights, momentum, *, biased=True):
    """Returns the factor and shift of batch norm for values without the bias, float32 [C] each.

    The bias is left out of the values: batch norm in training takes it away again, and otherwise it is
    part of the shift.

    Args:
        module: linen module with `settings`, `features` (C) and `axis_name`, which owns the parameters
            `bias`, `scale`, `offset` and the statistics `mean`, `variance`; called in its compact method.
        moments: mean and variance of each example's values, float32 [N, C] both.
        train: use the batch's statistics and update the moving ones.
        weights: float32 [N] or None, see `batch_statistics`.
        momentum: of the moving statistics, float or float32 [], or None for the setting.
        biased: the convolution has a bias.
    """
    shape = (module.features,)
    bias = module.param("bias", _ZEROS, shape) if biased else 0.0
    scale = module.param("scale", _ONES, shape)
    offset = module.param("offset", _ZEROS, shape)
    moving_mean = module.variable("batch_stats", "mean", jnp.zeros, shape)
    moving_variance = module.variable("batch_stats", "variance", jnp.ones, shape)
    mean, variance = moving_mean.value - bias, moving_variance.value
    if train and not module.is_initializing():
        mean, variance, total = batch_statistics(moments, weights, module.axis_name)
        momentum = module.settings.bn_momentum if momentum is None else momentum
        keep = jnp.where(total > 0, momentum, 1.0)
        moving_mean.value = keep * moving_mean.value + (1.0 - keep) * (mean + bias)
        moving_variance.value = keep * moving_variance.value + (1.0 - keep) * variance
    factor = scale * lax.rsqrt(variance + module.settings.bn_epsilon)
    return factor, offset - mean * factor
