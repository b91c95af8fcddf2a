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

import flax.linen as nn
import jax
import jax.numpy as jnp

from auxseg.base.errors import InputError
from auxseg.models import blocks, layers, volumes
from auxseg.models.blocks import Signal
from auxseg.models.initial import draw_variables
from auxseg.models.interface import Outputs
from auxseg.models.norm import normalisation
from auxseg.models.settings import Settings

_ZEROS = nn.initializers.zeros


def check_images(images, depth, *, channels=1):
    """Raises an InputError unless the images are [N, H, W, channels] and can be halved `depth` times."""
    if images.ndim != 4 or images.shape[-1] != channels:
        raise InputError(f"model: images of shape {images.shape}, expected [N, H, W, {channels}]")
    step = 2**depth
    if images.shape[1] % step or images.shape[2] % step or 0 in images.shape:
        raise InputError(
            f"model: images of {images.shape[1]} x {images.shape[2]} pixels, expected multiples of {step}"
            f" (2^depth, depth {depth}): choose another data.size, or pad"
        )


class Unit(nn.Module):
    """Convolution 3x3 (depthwise, then pointwise), batch norm and ReLU.

    Attributes:
        settings: the checked config.
        features: channels that it gives.
        axis_name: as of `NetworkBase`.
        slices: of volumes, whose slices lie one below the other in the images, for a convolution 3x3x3; or None.
    """

    settings: Settings
    features: int
    axis_name: str | None = None
    slices: int | None = None

    @nn.compact
    def __call__(self, signals, train, weights, momentum):
        """Returns a `Signal` of `features` channels.

        The bias is left out of the values: batch norm in training takes it away again, and otherwise
        it is part of the shift.

        Args:
            signals: tuple of `Signal`, concatenated along the channels.
            train: use the batch's statistics and update the moving ones.
            weights: float32 [N] or None, see `norm.batch_statistics`.
            momentum: of the moving statistics, float or float32 [], or None for the setting.
        """
        spread, values, moments = self._convolve(signals, train)
        if self.settings.folded:
            factor, shift = 1.0, self.param("shift", _ZEROS, (self.features,))
        else:
            factor, shift = normalisation(self, moments, train, weights, momentum)
        rows = (values.shape[0], self.features)
        return Signal(
            values, jnp.broadcast_to((spread * factor)[None], rows), jnp.broadcast_to(shift[None], rows)
        )

    def _convolve(self, signals, train):
        """Returns what values are still to be multiplied by [F], the values, and the moments after that, which only
        training reads."""
        channels, dtype = sum(blocks.num_channels(signal) for signal in signals), self.settings.dtype
        lowering, ones = self.settings.lowering, jnp.ones(self.features)
        if not self.settings.separable:
            images = jnp.concatenate([blocks.activate(signal) for signal in signals], -1)
            values = self._convolve_ordinary(images)
            return ones, values, blocks.moments(values)
        shape = (3, 3, channels) if self.slices is None else (3, 9, channels)
        depthwise = self.param("depthwise", _ZEROS, shape)
        pointwise = self.param("pointwise", _ZEROS, (channels, self.features))
        if channels == 1 and lowering != "plain":
            images = signals[0].values
            values, (mean, variance) = blocks.single_channel_conv(
                images, depthwise.astype(images.dtype), lowering=lowering, slices=self.slices
            )
            return pointwise[0], values, (mean * pointwise, variance * jnp.square(pointwise))
        return ones, *blocks.separable_conv(
            signals,
            depthwise,
            pointwise,
            lowering=lowering,
            dtype=dtype,
            with_moments=train,
            slices=self.slices,
        )

    def _convolve_ordinary(self, images):
        shape = (3, 3, images.shape[-1], self.features)
        if self.slices is None:
            return layers.ordinary_conv(images, self.param("ordinary", _ZEROS, shape).astype(images.dtype))
        kernel = self.param("ordinary", _ZEROS, (3, *shape)).astype(images.dtype)
        around = volumes.from_images(images, self.slices)
        return volumes.to_images(volumes.ordinary_conv(around, kernel, lowering=self.settings.lowering))


class SqueezeExcite(nn.Module):
    """Channel attention (3.1): the global mean through two dense layers scales each channel."""

    settings: Settings

    @nn.compact
    def __call__(self, signal):
        """Returns the `Signal`, each channel times its scale in (0, 1).

        The scale is above 0, so it may be put inside the ReLU.
        """
        channels = blocks.num_channels(signal)
        width = max(1, channels // self.settings.se_ratio)
        squeeze = self.param("squeeze", _ZEROS, (channels, width))
        squeeze_bias = self.param("squeeze_bias", _ZEROS, (width,))
        excite = self.param("excite", _ZEROS, (width, channels))
        excite_bias = self.param("excite_bias", _ZEROS, (channels,))
        means = blocks.global_mean(signal, lowering=self.settings.lowering)
        hidden = nn.relu(means @ squeeze + squeeze_bias[None])
        scale = nn.sigmoid(hidden @ excite + excite_bias[None])
        return Signal(signal.values, signal.factor * scale, signal.shift * scale)


class ConvBlock(nn.Module):
    """Two units, then squeeze-and-excitation where the settings have it; `slices` as of `Unit`."""

    settings: Settings
    features: int
    axis_name: str | None = None
    slices: int | None = None

    @nn.compact
    def __call__(self, signals, train, weights, momentum):
        """Returns a `Signal` of `features` channels; the arguments are those of `Unit`."""
        for index in range(2):
            unit = Unit(self.settings, self.features, self.axis_name, self.slices, name=f"unit_{index}")
            signals = (unit(signals, train, weights, momentum),)
        return SqueezeExcite(self.settings, name="se")(signals[0]) if self.settings.se else signals[0]


class AuxHead(nn.Module):
    """Which classes are in the slice: global mean, a hidden layer, one logit a class (3.1)."""

    settings: Settings

    @nn.compact
    def __call__(self, signal):
        """Returns logits float32 [N, classes] for a `Signal` of features."""
        channels, classes = blocks.num_channels(signal), self.settings.num_classes
        width = self.settings.aux_width
        hidden = self.param("hidden", _ZEROS, (channels, width))
        hidden_bias = self.param("hidden_bias", _ZEROS, (width,))
        kernel = self.param("kernel", _ZEROS, (width, classes))
        bias = self.param("bias", _ZEROS, (classes,))
        means = blocks.global_mean(signal, lowering=self.settings.lowering)
        return nn.relu(means @ hidden + hidden_bias[None]) @ kernel + bias[None]


class Upsample(nn.Module):
    """Transposed 2x2 convolution of stride 2."""

    settings: Settings
    features: int

    @nn.compact
    def __call__(self, signal):
        """Returns a `Signal` of twice the rows and columns and of `features` channels."""
        kernel = self.param("kernel", _ZEROS, (blocks.num_channels(signal), 2, 2, self.features))
        bias = self.param("bias", _ZEROS, (self.features,))
        return Signal(blocks.upsample(signal, kernel, bias, lowering=self.settings.lowering))


class MaskHead(nn.Module):
    """The last 1x1 convolution, to one logit a class and pixel."""

    settings: Settings

    @nn.compact
    def __call__(self, signal):
        """Returns logits float32 [N, H, W, classes] for a `Signal` of features."""
        shape = (blocks.num_channels(signal), self.settings.num_classes)
        kernel = self.param("kernel", _ZEROS, shape)
        bias = self.param("bias", _ZEROS, shape[1:])
        return blocks.pointwise_conv(signal, kernel, bias, lowering=self.settings.lowering)


class NetworkBase(nn.Module):
    """What all networks share: settings, initial weights, named blocks.

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

    def _image_dtype(self):
        """Returns the type that images are read in: kernels take them as exact as they are, at no cost."""
        exact = self.settings.separable and self.settings.lowering == "kernels"
        return "float32" if exact else self.settings.dtype

    def _block(self, name, features, slices=None):
        return ConvBlock(self.settings, features, self.axis_name, slices, name=name)


class AuxUNet(NetworkBase):
    """The whole network; `auxseg.models.create_model` builds it from a config."""

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs(mask_logits [N, H, W, classes], class_logits [N, classes] or None)`.

        Args:
            images: float [N, H, W, 1] in [0, 1], or slabs [N, H, W, slices], whose slices are channels; H and W
                divisible by 2^depth.
            train: normalise by the batch's statistics and update the moving ones, which takes
                `mutable=['batch_stats']` in `apply`.
            weights: with `train`, float32 [N]: 0.0 for padding, which enters no statistics; or None.
            momentum: with `train`, overrides bn_momentum: new = momentum * old + (1 - momentum) *
                batch; float or float32 [], which may be traced; or None.

        Raises:
            InputError: images of another rank or size.
        """
        check_images(images, self.settings.depth, channels=images.shape[-1])
        depth, widths = self.settings.depth, self.settings.widths()
        context = (train, weights, momentum)
        signal = Signal(images.astype(self._image_dtype()))
        skips = []
        for level in range(depth):
            skips.append(self._block(f"encoder_{level}", widths[level])((signal,), *context))
            signal = Signal(blocks.max_pool(skips[-1], lowering=self.settings.lowering))
        signal = self._block("bottleneck", widths[depth])((signal,), *context)
        class_logits = AuxHead(self.settings, name="aux")(signal) if self.settings.aux else None
        for level in reversed(range(depth)):
            signal = Upsample(self.settings, widths[level], name=f"up_{level}")(signal)
            signal = self._block(f"decoder_{level}", widths[level])((signal, skips[level]), *context)
        return Outputs(MaskHead(self.settings, name="mask")(signal), class_logits)
