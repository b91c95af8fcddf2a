"""What the networks of Table 2 are made of, beyond the parts of the Auxiliary U-Net.

Where a part ends in batch norm and ReLU, it is `aux_unet.Unit`, whose result is left uncomputed (`Signal`);
here are convolutions whose result is added, gated or activated otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from auxseg.models import aux_unet, blocks, layers, volumes
from auxseg.models.aux_unet import MaskHead, Upsample, check_images
from auxseg.models.blocks import Signal
from auxseg.models.interface import Outputs
from auxseg.models.norm import normalisation
from auxseg.models.settings import Settings

_ZEROS = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Context:
    """The arguments of a network's call; see `aux_unet.AuxUNet.__call__`."""

    train: bool = False
    weights: Any = None
    momentum: Any = None

    def __iter__(self):
        return iter((self.train, self.weights, self.momentum))


class Conv(nn.Module):
    """A convolution, with bias and batch norm where asked, and without activation.

    Its kernel is [k, k, C, F] ('3x3', and '2x2' of stride 2), [C, F] ('1x1'), [3, 3, C] ('depthwise') or
    [3, 3, 3, C, F] ('3x3x3').

    Attributes:
        settings: of the network.
        features: F; 'depthwise': C.
        kind: as said.
        norm: batch norm follows.
        biased: it has a bias.
        axis_name: of the devices, or None.
    """

    settings: Settings
    features: int
    kind: str = "3x3"
    norm: bool = True
    biased: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, context):
        """Returns float [N, ..., F] for images [N, ..., C], D before H with '3x3x3'."""
        values = self._convolve(images)
        if not self.norm:
            bias = self.param("bias", _ZEROS, (self.features,)) if self.biased else jnp.zeros(self.features)
            return (values.astype(jnp.float32) + _spread(bias, values)).astype(values.dtype)
        # The moments are over all positions, however many axes they have.
        rows = values.reshape(values.shape[0], -1, values.shape[-2], values.shape[-1])
        factor, shift = normalisation(self, blocks.moments(rows), *context, biased=self.biased)
        scaled = values.astype(jnp.float32) * _spread(factor, values) + _spread(shift, values)
        return scaled.astype(values.dtype)

    def _convolve(self, images):
        channels, lowering = images.shape[-1], self.settings.lowering
        shape = {
            "1x1": (channels, self.features),
            "2x2": (2, 2, channels, self.features),
            "3x3": (3, 3, channels, self.features),
            "depthwise": (3, 3, channels),
            "3x3x3": (3, 3, 3, channels, self.features),
        }[self.kind]
        kernel = self.param("kernel", _ZEROS, shape).astype(images.dtype)
        if self.kind == "1x1":
            return layers.pointwise_conv(images, kernel, lowering=lowering)
        if self.kind == "depthwise":
            return layers.depthwise_conv(images, kernel, lowering=lowering)
        if self.kind == "2x2":
            return patch_conv(images, kernel, lowering=lowering)
        if self.kind == "3x3":
            return layers.ordinary_conv(images, kernel)
        return volumes.ordinary_conv(images, kernel, lowering=lowering)


def _spread(vector, values):
    return vector.reshape((1,) * (values.ndim - 1) + vector.shape)


def patch_conv(images, kernel, *, lowering):
    """Returns the 2x2 convolution of stride 2, without bias, float [N, H / 2, W / 2, F].

    Args:
        images: float [N, H, W, C], H and W even.
        kernel: float [2, 2, C, F].
        lowering: 'plain', or another: as one product of matrices.
    """
    if lowering == "plain":
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(images, kernel, (2, 2), "VALID", dimension_numbers=numbers)
    examples, rows, columns, channels = images.shape
    patches = images.reshape(examples, rows // 2, 2, columns // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    products = patches.reshape(-1, 4 * channels) @ kernel.reshape(4 * channels, -1)
    return products.reshape(examples, rows // 2, columns // 2, -1)


class Gate(nn.Module):
    """Attention gate: how much of each pixel of a skip is let through (arXiv:1804.03999).

    'additive' adds 1x1 convolutions of the skip and of the up-sampled gating image, each with batch norm, and
    takes ReLU, a 1x1 convolution with batch norm to one channel, and sigmoid, all at the skip's size. 'grid'
    works at the size below: a 2x2 convolution of stride 2 of the skip and a 1x1 convolution of the coarser
    image, ReLU, 1x1, sigmoid, enlarged; the gated skip passes a 1x1 convolution with batch norm.

    Attributes:
        settings: of the network.
        features: of the skip; the gate is half as wide.
        kind: 'additive' or 'grid'.
        axis_name: of the devices, or None.
    """

    settings: Settings
    features: int
    kind: str = "additive"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, skip, gating, context):
        """Returns the gated skip, float [N, H, W, F].

        Args:
            skip: float [N, H, W, F].
            gating: float [N, H, W, G], or with 'grid' [N, H / 2, W / 2, G].
            context: `Context`.
        """
        grid = self.kind == "grid"
        width = max(1, self.features // 2)
        theta = self._conv(width, "2x2" if grid else "1x1", not grid, "theta")(skip, context)
        phi = self._conv(width, "1x1", not grid, "phi")(gating, context)
        psi = self._conv(1, "1x1", not grid, "psi")(nn.relu(theta + phi), context)
        attention = nn.sigmoid(psi)
        if not grid:
            return skip * attention
        enlarged = jax.image.resize(attention, (*skip.shape[:3], 1), "bilinear").astype(skip.dtype)
        return self._conv(self.features, "1x1", True, "out")(skip * enlarged, context)

    def _conv(self, features, kind, norm, name):
        return Conv(self.settings, features, kind, norm, axis_name=self.axis_name, name=name)


class ComparedNetwork(aux_unet.NetworkBase):
    """What all networks of Table 2 share: the check of the images, encoder, up-sampling, outputs."""

    def _start(self, images):
        """Returns the images as a `Signal`, after their check."""
        check_images(images, self.settings.depth)
        return Signal(images.astype(self.settings.dtype))

    def _encode(self, signal, context):
        """Returns the `Signal` of each encoder level and of the bottleneck, depth + 1 of them."""
        *widths, last = self.settings.widths()
        found = []
        for level, width in enumerate(widths):
            found.append(self._block(f"encoder_{level}", width)((signal,), *context))
            signal = Signal(blocks.max_pool(found[-1], lowering=self.settings.lowering))
        return [*found, self._block("bottleneck", last)((signal,), *context)]

    def _upsample(self, level, signal):
        """Returns a `Signal` of twice the size and of the level's width."""
        return Upsample(self.settings, self.settings.widths()[level], name=f"up_{level}")(signal)

    def _finish(self, signal):
        """Returns the `Outputs` of the last layer's `Signal`."""
        return Outputs(MaskHead(self.settings, name="mask")(signal), None)
