"""The Auxiliary U-Net (paper, section 3.1): depthwise-separable U-Net, squeeze-and-excitation, class head.

Encoder blocks of 64, 128, 256, 512 channels, a bottleneck of 1024 and the way back up; a block is two
units (depthwise 3x3, pointwise 1x1, batch norm, ReLU) and a squeeze-and-excitation. A head on the
bottleneck says which classes are in the slice. With the paper's settings 6,565,441 trainable parameters
and 11,776 batch statistics.

Weights, by name (`layers.py` has the layout of each):

    encoder_0 .. encoder_3, bottleneck, decoder_3 .. decoder_0
        unit_0, unit_1    depthwise [3, 3, C], pointwise [C, F], bias, scale, offset [F]
                          (not separable: ordinary [3, 3, C, F] for the first two);
                          statistics: mean, variance [F]
        se                squeeze [F, F / 8], squeeze_bias, excite [F / 8, F], excite_bias
    up_3 .. up_0          kernel [C, 2, 2, F], bias [F]
    mask                  kernel [F, 4], bias [4]
    aux                   hidden [F, 128], hidden_bias, kernel [128, 4], bias [4]

The modules declare the shapes of weights; `AuxUNet.init` gives them their values.
Parameters and statistics are float32, whatever the computation is in. A decoder's input is the
up-sampled image followed by the skip, in this order of channels.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from auxseg.errors import InputError
from auxseg.models import layers
from auxseg.models.initial import draw_variables
from auxseg.structs import Outputs


_ZEROS = nn.initializers.zeros
_ONES = nn.initializers.ones


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `config.model` says; the fields are those of configs/base.py, checked."""

    base_width: int
    depth: int
    num_classes: int
    separable: bool
    se: bool
    se_ratio: int
    aux: bool
    aux_width: int
    dtype: str
    bn_momentum: float
    bn_epsilon: float
    lowering: str

    def widths(self):
        """Returns the channels of each encoder level and of the bottleneck, depth + 1 integers."""
        return [self.base_width << level for level in range(self.depth + 1)]


def batch_statistics(images, weights, axis_name):
    """Returns the mean and (biased) variance of each channel over the examples that count.

    Args:
        images: float [N, H, W, C].
        weights: float32 [N], 0.0 for examples that do not count, or None where all do.
        axis_name: mapped axis over whose devices to sum, or None.

    Returns:
        mean float32 [C], variance float32 [C], sum of weights float32 []; all 0 where nothing counts.
    """
    images = images.astype(jnp.float32)
    weights = jnp.ones(images.shape[0], jnp.float32) if weights is None else weights.astype(jnp.float32)
    example_means = jnp.mean(images, (1, 2))
    example_variances = jnp.mean(jnp.square(images - example_means[:, None, None]), (1, 2))
    total = _sum_devices(jnp.sum(weights), axis_name)
    shares = (weights / jnp.maximum(total, 1.0))[:, None]
    mean = _sum_devices(jnp.sum(shares * example_means, 0), axis_name)
    spread = example_variances + jnp.square(example_means - mean[None])
    return mean, _sum_devices(jnp.sum(shares * spread, 0), axis_name), total


def _sum_devices(value, axis_name):
    return value if axis_name is None else lax.psum(value, axis_name)


class Unit(nn.Module):
    """Convolution 3x3 (depthwise, then pointwise), batch norm and ReLU."""

    settings: Settings
    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, parts, train, weights, momentum):
        """Returns float [N, H, W, features].

        Args:
            parts: tuple of float [N, H, W, C_i], concatenated along the channels.
            train: use the batch's statistics and update the moving ones.
            weights: float32 [N] or None, see `batch_statistics`.
            momentum: of the moving statistics, float or float32 [], or None for the setting.
        """
        images = parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
        images = self._ordinary(images) if not self.settings.separable else self._separable(images)
        factor, shift = self._normalisation(images, train, weights, momentum)
        normal = images.astype(jnp.float32) * factor[None, None, None] + shift[None, None, None]
        return nn.relu(normal).astype(images.dtype)

    def _separable(self, images):
        channels, dtype = images.shape[-1], images.dtype
        depthwise = self.param("depthwise", _ZEROS, (3, 3, channels))
        pointwise = self.param("pointwise", _ZEROS, (channels, self.features))
        bias = self.param("bias", _ZEROS, (self.features,))
        lowering = self.settings.lowering
        images = layers.depthwise_conv(images, depthwise.astype(dtype), lowering=lowering)
        return layers.pointwise_conv(images, pointwise.astype(dtype), bias.astype(dtype), lowering=lowering)

    def _ordinary(self, images):
        channels, dtype = images.shape[-1], images.dtype
        shape = (3, 3, channels, self.features)
        kernel = self.param("ordinary", _ZEROS, shape)
        bias = self.param("bias", _ZEROS, (self.features,))
        return layers.ordinary_conv(images, kernel.astype(dtype), bias.astype(dtype))

    def _normalisation(self, images, train, weights, momentum):
        """Returns the factor and shift of batch norm, float32 [features] each."""
        shape = (self.features,)
        scale = self.param("scale", _ONES, shape)
        offset = self.param("offset", _ZEROS, shape)
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        moving_variance = self.variable("batch_stats", "variance", jnp.ones, shape)
        mean, variance = moving_mean.value, moving_variance.value
        if train and not self.is_initializing():
            mean, variance, total = batch_statistics(images, weights, self.axis_name)
            momentum = self.settings.bn_momentum if momentum is None else momentum
            keep = jnp.where(total > 0, momentum, 1.0)
            moving_mean.value = keep * moving_mean.value + (1.0 - keep) * mean
            moving_variance.value = keep * moving_variance.value + (1.0 - keep) * variance
        factor = scale * lax.rsqrt(variance + self.settings.bn_epsilon)
        return factor, offset - mean * factor


class SqueezeExcite(nn.Module):
    """Channel attention (3.1): the global mean through two dense layers scales each channel."""

    settings: Settings

    @nn.compact
    def __call__(self, images):
        """Returns the images [N, H, W, C], each channel times its scale in (0, 1)."""
        channels, dtype = images.shape[-1], images.dtype
        width = max(1, channels // self.settings.se_ratio)
        squeeze = self.param("squeeze", _ZEROS, (channels, width))
        squeeze_bias = self.param("squeeze_bias", _ZEROS, (width,))
        excite = self.param("excite", _ZEROS, (width, channels))
        excite_bias = self.param("excite_bias", _ZEROS, (channels,))
        means = jnp.mean(images, (1, 2), dtype=jnp.float32)
        hidden = nn.relu(means @ squeeze + squeeze_bias[None])
        scale = nn.sigmoid(hidden @ excite + excite_bias[None])
        return images * scale.astype(dtype)[:, None, None]


class ConvBlock(nn.Module):
    """Two units, then squeeze-and-excitation where the settings have it."""

    settings: Settings
    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, parts, train, weights, momentum):
        """Returns float [N, H, W, features]; the arguments are those of `Unit`."""
        for index in range(2):
            unit = Unit(self.settings, self.features, self.axis_name, name=f"unit_{index}")
            parts = (unit(parts, train, weights, momentum),)
        return SqueezeExcite(self.settings, name="se")(parts[0]) if self.settings.se else parts[0]


class AuxHead(nn.Module):
    """Which classes are in the slice: global mean, a hidden layer, one logit a class (3.1)."""

    settings: Settings

    @nn.compact
    def __call__(self, images):
        """Returns logits float32 [N, classes] for features [N, H, W, C]."""
        channels, width, classes = images.shape[-1], self.settings.aux_width, self.settings.num_classes
        hidden = self.param("hidden", _ZEROS, (channels, width))
        hidden_bias = self.param("hidden_bias", _ZEROS, (width,))
        kernel = self.param("kernel", _ZEROS, (width, classes))
        bias = self.param("bias", _ZEROS, (classes,))
        means = jnp.mean(images, (1, 2), dtype=jnp.float32)
        return nn.relu(means @ hidden + hidden_bias[None]) @ kernel + bias[None]


class Upsample(nn.Module):
    """Transposed 2x2 convolution of stride 2."""

    settings: Settings
    features: int

    @nn.compact
    def __call__(self, images):
        """Returns float [N, 2H, 2W, features]."""
        channels, dtype = images.shape[-1], images.dtype
        kernel = self.param("kernel", _ZEROS, (channels, 2, 2, self.features))
        bias = self.param("bias", _ZEROS, (self.features,))
        lowering = self.settings.lowering
        return layers.upsample(images, kernel.astype(dtype), bias.astype(dtype), lowering=lowering)


class MaskHead(nn.Module):
    """The last 1x1 convolution, to one logit a class and pixel."""

    settings: Settings

    @nn.compact
    def __call__(self, images):
        """Returns logits float32 [N, H, W, classes]."""
        channels, classes = images.shape[-1], self.settings.num_classes
        kernel = self.param("kernel", _ZEROS, (channels, classes))
        bias = self.param("bias", _ZEROS, (classes,))
        lowering = self.settings.lowering
        return layers.pointwise_conv(images, kernel.astype(images.dtype), bias, lowering=lowering)


class AuxUNet(nn.Module):
    """The whole network; `auxseg.models.create_model` builds it from a config.

    Attributes:
        settings: the checked config.
        axis_name: mapped axis over whose devices batch statistics are taken, or None.
    """

    settings: Settings
    axis_name: str | None = None

    def init(self, key, images):
        """Returns {'params', 'batch_stats'} with Keras' initial values (`initial.py`).

        Args:
            key: jax random key.
            images: as in `__call__`; only the shape is read.
        """
        return draw_variables(key, jax.eval_shape(super().init, key, images))

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs(mask_logits [N, H, W, classes], class_logits [N, classes] or None)`.

        Args:
            images: float [N, H, W, 1] in [0, 1]; H and W divisible by 2^depth.
            train: normalise by the batch's statistics and update the moving ones, which takes
                `mutable=['batch_stats']` in `apply`.
            weights: with `train`, float32 [N]: 0.0 for padding, which enters no statistics; or None.
            momentum: with `train`, overrides bn_momentum: new = momentum * old + (1 - momentum) *
                batch; float or float32 [], which may be traced; or None.

        Raises:
            InputError: images of another rank, channel count or size.
        """
        self._check(images)
        depth, widths = self.settings.depth, self.settings.widths()
        context = (train, weights, momentum)
        features = images.astype(self.settings.dtype)
        skips = []
        for level in range(depth):
            skips.append(self._block(f"encoder_{level}", widths[level])((features,), *context))
            features = layers.max_pool(skips[-1], lowering=self.settings.lowering)
        features = self._block("bottleneck", widths[depth])((features,), *context)
        class_logits = AuxHead(self.settings, name="aux")(features) if self.settings.aux else None
        for level in reversed(range(depth)):
            features = Upsample(self.settings, widths[level], name=f"up_{level}")(features)
            parts = (features, skips[level])
            features = self._block(f"decoder_{level}", widths[level])(parts, *context)
        return Outputs(MaskHead(self.settings, name="mask")(features), class_logits)

    def _block(self, name, features):
        # Only products of matrices are kept for the backward pass; the rest is cheap to compute again.
        block = nn.remat(ConvBlock, static_argnums=(2,), policy=jax.checkpoint_policies.save_only_these_names())
        return block(self.settings, features, self.axis_name, name=name)

    def _check(self, images):
        if images.ndim != 4 or images.shape[-1] != 1:
            raise InputError(f"model: images of shape {images.shape}, expected [N, H, W, 1]")
        step = 2**self.settings.depth
        if images.shape[1] % step or images.shape[2] % step or 0 in images.shape:
            raise InputError(
                f"model: images of {images.shape[1]} x {images.shape[2]} pixels, expected multiples of {step}"
                f" (2^depth, depth {self.settings.depth}): choose another data.size, or pad"
            )
